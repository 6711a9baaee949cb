#!/bin/bash
# MariaDB with the environment of the official image: MARIADB_ROOT_PASSWORD, _USER, _PASSWORD, _DATABASE.
set -euo pipefail
case "${1:-}" in '' | -*) set -- mariadbd "$@" ;; esac
[ "$1" = mariadbd ] || exec "$@"
shift
data=/var/lib/mysql
install -d -o mysql -g mysql "$data" /run/mysqld
as_mysql=(setpriv --reuid=mysql --regid=mysql --init-groups)
if [ ! -d "$data/mysql" ]; then
    : "${MARIADB_ROOT_PASSWORD:?is not set}"
    text() { local s=${1//\\/\\\\}; printf "'%s'" "${s//\'/\'\'}"; }
    user=${MARIADB_USER:-} database=${MARIADB_DATABASE:-}
    "${as_mysql[@]}" mariadb-install-db --datadir="$data" --skip-test-db --skip-name-resolve \
        --auth-root-authentication-method=normal >/dev/null
    # --bootstrap reads statements and listens nowhere, so that nobody connects too early.
    {
        echo "FLUSH PRIVILEGES;"
        echo "ALTER USER root@localhost IDENTIFIED BY $(text "$MARIADB_ROOT_PASSWORD");"
        echo "CREATE USER root@'%' IDENTIFIED BY $(text "$MARIADB_ROOT_PASSWORD");"
        echo "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;"
        [ -z "$database" ] || echo "CREATE DATABASE \`${database//\`/\`\`}\`;"
        if [ -n "$user" ]; then
            echo "CREATE USER $(text "$user")@'%' IDENTIFIED BY $(text "${MARIADB_PASSWORD:?is not set}");"
            [ -z "$database" ] || echo "GRANT ALL ON \`${database//\`/\`\`}\`.* TO $(text "$user")@'%';"
        fi
    } | "${as_mysql[@]}" mariadbd --datadir="$data" --bootstrap --skip-name-resolve --log-warnings=0
fi
exec "${as_mysql[@]}" mariadbd --bind-address=0.0.0.0 --skip-name-resolve --host-cache-size=0 "$@"
