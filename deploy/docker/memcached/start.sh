#!/bin/sh
# memcached with TLS, and with the login USER, whose password is in the file PASSWORD_FILE. More
# arguments are memcached's.
set -eu
: "${USER:?}" "${PASSWORD_FILE:?}" "${CERTIFICATES:?}"
SASL_CONF_PATH=${STATE:-/tmp}
export SASL_CONF_PATH
umask 077
printf 'mech_list: plain\nsasldb_path: %s/sasldb2\n' "$SASL_CONF_PATH" > "$SASL_CONF_PATH/memcached.conf"
tr -d '\n' < "$PASSWORD_FILE" |
    saslpasswd2 -p -c -a memcached -u "$(hostname)" -f "$SASL_CONF_PATH/sasldb2" "$USER"
exec memcached -S -Z -o "ssl_chain_cert=$CERTIFICATES/cert.pem,ssl_key=$CERTIFICATES/key.pem" "$@"
