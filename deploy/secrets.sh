#!/usr/bin/env bash
# Make passwords of one's own in a folder, for who may enter it: deploy/secrets.sh [FOLDER]. What is there stays.
set -euo pipefail
folder=${1:-secrets}
install -d -m 0700 "$folder"
for name in app-password broker-admin broker-publisher broker-bridge ray-token; do
  [[ -s $folder/$name ]] && continue
  python3 -c 'import secrets; print(secrets.token_urlsafe(32), end="")' >"$folder/$name"
  # The containers' user reads it; the folder keeps this machine's other users out.
  chmod 0444 "$folder/$name"
done
echo "$folder/: put HZZRAY_SECRETS=./$folder into .env"
