#!/usr/bin/env bash
# Installs the wheel of the system's own Python where there is nothing but python3-venv, and uses it.
# Run it as root in a bare system, with dist/ of `make wheel`:
#   scripts/clean_root.sh --also dist /tmp/bare tests/wheel/in_bare_root.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
root=$PWD
apt-get -q=2 update
DEBIAN_FRONTEND=noninteractive apt-get -q=2 -o Dpkg::Use-Pty=0 install --yes --no-install-recommends python3-venv >/dev/null
headers=$(dpkg-query --show --showformat='${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii .*-dev$/&/p')
if [[ -n $headers ]]; then echo "error: the system has $headers" >&2 && exit 1; fi
for library in libprotobuf libtbb libzip libhwy libfmt; do
  if ldconfig -p | grep -q "$library"; then echo "error: the system has $library" >&2 && exit 1; fi
done
for tool in gcc g++ cc clang cmake protoc; do
  if command -v "$tool"; then echo "error: the system has $tool" >&2 && exit 1; fi
done

work=$(mktemp -d)
python3 -m venv "$work/venv"
PATH=$work/venv/bin:$PATH
pip --disable-pip-version-check --no-input install --quiet --only-binary=:all: --find-links=dist \
  amct-pytorch -r requirements/runtime.txt
mkdir "$work/empty"
cd "$work/empty"
amct --version
amct-pytorch --help >/dev/null
python -I "$root/tests/wheel/use_wheel.py" "$root/tests/golden/model/config.json" record.txt torch >libraries.json
cmp record.txt "$root/tests/wheel/record.txt"
amct inspect record.txt
amct export record.txt --to npz --output factors.npz
amct verify factors.npz --as npz --record record.txt
echo "the wheel works in $(. /etc/os-release && echo "$PRETTY_NAME"), $(python --version), glibc $(ldd --version | sed -n '1s/.* //p')"
