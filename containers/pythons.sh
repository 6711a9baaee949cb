#!/bin/bash
# Brings a newer Python to a Debian machine: containers/pythons.sh 3.14 prints the path of a working python3.14.
#
# It unpacks the interpreter of Debian's unstable suite, with its own C library, into a directory of its own (60 MB), from
# the machine's own apt sources. Only the interpreter's ELF header is changed: it names the loader and the libraries of that
# directory. Nothing else of the machine changes. Needs root, like setup.sh. Safe to run again: what is there is left alone.
set -euo pipefail
minor=${1:-}
[[ "$minor" =~ ^3\.[0-9]+$ ]] || { echo "pythons.sh: '$minor' is no Python version: give one as in 3.14" >&2; exit 2; }
suite=sid
home=${POOL_TEST_PYTHONS:-${XDG_CACHE_HOME:-$HOME/.cache}/pool-core/pythons}
directory=$home/$minor
python=$directory/usr/bin/python$minor

say() { printf '[pythons %3ds] %s\n' "$SECONDS" "$*" >&2; }
die() { say "FAILED: $*"; exit 1; }
works() { "$python" -c 'import ctypes, lzma, sqlite3, ssl, sys, zlib' 2>/dev/null; }

works && { echo "$python"; exit 0; }
mkdir -p "$home"
# Two runs at once would unpack into one directory.
command -v flock >/dev/null && { exec 9>"$home/$minor.lock"; flock 9; }
works && { echo "$python"; exit 0; }

command -v apt-get >/dev/null || die "this machine has no apt: install Python $minor in its own way, so that python$minor is in PATH."
[ "$(id -u)" = 0 ] || die "bringing Python $minor needs root. Run: sudo ${BASH_SOURCE[0]} $minor"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
missing=()
for tool in mmdebstrap patchelf; do command -v $tool >/dev/null || missing+=($tool); done
if [ ${#missing[@]} -gt 0 ]; then
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq || true; apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$work/log" 2>&1 ||
        { tail -5 "$work/log" >&2; die "apt-get could not install ${missing[*]}."; }
fi
archive=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
    awk '$3 == "main" && $2 !~ /-/ { print $1; exit }')
[ -n "$archive" ] || die "there is no Debian archive in this machine's apt sources."
say "unpacking Python $minor of Debian $suite into $directory (about 10 s)"
rm -rf "$directory"
# A machine's copy of the archive may be older than the suite allows.
mmdebstrap --quiet --variant=extract --include="python$minor" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
    "$suite" "$directory" "deb $archive $suite main" >"$work/log" 2>&1 ||
    { tail -5 "$work/log" >&2; rm -rf "$directory"; die "mmdebstrap could not unpack Python $minor of Debian $suite."; }
libraries=$(dirname "$(find "$directory/usr/lib" -name 'libc.so.6' | head -1)")
loader=$(find "$libraries" -name 'ld-linux-*.so.*' | head -1)
# RPATH and not RUNPATH, which would not hold for the libraries of the extension modules.
patchelf --force-rpath --set-rpath "$libraries" --set-interpreter "$loader" "$python" 2>"$work/log" ||
    { cat "$work/log" >&2; rm -rf "$directory"; die "patchelf could not change $python."; }
works || { rm -rf "$directory"; die "the unpacked Python $minor does not run on this machine."; }
say "$("$python" --version) is ready"
echo "$python"
