#!/bin/sh
# Redis with the command line of the official image.
set -eu
case "${1:-}" in '' | -*) set -- redis-server "$@" ;; esac
[ "$1" = redis-server ] || exec "$@"
shift
chown redis:redis .
# Debian's build refuses remote clients without a password; the official image does not.
exec setpriv --reuid=redis --regid=redis --init-groups redis-server --protected-mode no "$@"
