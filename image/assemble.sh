#!/bin/sh
# Lays out the image's root file system: the daemon, the commands by which it writes rules, and what those need of the Debian
# system in which this runs. No shell and no package manager come along.
#
#   image/assemble.sh DAEMON LICENSE FOLDER     as root, in a Debian system that is thrown away
#
# All files get the time SOURCE_DATE_EPOCH (seconds; 0 by default): the same files are the same archive.
set -eu
daemon=$1 licence=$2 root=$3

export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install -y --no-install-recommends ca-certificates iptables nftables > /dev/null

# A file at its place, and what it leads to where it is a link.
take() {
    for path in "$@"; do
        path=$(realpath "$(dirname "$path")")/$(basename "$path")
        cp -a --parents "$path" "$root"
        if [ -L "$path" ]; then cp -a --parents "$(realpath "$path")" "$root"; fi
    done
}

mkdir -p "$root/dev" "$root/proc" "$root/run" "$root/sys" "$root/usr/sbin"
for link in /lib /lib64 /sbin; do
    if [ -L "$link" ]; then cp -a "$link" "$root"; fi
done
install -D "$daemon" "$root/usr/local/bin/kube2irsa"
# For STS, where the daemon is not told of others.
take /etc/ssl/certs/ca-certificates.crt

# Both variants of iptables: the daemon takes the one that the node's other programs use. What has neither in its name is
# Debian's default, of nftables.
commands="/usr/sbin/nft /usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi"
for family in iptables ip6tables; do
    for suffix in "" -restore; do
        commands="$commands /usr/sbin/$family-nft$suffix /usr/sbin/$family-legacy$suffix"
        ln -s "$family-nft$suffix" "$root/usr/sbin/$family$suffix"
    done
done
# All of them: a chain of somebody else's that uses one which is not there cannot be listed.
extensions=$(find /usr/lib/*/xtables -name 'libxt_*.so' -o -name 'libipt_*.so' -o -name 'libip6t_*.so')
# shellcheck disable=SC2046,SC2086 # none of these names has a space in it
take $commands $extensions $(ldd $commands $extensions | awk '$2 == "=>" { print $3 } NF == 2 && /^\t\// { print $1 }' | sort -u)

# Which packages that is, where scanners look for it, and under which licences.
mkdir -p "$root/var/lib/dpkg/status.d"
cd "$root"
# Some packages name their files by where they were before /lib became a link.
owners=$(for file in $(find usr/sbin usr/lib -type f -not -path '*/xtables/*'); do
    dpkg -S "/$file" 2> /dev/null || dpkg -S "/${file#usr/}" || exit 1
done)
packages=$(echo "$owners" | cut -d : -f 1 | sort -u)
for package in ca-certificates $packages; do
    dpkg-query --status "$package" > "var/lib/dpkg/status.d/$package"
    install -D -m 644 "/usr/share/doc/$package/copyright" "usr/share/doc/$package/copyright"
done
# shellcheck disable=SC2046
take $(grep -Eoh '/usr/share/common-licenses/[A-Za-z0-9.-]*[A-Za-z0-9]' usr/share/doc/*/copyright | sort -u)
install -D -m 644 "$licence" usr/share/doc/kube2irsa/LICENSE

find . -exec touch --no-dereference --date "@${SOURCE_DATE_EPOCH:-0}" {} +
