#!/bin/bash
# Brings a machine to the images that the integration tests run: containers/setup.sh
#
# Where Docker answers and its registry does too, the official images are pulled and nothing else happens. Elsewhere
# (a bare Debian 12 without a registry) this installs Docker, starts it, and builds images of the same names, under the
# prefix debian-built/, from Debian packages. Needs root for that. Safe to run again: what is there is left alone.
#
# It says each thing that it installs, starts or builds. It stops nothing, and a dockerd that already runs stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=debian-built/
base=${prefix}base:bookworm
label=pool-core.recipe # of each image: what it was made from
images=(postgres:15 redis:7 mariadb:10.11 mongo:7 edoburu/pgbouncer:1)
packages=postgresql-15,redis-server,mariadb-server,pgbouncer,python3
mongo_stand_in=secantusdb==0.7.0b3
python=${PYTHON:-python3}

command -v timeout >/dev/null || timeout() { shift; "$@"; } # macOS has none
say() { printf '[containers %3ds] %s\n' "$SECONDS" "$*"; }
die() { printf '[containers %3ds] FAILED: %s\n' "$SECONDS" "$*" >&2; exit 1; }
answers() { timeout 10 docker info >/dev/null 2>&1; }
present() { docker image inspect "$1" >/dev/null 2>&1; }
need_root() { [ "$(id -u)" = 0 ] || die "$1 needs root. Run: sudo $here/setup.sh"; }
install() { # package...
    need_root "installing $*"
    say "installing Debian packages: $*"
    export DEBIAN_FRONTEND=noninteractive
    # One source that is out of reach (update fails then) need not be the one that has these packages.
    { apt-get update -qq || true; apt-get install -y -qq --no-install-recommends "$@"; } >"$work/apt.log" 2>&1 ||
        { tail -20 "$work/apt.log" >&2; die "apt-get could not install: $*"; }
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- Docker itself ------------------------------------------------------------------------------------------------

start_docker() { # extra dockerd arguments...
    local log=/var/log/pool-test-dockerd.log
    say "starting dockerd ${*:+with $* }(log: $log)"
    setsid nohup dockerd --ip=127.0.0.1 "$@" >"$log" 2>&1 </dev/null &
    local pid=$!
    for _ in $(seq 150); do
        answers && return
        kill -0 $pid 2>/dev/null || break
        sleep 0.2
    done
    kill $pid 2>/dev/null || true
    say "dockerd did not answer; the end of its log:"
    tail -10 "$log"
    return 1
}

if ! answers; then
    reason=$(timeout 10 docker info 2>&1 | tail -3 || true)
    case "$reason" in
        *"permission denied"*) die "Docker is there but you may not use it ($reason). Add yourself to the group 'docker' or run this as root." ;;
    esac
    need_root "starting Docker"
    missing=()
    command -v dockerd >/dev/null && command -v docker >/dev/null || missing=(docker.io iptables)
    command -v mmdebstrap >/dev/null || missing+=(mmdebstrap)
    [ ${#missing[@]} = 0 ] || install "${missing[@]}"
    # A pid file that an earlier boot left stops dockerd, if another process has that number now.
    for file in /var/run/docker.pid /var/run/docker/containerd/containerd.pid; do
        [ -s "$file" ] || continue
        owner=$(cat "/proc/$(cat "$file")/comm" 2>/dev/null || true)
        case "$owner" in
            dockerd | containerd) die "a $owner runs (process $(cat "$file")) but does not answer. It was not started here, so it is left alone: see to it first." ;;
            *) say "removing the stale $file"; rm -f "$file" ;;
        esac
    done
    # Ports published on 127.0.0.1 go through docker-proxy, so that Docker without iptables will do.
    start_docker || start_docker --iptables=false --ip6tables=false || die "no dockerd could be started on this machine."
fi
say "Docker $(docker version -f '{{.Server.Version}}') answers"

# --- the images ---------------------------------------------------------------------------------------------------

recipe_of() { # directory: what the image is made from, as one word
    { echo "$base_recipe $mongo_stand_in"; find "$here/images/$1" -type f | LC_ALL=C sort | xargs cat; } | git hash-object --stdin | cut -c1-16
}
directory_of() { local name=${1%:*}; echo "${name##*/}"; }
built_from() { docker image inspect -f '{{index .Config.Labels "'$label'"}}' "$1" 2>/dev/null || true; }
make_base() { # tar file: Debian 12 with all the servers, from the machine's own apt sources, so that no mirror is named here
    local sources
    mapfile -t sources < <(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
        grep ' bookworm' | sort -u)
    [ ${#sources[@]} -gt 0 ] || { echo "no Debian 12 (bookworm) in this machine's apt sources" >&2; return 1; }
    # Without docs, and without the clusters that two of the packages make: the entrypoints make them.
    mmdebstrap --quiet --variant=apt --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt=force-unsafe-io \
        --aptopt='Acquire::Languages "none"' \
        --customize-hook='rm -rf "$1"/var/lib/postgresql/15 "$1"/etc/postgresql/15 "$1"/var/lib/mysql/*' \
        bookworm "$1" "${sources[@]}"
}
fetch_stand_in() { # directory: for Debian 12's Python, whichever Python runs pip
    "$python" -m pip install -q --no-compile --disable-pip-version-check --only-binary=:all: --target "$1" \
        --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform any "$mongo_stand_in"
}
base_recipe=$({ echo "$packages"; declare -f make_base; } | git hash-object --stdin | cut -c1-16)

wanted=()
for image in "${images[@]}"; do
    present "$image" || [ "$(built_from "$prefix$image")" = "$(recipe_of "$(directory_of "$image")")" ] || wanted+=("$image")
done
[ ${#wanted[@]} -gt 0 ] || { say "all images are there: ${images[*]}"; exit 0; }

pull() { timeout 300 docker pull -q "$1" >"$work/pull.log" 2>&1; }
if ! present "$base"; then
    say "asking the registry for ${wanted[0]}"
    if pull "${wanted[0]}"; then
        for image in "${wanted[@]:1}"; do say "pulling $image"; pull "$image" || die "cannot pull $image: $(cat "$work/pull.log")"; done
        say "all images are there: ${images[*]}"
        exit 0
    fi
    say "no registry ($(tail -1 "$work/pull.log" | cut -c1-100)): building from Debian packages"
fi

# MongoDB itself is in neither Debian nor PyPI; SecantusDB speaks its wire protocol. pip fetches it meanwhile.
fetching=
if [[ " ${wanted[*]} " = *" mongo:7 "* ]]; then
    fetch_stand_in "$work/site" >"$work/pip.log" 2>&1 &
    fetching=$!
fi
if [ "$(built_from "$base")" != "$base_recipe" ]; then
    need_root "building the base image"
    command -v mmdebstrap >/dev/null || install mmdebstrap
    say "building $base: ${packages//,/ } (about 45 s)"
    make_base "$work/base.tar" 2>"$work/base.log" || { tail -20 "$work/base.log" >&2; die "mmdebstrap could not make the base image."; }
    docker import --change "LABEL $label=$base_recipe" "$work/base.tar" "$base" >/dev/null || die "docker import failed."
fi
[ -z "$fetching" ] || wait "$fetching" || { tail -20 "$work/pip.log" >&2; die "pip could not fetch $mongo_stand_in."; }

for image in "${wanted[@]}"; do
    directory=$(directory_of "$image")
    recipe=$(recipe_of "$directory")
    say "building $prefix$image"
    cp -r "$here/images/$directory" "$work/$directory"
    [ "$directory" != mongo ] || mv "$work/site" "$work/mongo/site"
    docker build --force-rm --build-arg BASE="$base" --label $label="$recipe" -t "$prefix$image" "$work/$directory" \
        >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" >&2; die "docker build of $image failed."; }
done
docker image prune -f --filter label=$label >"$work/prune.log" # those that the new ones replaced
say "all images are there: ${images[*]} (under $prefix)"
