#!/bin/sh
# Starts Redis for Gatehouse: TLS only, a user for each process, nothing kept. It holds rate limits and rings doorbells; all
# truth is in PostgreSQL.
set -eu
umask 077

users=/run/redis/users.acl
# A pattern may be subscribed to only as it stands here.
bells="resetchannels &gatehouse:$GATEHOUSE_ENV:bell:* -@all +auth +hello +ping +client|setinfo +client|setname +publish +psubscribe +punsubscribe +subscribe +unsubscribe"
{
    echo 'user default off'
    # For the health check; it can do nothing else.
    echo 'user health on nopass resetchannels -@all +ping'
    for name in auth token-broker job audit; do
        echo "user $name on >$(cat "/secrets/$name.password") $bells"
    done
    echo "user gateway on >$(cat /secrets/gateway.password) $bells" \
        "~{gatehouse-$GATEHOUSE_ENV-ratelimit}*" '+eval +evalsha +script|load +time +get +set +del'
} >"$users"

# Redis reads its certificate at its start only. It keeps nothing, so it ends when there is a renewed one, and the engine
# starts it again: rate limits are then each gateway's own for a second or two.
certificate=$(cksum </secrets/tls.crt)
server=$$
# Adopted by init, not by the server.
(
    while sleep "${RENEWAL_LOOK_S:-3600}"; do
        if [ "$(cksum </secrets/tls.crt)" != "$certificate" ]; then
            echo "starting again with a renewed certificate"
            kill -TERM "$server"
            exit
        fi
    done &
)

# Where memory ends, the limits that are full again soonest are forgotten first.
exec redis-server --port 0 --tls-port 6379 --tls-protocols TLSv1.3 --tls-auth-clients no \
    --tls-cert-file /secrets/tls.crt --tls-key-file /secrets/tls.key --tls-ca-cert-file /secrets/ca.crt \
    --aclfile "$users" --save '' --appendonly no --dir /run/redis \
    --maxmemory 128mb --maxmemory-policy volatile-ttl
