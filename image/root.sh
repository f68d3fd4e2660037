#!/bin/sh
# Lays out the image's root file system in FOLDER/root, by the scripts by which the Dockerfile does, where there is no container
# builder, and says what is in it. FOLDER/root.tar is the same.
#
#   image/root.sh FOLDER     as root, with mmdebstrap
set -eu
cd "$(dirname "$0")/.."
folder=$1
daemon=${DAEMON:-$(image/build.sh)}

rm -rf "$folder/root" "$folder/root.tar"
mkdir -p "$folder/root"
# shellcheck disable=SC2016 # $1 is the hook's own argument
mmdebstrap --quiet --variant=apt \
    --customize-hook='mkdir "$1/from"' \
    --customize-hook="copy-in '$daemon' LICENSE image/assemble.sh /from" \
    --customize-hook='chroot "$1" /from/assemble.sh /from/kube2irsa /from/LICENSE /image' \
    --customize-hook="sync-out /image '$folder/root'" \
    bookworm /dev/null \
    "deb http://deb.debian.org/debian bookworm main" \
    "deb http://deb.debian.org/debian bookworm-updates main" \
    "deb http://deb.debian.org/debian-security bookworm-security main"
tar --create --file "$folder/root.tar" --directory "$folder/root" --sort name --format gnu --owner 0 --group 0 --numeric-owner .

bytes() { stat --format %s "$1"; }
gzip --best --stdout "$folder/root.tar" > "$folder/root.tar.gz"
printf 'daemon %s, all %s, compressed %s bytes\n' \
    "$(bytes "$folder/root/usr/local/bin/kube2irsa")" "$(bytes "$folder/root.tar")" "$(bytes "$folder/root.tar.gz")"
rm "$folder/root.tar.gz"
sha256sum "$folder/root/usr/local/bin/kube2irsa" "$folder/root.tar"
