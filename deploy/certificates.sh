#!/usr/bin/env bash
# Make what TLS between the containers needs, in a folder for who may enter it: deploy/certificates.sh [FOLDER]
# An authority of one's own, whose key is thrown away, and one certificate for all containers. Ray's nodes call each
# other by address, so that it names every address of the network HZZRAY_NETWORK (first three numbers of a /24).
set -euo pipefail
folder=${1:-certificates} network=${HZZRAY_NETWORK:-172.31.253} days=825
[[ ! -e $folder/tls-key ]] || { echo "$folder/ has certificates already: remove it for new ones" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
  echo 'subjectAltName = @names'
  echo 'extendedKeyUsage = serverAuth, clientAuth'
  echo 'keyUsage = critical, digitalSignature, keyEncipherment'
  echo 'basicConstraints = critical, CA:FALSE'
  echo '[names]'
  number=0
  for name in rabbitmq ray-head localhost; do echo "DNS.$((number += 1)) = $name"; done
  echo 'IP.0 = 127.0.0.1'
  for last in {1..254}; do echo "IP.$last = $network.$last"; done
} >"$work/extensions"
cd "$work"
openssl req -x509 -newkey rsa:3072 -nodes -sha256 -days "$days" -subj '/CN=hzzray authority' -keyout authority.key \
  -out tls-authority -addext 'keyUsage = critical, keyCertSign, cRLSign' 2>/dev/null
openssl req -newkey rsa:3072 -nodes -sha256 -subj '/CN=hzzray' -keyout tls-key -out request 2>/dev/null
openssl x509 -req -in request -CA tls-authority -CAkey authority.key -set_serial "0x$(openssl rand -hex 16)" -sha256 \
  -days "$days" -extfile extensions -out tls-certificate 2>/dev/null
cd - >/dev/null
install -d -m 0700 "$folder"
# The containers' users read them; the folder keeps this machine's other users out.
install -m 0444 "$work"/tls-{authority,certificate,key} "$folder/"
echo "$folder/: good for $days days"
