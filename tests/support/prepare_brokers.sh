#!/bin/sh
# Prepare RabbitMQ 4.0 and 4.3 for the tests: a small Debian each, below $POSTAGE_BROKERS. `make brokers` runs this.
#
#     prepare_brokers.sh [VERSION ...]
#
# What is there already is left alone, so that every checkout on a machine shares it. The last lines say what could not
# be prepared, and why; the status is 1 unless 4.0 is there, which must work, or what was asked for by name.
set -u

home=${POSTAGE_BROKERS:-/var/cache/postage/brokers}
# Debian's unstable moves. On this day it had 4.3.6.
snapshot=https://snapshot.debian.org/archive/debian/20261010T000000Z
mirror=http://deb.debian.org/debian
server=/usr/lib/rabbitmq/bin/rabbitmq-server
failures=

say() {
    printf '%s\n' "$*"
}

give_up() {
    say "make brokers: $*"
    exit 1
}

# The first argument is the version, the second says why there is none.
failed() {
    failures="${failures}RabbitMQ $1 is not prepared: $2
"
}

install_debootstrap() {
    command -v debootstrap >/dev/null && return
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes debootstrap; } >"$home/install.log" 2>&1 ||
        give_up "debootstrap cannot be installed, see $home/install.log"
}

# Where Debian's unstable of that day can be reached, it is taken in place of that of today.
source_of() {
    if [ "$1" = sid ] && wget --quiet --spider --tries=1 --timeout=10 "$snapshot/dists/sid/InRelease" 2>/dev/null; then
        say "$snapshot"
    else
        say "$mirror"
    fi
}

# prepare VERSION SUITE
prepare() {
    version=$1 suite=$2 directory=$home/$1 unfinished=$home/$1.unfinished log=$home/$1.log
    if [ -x "$directory$server" ]; then
        say "RabbitMQ $version is in $directory"
        return
    fi
    source=$(source_of "$suite")
    say "RabbitMQ $version is being installed from $source $suite into $directory"
    rm -rf "$unfinished"
    if ! debootstrap --variant=minbase --include=rabbitmq-server "$suite" "$unfinished" "$source" >"$log" 2>&1; then
        failed "$version" "debootstrap failed, see $log"
        rm -rf "$unfinished"
        return
    fi
    found=$(chroot "$unfinished" dpkg-query --show --showformat '${Version}' rabbitmq-server)
    case $found in
    "$version".*) ;;
    *)
        failed "$version" "Debian's $suite has rabbitmq-server $found by now"
        rm -rf "$unfinished"
        return
        ;;
    esac
    # Its package files are of no use any more.
    chroot "$unfinished" apt-get clean
    mv "$unfinished" "$directory"
}

[ -r /etc/debian_version ] && command -v apt-get >/dev/null ||
    give_up 'RabbitMQ 4.x is installed by debootstrap, which takes a Debian; elsewhere the tests have the installed one'
[ "$(id -u)" = 0 ] || give_up 'debootstrap and chroot take root; without it the tests have the installed RabbitMQ'
mkdir -p "$home" || give_up "$home cannot be made"
# Two checkouts may ask at the same time.
exec 9>"$home/lock"
flock 9
install_debootstrap

for wanted in ${*:-4.0 4.3}; do
    case $wanted in
    4.0) prepare 4.0 trixie ;;
    4.3) prepare 4.3 sid ;;
    *) failed "$wanted" 'what is known is 4.0 and 4.3' ;;
    esac
done
printf '%s' "$failures"
for wanted in ${*:-4.0}; do
    [ -x "$home/$wanted$server" ] || exit 1
done
