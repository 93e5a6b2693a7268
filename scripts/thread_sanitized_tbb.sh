#!/usr/bin/env bash
# scripts/thread_sanitized_tbb.sh FOLDER CMAKE NINJA JOBS
# Builds oneTBB with ThreadSanitizer and installs it into FOLDER. The system's library does not tell the sanitizer in
# which order its tasks run, so that every value one task hands to another would be reported. The source is that of the
# system's own package, of the version that is installed, since its headers are what is compiled against.
set -euo pipefail
cmake=$2 ninja=$3 jobs=$4
mkdir -p "$1"
folder=$(cd "$1" && pwd)
version=$(dpkg-query --show --showformat='${source:Version}' libtbb-dev)
stamp="$folder/.built-$version"
[[ ! -e $stamp ]] || exit 0

# Package lists of sources, beside those of the system, which need not have any.
apt="$folder/apt"
rm -rf "$folder/source" "$folder/build" "$folder/installed" "$apt"
mkdir -p "$apt/parts" "$apt/lists/partial" "$apt/cache/archives/partial" "$folder/source"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  if [[ -f $file ]]; then sed -n 's/^deb /deb-src /p' "$file" > "$apt/parts/$(basename "$file" .list).list"; fi
done
for file in /etc/apt/sources.list.d/*.sources; do
  if [[ -f $file ]]; then sed 's/^Types:.*/Types: deb-src/' "$file" > "$apt/parts/$(basename "$file")"; fi
done
options=(-o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$apt/parts" -o "Dir::State::lists=$apt/lists"
  -o "Dir::Cache=$apt/cache" -o "APT::Sandbox::User=$(id -un)")
echo "Building oneTBB $version with ThreadSanitizer"
apt-get "${options[@]}" --quiet --quiet update
(cd "$apt" && apt-get "${options[@]}" --quiet --quiet --download-only source "onetbb=$version" >/dev/null)
tar -x --strip-components=1 -C "$folder/source" -f "$apt"/onetbb_*.orig.tar.*

"$cmake" -S "$folder/source" -B "$folder/build" -G Ninja -DCMAKE_MAKE_PROGRAM="$ninja" --log-level=ERROR \
  -DCMAKE_POLICY_VERSION_MINIMUM=3.5 -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS="-w" -DTBB_SANITIZE=thread -DTBB_STRICT=OFF -DTBB_TEST=OFF \
  -DTBB_EXAMPLES=OFF -DTBBMALLOC_BUILD=OFF -DCMAKE_INSTALL_PREFIX="$folder/installed" > "$folder/log" 2>&1 &&
  "$cmake" --build "$folder/build" -j"$jobs" >> "$folder/log" 2>&1 &&
  "$cmake" --install "$folder/build" >> "$folder/log" 2>&1 || { tail -40 "$folder/log"; exit 1; }
rm -rf "$apt" "$folder/build"
touch "$stamp"
