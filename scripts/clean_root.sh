#!/usr/bin/env bash
# Proves on a clean machine that the commands of the README do all their set-up: makes a bare Debian or
# Ubuntu in a folder (debootstrap), copies this working tree into it, and runs a command there (chroot).
#
# Usage: scripts/clean_root.sh [OPTION]... FOLDER [COMMAND]...
#   FOLDER           where the root goes; one that this script made before is used again, with all that is in it
#   COMMAND          what to run in the copied tree, each word one argument (default: make test)
#   -s, --suite S    Debian's or Ubuntu's name of the release (default: bookworm)
#   -m, --mirror U   where its packages come from (default: the one that apt uses here for that distribution,
#                    else debootstrap's own)
#   -c, --commit     copy the commit HEAD instead of the working tree
#   -a, --also P     copy the path P of the tree, too, though git ignores it
#   -k, --keep       keep FOLDER afterwards, for another run or a look
#   -u, --user       run COMMAND as an ordinary user without sudo, not as root
#
# Needs root, debootstrap and git. What the root gets of this machine is only how to reach the package servers:
# name resolution, certificates, proxies, apt's and pip's settings, and the folders of packages that these
# name, mounted read-only. All mounts live in a mount namespace of their own, so none outlives the script,
# and removing FOLDER cannot reach through one.
set -euo pipefail

usage() { sed -n '/^# Usage/,/^#$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
die() {
  echo "error: $*" >&2
  exit 1
}

suite=bookworm mirror='' commit='' also='' keep='' user=root
while (($#)); do
  case $1 in
    -s | --suite) suite=${2:?} && shift 2 ;;
    -m | --mirror) mirror=${2:?} && shift 2 ;;
    -c | --commit) commit=yes && shift ;;
    -a | --also) also=${2:?} && shift 2 ;;
    -k | --keep) keep=yes && shift ;;
    -u | --user) user=tester && shift ;;
    -h | --help) usage && exit 0 ;;
    -*) usage >&2 && exit 2 ;;
    *) break ;;
  esac
done
(($#)) || { usage >&2 && exit 2; }
folder=$(realpath -m -- "$1")
shift
command=("$@")
((${#command[@]})) || command=(make test)

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tree=/srv/checkout                 # where the tree lies in the root
made_here=$folder/.made-by-clean-root # marks a root that this script may use again and remove

((EUID == 0)) || die "needs root: sudo $0 ..."
for tool in debootstrap git unshare; do
  command -v "$tool" >/dev/null || die "needs $tool: apt-get install debootstrap git util-linux"
done
scripts=${DEBOOTSTRAP_DIR:-/usr/share/debootstrap}/scripts
[[ -e $scripts/$suite ]] || die "debootstrap knows no release '$suite'; those it knows are in $scripts"

section() { printf '\n#### [%4d s] %s\n' "$SECONDS" "$*"; }

finish() {
  local status=$?
  if [[ -n $keep ]]; then
    echo "Kept $folder; remove it with: rm -r --one-file-system $folder"
  elif [[ -e $made_here ]]; then
    rm -r --one-file-system "$folder"
  fi
  exit "$status"
}

# --- the bare system

distribution=Debian components=main
if [[ $(readlink -f "$scripts/$suite") == */gutsy ]]; then # every release of Ubuntu is a link to this one
  distribution=Ubuntu components=main,universe
fi

mirror_of_apt() { # the server that apt uses here for the distribution, if it is of the same one
  apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    sed -n "s/^$distribution //p" | grep -v security | head -n 1 || true
}

proxy_of_apt() { apt-config dump "Acquire::$1::Proxy" 2>/dev/null | sed -n 's/.*"\(.*\)";$/\1/p' | head -n 1; }

if [[ ! -e $made_here ]]; then
  [[ ! -e $folder || -z $(ls -A "$folder") ]] || die "$folder is not empty and was not made by this script"
  section "debootstrap: a bare $distribution $suite in $folder"
  trap finish EXIT
  mkdir -p "$folder"
  touch "$made_here"
  http_proxy=${http_proxy:-$(proxy_of_apt http)} https_proxy=${https_proxy:-$(proxy_of_apt https)} \
    debootstrap --variant=minbase --components="$components" "$suite" "$folder" ${mirror:-$(mirror_of_apt)} |
    grep -v -E '^I: (Retrieving|Validating|Extracting|Unpacking|Configuring|Chosen|Found) ' || { keep='' && die "debootstrap failed"; }
else
  section "a root from before: $folder"
  trap finish EXIT
fi

# --- how to reach the package servers

section "settings for apt and pip"
cp -L /etc/resolv.conf "$folder/etc/resolv.conf"
cp /etc/hosts "$folder/etc/hosts"
apt-config dump | grep -E '^Acquire::(http|https|Check|Retries|Force|ForceIPv)' |
  grep -v '""' >"$folder/etc/apt/apt.conf.d/90host" || true

# A certificate bundle of one's own, where one is named; the root's own ca-certificates stay as they are.
bundle=''
for candidate in "${PIP_CERT:-}" "${SSL_CERT_FILE:-}" "${REQUESTS_CA_BUNDLE:-}" "${CURL_CA_BUNDLE:-}" \
  "$("${PYTHON:-python3}" -m pip config get global.cert 2>/dev/null || true)"; do
  if [[ -n $candidate && -f $candidate ]]; then bundle=$candidate && break; fi
done
settings=(HOME=/root LANG=C.UTF-8 "TERM=${TERM:-dumb}" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin)
if [[ -n $bundle ]]; then
  install -D -m 644 "$bundle" "$folder/etc/host-certificates.crt"
  settings+=(SSL_CERT_FILE=/etc/host-certificates.crt)
fi
for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
  if [[ -n ${!name:-} ]]; then settings+=("$name=${!name}"); fi
done

# Writes pip's settings of this machine (its files and PIP_* variables) as one file of the root, and prints the local
# files and folders that they name.
"${PYTHON:-python3}" - "$folder/etc/pip.conf" "$bundle" >"$folder/.mounts" <<'PYTHON'
import ast
import os
import subprocess
import sys
from urllib.parse import unquote, urlsplit

target, bundle = sys.argv[1:]
listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False)
sections: dict[str, dict[str, str]] = {}
from_files, from_environment = [], []
for line in listed.stdout.splitlines():
    key, _, value = line.partition("=")
    (from_environment if key.startswith(":env:.") else from_files).append((key, ast.literal_eval(value)))
for key, value in from_files + from_environment:  # pip lets the environment win
    section, _, name = key.replace(":env:", "global").rpartition(".")
    if name != "config-file":
        sections.setdefault(section, {})[name] = value
if bundle:
    sections.setdefault("global", {})["cert"] = "/etc/host-certificates.crt"

paths = set()
for settings in sections.values():
    for name, value in settings.items():
        if name in {"cert", "client-cert", "cache-dir", "log", "report", "target", "prefix", "root", "src"}:
            continue
        for word in value.split():
            path = unquote(urlsplit(word).path) if word.startswith("file:") else word
            if not os.path.isabs(path) or not os.path.exists(path):
                continue
            # The pages of an index folder link to files beside it.
            is_index = name in {"index-url", "extra-index-url"} and os.path.dirname(path.rstrip("/")) != "/"
            paths.add(os.path.dirname(path.rstrip("/")) if is_index else path.rstrip("/"))
print(*sorted(paths), sep="\n")

with open(target, "w", encoding="utf-8") as file:
    os.chmod(target, 0o644)
    for section, settings in sections.items():
        file.write(f"[{section}]\n")
        for name, value in settings.items():
            file.write(f"{name} = {value.replace(chr(10), chr(10) + '    ')}\n")
PYTHON

# --- the tree

section "copy of $([[ -n $commit ]] && git -C "$source" log -1 --format="%h %s" || echo "the working tree")"
mkdir -p "$folder$tree"
# What an earlier run built stays; everything else is laid anew.
find "$folder$tree" -mindepth 1 -maxdepth 1 ! -name build ! -name '.venv*' -exec rm -r {} +
if [[ -n $commit ]]; then
  git -C "$source" archive HEAD | tar -x -C "$folder$tree"
else
  (cd "$source" && git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
    tar --create --null --no-recursion --files-from=-) | tar -x --no-same-owner -C "$folder$tree"
fi
if [[ -n $also ]]; then (cd "$source" && tar --create "$also") | tar -x --no-same-owner -C "$folder$tree"; fi
if [[ $user != root ]]; then
  chroot "$folder" sh -c "id $user >/dev/null 2>&1 || useradd --create-home $user"
  chroot "$folder" chown -R "$user" "$tree"
  settings+=("HOME=/home/$user")
fi

# --- the run; `make` is the one thing that a README may ask for beforehand

section "run: ${command[*]}"
begin=$SECONDS
status=0
unshare --mount --propagation private --pid --fork --kill-child bash -s -- \
  "$folder" "$tree" "$user" "${#settings[@]}" "${settings[@]}" "${command[@]}" <<'INSIDE' || status=$?
set -euo pipefail
folder=$1 tree=$2 user=$3 count=$4
shift 4
settings=("${@:1:count}") command=("${@:count+1}")
mount -t proc proc "$folder/proc"
mount --rbind --make-rslave /dev "$folder/dev"
while IFS= read -r path; do
  [[ -n $path ]] || continue
  if [[ -d $path ]]; then mkdir -p "$folder$path"; else install -D -m 644 /dev/null "$folder$path"; fi
  mount --bind "$path" "$folder$path"
  mount -o remount,bind,ro "$folder$path"
  echo "mounted read-only: $path"
done <"$folder/.mounts"
in_root() { chroot "$@" </dev/null; }
if ! in_root "$folder" test -x /usr/bin/make; then
  echo "installing make"
  in_root "$folder" env -i "${settings[@]}" DEBIAN_FRONTEND=noninteractive sh -c \
    'apt-get -q=2 update && apt-get -q=2 -o Dpkg::Use-Pty=0 install --yes --no-install-recommends make >/dev/null'
fi
in_root --userspec="$user" "$folder" env -i "${settings[@]}" sh -c 'cd "$1" && shift && exec "$@"' sh "$tree" "${command[@]}"
INSIDE

section "'${command[*]}' ended with $status after $((SECONDS - begin)) s, in $distribution $suite"
exit "$status"
