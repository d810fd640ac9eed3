#!/usr/bin/env bash
# Gets what Larder's build, demo and tests need, on Debian 12. Safe to run again: what is there is left alone.
#
#   setup.sh           system packages, Python environment (.venv), the jars of Kafka and of an S3 server
#   setup.sh --tests   also the engines that the examples' tests run: PySpark, PyFlink, their connectors for Kafka
#   setup.sh --lint    also cargo-deny, which `make lint` runs
#
# All that can be shared between checkouts goes to LARDER_CACHE (default ~/.cache/larder).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CACHE="${LARDER_CACHE:-$HOME/.cache/larder}"
CARGO_DENY=0.20.2
mkdir -p "$CACHE"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# --- system packages ---------------------------------------------------------------------------------------------
missing=()
need() { # need PACKAGE COMMAND...: the Debian package, and a command that fails when it is not there
    local package="$1"
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}
need gcc command -v gcc
need g++ command -v g++
need make command -v make
need cmake command -v cmake
need perl command -v perl
need pkg-config command -v pkg-config
need libssl-dev test -e /usr/include/openssl/ssl.h
need openssl command -v openssl
need zlib1g-dev test -e /usr/include/zlib.h
need python3-venv python3 -c 'import ensurepip, venv'
need default-jre-headless command -v java
need maven command -v mvn
need redis-server command -v redis-server # the tests start their own

if ((${#missing[@]})); then
    command -v apt-get >/dev/null || die "please install: ${missing[*]} (names of Debian packages; this is no Debian)"
    as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null || die "please run as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "apt-get install ${missing[*]}"
    "${as_root[@]}" apt-get update -q
    # no package may start a service here
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
    if [[ " ${missing[*]} " == *" redis-server "* ]] && command -v systemctl >/dev/null; then
        "${as_root[@]}" systemctl disable redis-server >/dev/null 2>&1 || true
    fi
fi

command -v cargo >/dev/null || die "cargo is not installed: see https://rustup.rs, then run this again"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 must be 3.11 or newer, it is $(python3 -V)"

# --- Python environments -----------------------------------------------------------------------------------------
# environment NAME REQUIREMENTS [CONSTRAINTS]: sets `venv` to the environment in the cache, made where it lacks
environment() {
    local name="$1" key
    shift
    key=$({ cat "$@"; python3 -V; command -v python3; } | sha256sum | cut -c1-12)
    venv="$CACHE/$name-$key"
    [[ -e "$venv/.complete" ]] && return
    say "Python packages into $venv"
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$1" ${2:+-c "$2"}
    touch "$venv/.complete"
}
environment venv scripts/requirements.txt scripts/constraints.txt
ln -sfn "$venv" .venv
# --- Kafka, and an S3 server -------------------------------------------------------------------------------------
# The folders' names are computed in the same way in integration-tests/larder_env/paths.py.
jars() { # jars NAME POM: into the cache, where they lack
    local jars
    jars="$CACHE/$1-$(sha256sum "$2" | cut -c1-12)"
    [[ -e "$jars/.complete" ]] && return
    say "the jars of $1 into $jars"
    mvn -B -q -f "$2" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$jars"
    touch "$jars/.complete"
}
for server in kafka s3; do
    jars "$server" "integration-tests/$server/pom.xml"
done

# --- engines of the examples -------------------------------------------------------------------------------------
if [[ "${1:-}" == --tests ]]; then
    for engine in spark flink; do
        environment "$engine-venv" "examples/$engine/requirements.txt"
        ln -sfn "$venv" "examples/$engine/.venv"
        jars "$engine" "examples/$engine/pom.xml"
    done
fi

# --- lint tools --------------------------------------------------------------------------------------------------
if [[ "${1:-}" == --lint ]]; then
    tools="$CACHE/cargo-deny-$CARGO_DENY"
    if [[ ! -x "$tools/bin/cargo-deny" ]]; then
        say "compiling cargo-deny $CARGO_DENY into $tools (some three minutes on two cores, once)"
        # not the caller's target directory: what is built here is of no use there
        CARGO_TARGET_DIR="$CACHE/cargo-deny-build" RUSTFLAGS='' \
            cargo install -q --locked --no-default-features --root "$tools" "cargo-deny@$CARGO_DENY"
        rm -rf "$CACHE/cargo-deny-build"
    fi
    ln -sfn "$tools" "$CACHE/cargo-deny"
fi
say "ready"
