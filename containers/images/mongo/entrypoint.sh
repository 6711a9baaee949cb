#!/bin/sh
# SecantusDB, which speaks MongoDB's wire protocol, in the place of mongod; see mongod.py.
set -eu
case "${1:-}" in '' | -*) set -- mongod "$@" ;; esac
[ "$1" = mongod ] || exec "$@"
shift
export PYTHONPATH=/opt/secantus PYTHONUNBUFFERED=1
exec python3 /usr/local/bin/mongod.py "$@"
