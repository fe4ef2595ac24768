#!/usr/bin/env bash
# Install Debian packages that the tests need, without starting any service that they bring. Says which if it may not.
set -euo pipefail

missing=()
for package in "$@"; do
  dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID)); then
  if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
    as_root=(sudo)
  else
    as_root=(false)
  fi
fi
if ! command -v apt-get >/dev/null || [[ ${as_root[*]} == false ]]; then
  echo "The tests need Debian's packages ${missing[*]}: install them, or say SYSTEM= to do without" >&2
  exit 1
fi

# Debian asks this script before it starts a service; 101 means no.
policy=/usr/sbin/policy-rc.d
restore() {
  "${as_root[@]}" rm -f "$policy"
  [[ ! -e $policy.hzzray ]] || "${as_root[@]}" mv "$policy.hzzray" "$policy"
}
trap restore EXIT
trap 'exit 130' INT TERM
# One that is kept already is from an installation that was killed: it is the true one.
[[ ! -e $policy || -e $policy.hzzray ]] || "${as_root[@]}" mv "$policy" "$policy.hzzray"
printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
"${as_root[@]}" chmod 755 "$policy"

"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
