#!/bin/sh
# Redis or Valkey ($SERVER) with the command line of the official images.
set -eu
case "${1:-}" in '' | -*) set -- "$SERVER" "$@" ;; esac
[ "$1" = "$SERVER" ] || exec "$@"
shift
user=${SERVER%-server}
chown "$user:$user" .
# Debian's build refuses remote clients without a password; the official image does not.
exec setpriv --reuid="$user" --regid="$user" --init-groups "$SERVER" --protected-mode no "$@"
