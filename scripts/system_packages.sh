#!/usr/bin/env bash
# Installs the system packages that are missing.
# Usage: scripts/system_packages.sh [LIST]
# LIST is requirements/debian.txt unless another one is named.
# Asks apt only if something is missing. Needs root or a sudo without password then; else it says
# what to run and exits with 1. On a system without dpkg it checks nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mapfile -t wanted < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "${1:-requirements/debian.txt}")

if ! command -v dpkg-query >/dev/null; then
  echo "note: not a Debian system; these packages, or their like, must be there: ${wanted[*]}" >&2
  exit 0
fi

declare -A installed=()
while read -r status package; do
  if [[ $status == ii ]]; then installed[$package]=1; fi
done < <(dpkg-query --show --showformat='${db:Status-Abbrev} ${Package}\n' "${wanted[@]}" 2>/dev/null || true)

missing=()
for package in "${wanted[@]}"; do
  if [[ -z ${installed[$package]:-} ]]; then missing+=("$package"); fi
done
if ((${#missing[@]} == 0)); then exit 0; fi

as_root=()
if ((EUID != 0)); then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
  else
    {
      echo "error: system packages are missing, and installing them needs root. Run this, then try again:"
      echo
      echo "  sudo apt-get update && sudo apt-get install --yes --no-install-recommends ${missing[*]}"
      echo
    } >&2
    exit 1
  fi
fi

echo "Installing system packages: ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0)
"${apt[@]}" update || echo "warning: apt-get update failed; going on with the lists that are there" >&2
"${apt[@]}" install --yes --no-install-recommends "${missing[@]}"
