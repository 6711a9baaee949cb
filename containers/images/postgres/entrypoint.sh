#!/bin/sh
# PostgreSQL with the environment of the official image: POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB.
set -eu
case "${1:-}" in '' | -*) set -- postgres "$@" ;; esac
[ "$1" = postgres ] || exec "$@"
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 0700 "$PGDATA"
    install -d -o postgres -g postgres -m 2775 /var/run/postgresql
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    [ -n "${POSTGRES_PASSWORD:-}" ] || { echo "POSTGRES_PASSWORD is not set" >&2; exit 1; }
    secret=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" >"$secret"
    initdb --username="$user" --pwfile="$secret" --auth-local=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync >/dev/null
    rm -f "$secret"
    echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
    # Single-user mode listens nowhere, so that nobody connects too early.
    [ "$database" = postgres ] || printf 'CREATE DATABASE "%s"\n' "$database" | postgres --single -j postgres >/dev/null
fi
exec "$@"
