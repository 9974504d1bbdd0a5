#!/bin/sh
# Starts PostgreSQL for Gatehouse: a cluster of its own on first start, and at every start the roles as roles.sql and the
# generated passwords say. From the network it takes TLS and passwords only, and no superuser.
set -eu
umask 077

data=/var/lib/postgresql/data/17
run=/run/postgresql

if [ ! -e "$data" ]; then
    # A start that was cut off here begins again.
    rm -rf "$data.new"
    initdb -D "$data.new" -U postgres --encoding=UTF8 --locale=C.UTF-8 --data-checksums \
        --auth-local=peer --auth-host=reject >/dev/null
    mv "$data.new" "$data"
    echo "made the database cluster"
fi

# The server wants its key to be its own file.
take_certificate() { cp /secrets/tls.crt /secrets/tls.key "$run/"; }
take_certificate

# Nobody can connect from outside yet, and what fails here is not logged with its text: passwords are in it.
pg_ctl -D "$data" -w -s -l "$run/roles.log" \
    -o "-c listen_addresses='' -c log_min_error_statement=panic -c unix_socket_directories=$run" start \
    || { cat "$run/roles.log"; exit 1; }
psql -q -X -v ON_ERROR_STOP=1 -h "$run" -U postgres -d postgres -f /etc/gatehouse/roles.sql >/dev/null
pg_ctl -D "$data" -w -s -m fast stop
rm -f "$run/roles.log"

# A renewed certificate is taken up where the old one still lives for weeks; a handshake between the two copies fails once.
# Adopted by init, not by the server.
(
    while sleep "${RENEWAL_LOOK_S:-3600}"; do
        if ! cmp -s /secrets/tls.crt "$run/tls.crt"; then
            take_certificate && pg_ctl -D "$data" reload && echo "took up a renewed certificate"
        fi
    done &
)

exec postgres -D "$data" \
    -c listen_addresses='*' \
    -c unix_socket_directories="$run" \
    -c hba_file=/etc/gatehouse/pg_hba.conf \
    -c ssl=on -c ssl_cert_file="$run/tls.crt" -c ssl_key_file="$run/tls.key" -c ssl_min_protocol_version=TLSv1.3 \
    -c max_connections=200
