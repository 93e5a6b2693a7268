#!/usr/bin/env bash
# A shared library has the name of its version, SONAME and version node, and the symbols of a list, no more and no less. Inline functions (W) are left out: whether
# there is one depends on the compiler. With UPDATE_ABI in the environment they are written into the list.
set -euo pipefail
export LC_ALL=C
nm=$1 library=$2 list=$3 readelf=$4 version=$5
seen=$(mktemp)
trap 'rm -f "$seen"' EXIT

soname=$("$readelf" --dynamic "$library" | sed -n -E 's/.*\(SONAME\).*\[(.*)\]$/\1/p')
if [[ $soname != "libamct.so.$version" ]]; then
  echo "The library calls itself '$soname', not libamct.so.$version." >&2
  exit 1
fi
# What is defined has the version, but for the version itself and what inline functions leave.
if "$nm" --dynamic --defined-only "$library" | grep -v -E '^[0-9a-f]+ [AWuVw] |@@AMCT_'"${version//./\\.}"'$'; then
  echo "These symbols are not of the version AMCT_$version." >&2
  exit 1
fi

# "0000 T name@@AMCT_0.1"; A is the version itself, and constructors have several symbols of one name.
"$nm" --dynamic --defined-only --demangle "$library" |
  sed -E -e '/^[0-9a-f]+ [AWu] /d' -e 's/^[0-9a-f]+ [A-Z] //' -e 's/@@AMCT_[0-9.]+$//' | sort -u > "$seen"

if grep -v -E '^(amct_|amct::|(typeinfo|typeinfo name|vtable) for amct::)' "$seen"; then
  echo "These are not ours, but are seen from outside." >&2
  exit 1
fi
if [[ -n ${UPDATE_ABI:-} ]]; then cp "$seen" "$list"; fi
if ! diff -u "$list" "$seen"; then
  echo "Symbols changed. Where that is meant: UPDATE_ABI=1 ctest -R abi, and a line in CHANGELOG.md." >&2
  exit 1
fi
