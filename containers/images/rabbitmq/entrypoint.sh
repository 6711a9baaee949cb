#!/bin/bash
# RabbitMQ with the environment of the official image: RABBITMQ_DEFAULT_USER, RABBITMQ_DEFAULT_PASS, RABBITMQ_DEFAULT_VHOST.
set -euo pipefail
case "${1:-}" in '' | -*) set -- rabbitmq-server "$@" ;; esac
home=/var/lib/rabbitmq
if [ "$(id -u)" = 0 ] && [[ "$1" = rabbitmq* ]]; then
    install -d -o rabbitmq -g rabbitmq "$home" /var/log/rabbitmq /etc/rabbitmq /etc/rabbitmq/conf.d
    if [ ! -s "$home/.erlang.cookie" ]; then
        (umask 077; head -c 20 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$home/.erlang.cookie")
        chown rabbitmq:rabbitmq "$home/.erlang.cookie"
    fi
    if [ "$1" = rabbitmq-server ]; then
        {
            echo "loopback_users.guest = false" # else guest could not log in from outside of the container
            echo "default_user = ${RABBITMQ_DEFAULT_USER:-guest}"
            echo "default_pass = ${RABBITMQ_DEFAULT_PASS:-guest}"
            echo "default_vhost = ${RABBITMQ_DEFAULT_VHOST:-/}"
            echo "log.console = true"
            echo "log.file = false"
        } >/etc/rabbitmq/conf.d/10-container.conf
        chown -R rabbitmq:rabbitmq /etc/rabbitmq/conf.d
    fi
    exec setpriv --reuid=rabbitmq --regid=rabbitmq --init-groups env HOME="$home" "$0" "$@"
fi
# Two schedulers and no busy waiting: else each idle node takes a good part of a core.
export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="${RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS:-+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none}"
exec "$@"
