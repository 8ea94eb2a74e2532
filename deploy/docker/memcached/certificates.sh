#!/bin/sh
# An authority and a server's certificate for NAME into FOLDER, for a year; what is there, stays.
# Who has the authority's key could pass for the server, so it is not kept.
set -eu
name=$1
folder=$2
if [ -s "$folder/cert.pem" ]; then exit 0; fi
umask 077
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 366 \
    -subj "/CN=authority of $name" -keyout ca.key -out ca.pem 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
    -subj "/CN=$name" -keyout key.pem -out server.csr 2>/dev/null
printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:%s\n' "$name" > extensions
openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 \
    -extfile extensions -out cert.pem 2>/dev/null
chmod 644 ca.pem
# The certificate comes last: its being there says that all is.
cp -p ca.pem key.pem "$folder"
cp -p cert.pem "$folder"
