#!/bin/bash
# MySQL with the environment of the official image: MYSQL_ROOT_PASSWORD, MYSQL_USER, MYSQL_PASSWORD, MYSQL_DATABASE.
# TLS is on, with keys that mysqld makes at its first start.
set -euo pipefail
case "${1:-}" in '' | -*) set -- mysqld "$@" ;; esac
[ "$1" = mysqld ] || exec "$@"
shift
data=/var/lib/mysql
install -d -o mysql -g mysql "$data" /run/mysqld
install -d -o mysql -g mysql -m 0750 /var/lib/mysql-files # mysqld does not start without it
options=(--datadir="$data" --socket=/run/mysqld/mysqld.sock --pid-file=/run/mysqld/mysqld.pid)
if [ ! -d "$data/mysql" ]; then
    : "${MYSQL_ROOT_PASSWORD:?is not set}"
    text() { local s=${1//\\/\\\\}; printf "'%s'" "${s//\'/\'\'}"; }
    name() { printf '`%s`' "${1//\`/\`\`}"; }
    cp -a --reflink=auto /usr/local/share/mysql-seed/. "$data/"
    database=${MYSQL_DATABASE:-} user=${MYSQL_USER:-}
    # The server runs --init-file before it opens its port, so that nobody connects too early; one statement a line.
    statements=$(mktemp)
    chown mysql "$statements"
    {
        echo "ALTER USER root@localhost IDENTIFIED BY $(text "$MYSQL_ROOT_PASSWORD");"
        echo "CREATE USER root@'%' IDENTIFIED BY $(text "$MYSQL_ROOT_PASSWORD");"
        echo "GRANT ALL ON *.* TO root@'%' WITH GRANT OPTION;"
        [ -z "$database" ] || echo "CREATE DATABASE $(name "$database");"
        if [ -n "$user" ]; then
            echo "CREATE USER $(text "$user")@'%' IDENTIFIED BY $(text "${MYSQL_PASSWORD:?is not set}");"
            [ -z "$database" ] || echo "GRANT ALL ON $(name "${database//_/\\_}").* TO $(text "$user")@'%';"
        fi
    } >"$statements"
    options+=(--init-file="$statements")
fi
# mysqlx listens on a second port that nothing here uses, and costs start time.
exec setpriv --reuid=mysql --regid=mysql --init-groups mysqld --defaults-file=/etc/mysql/container.cnf \
    --bind-address=0.0.0.0 --mysqlx=OFF --host-cache-size=0 --skip-name-resolve "${options[@]}" "$@"
