#!/bin/bash
# Installs the clients and servers that the tests drive, each only where it is absent. As root, or where sudo works.
# What Debian has comes from apt; moto (S3), Azurite (Azure) and the guest's kernel and clients are put under
# target/test-tools.
set -euo pipefail

cd "$(dirname "$0")/.."
tools=target/test-tools
python=/usr/bin/python3 # libnbd's bindings are Debian's, so the interpreter is too
moto=5.2.2
azurite=3.35.0
# What the guest consists of beside this machine's programs. Unpacked only: a kernel that is installed is booted next.
guest=(open-iscsi libopeniscsiusr libisns0 libkmod2 nbd-client libnl-3-200 libnl-genl-3-200 busybox-static)

# A newer qemu from elsewhere may have its initiator nowhere: the distribution's packages fit each other.
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-stable}")

has_command() { command -v "$1" >/dev/null; }
has_sbin() { has_command "$1" || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
has_sqlite() { [ -x "$python" ] && "$python" -c 'import sqlite3' 2>/dev/null; }
has_prometheus() { [ -x "$python" ] && "$python" -c 'import prometheus_client' 2>/dev/null; }
has_libnbd() { [ -x "$python" ] && "$python" -c 'import nbd' 2>/dev/null; }
has_qemu() { has_command qemu-img && has_command qemu-io && has_command qemu-nbd; }
# Where its module is absent it says so before it looks for anybody.
has_qemu_iscsi() {
    local said
    has_qemu || return 1
    said=$(qemu-img info iscsi://127.0.0.1:1/iqn.2000-01.absent:disk/0 2>&1) || true
    [[ ! $said =~ (load module|Unknown protocol) ]]
}
has_venv() { [ -x "$python" ] && "$python" -c 'import venv, ensurepip' 2>/dev/null; }
has_fio() { has_command fio && fio --enghelp 2>/dev/null | grep -qw nbd; }
# A virtual environment names its own place, so that one whose folder was moved does not run.
has_moto() { "$tools/venv/bin/moto_server" --help >/dev/null 2>&1; }
has_azurite() { [ -x "$tools/node_modules/.bin/azurite-blob" ]; }
has_guest() { [ -e "$tools/guest/vmlinuz" ]; }

# Prints the Debian packages whose part is absent.
absent() {
    has_command nbdkit || echo nbdkit
    { has_command nbdinfo && has_command nbdcopy && has_command nbdfuse; } || echo libnbd-bin
    has_libnbd || echo python3-libnbd
    has_prometheus || echo python3-prometheus-client
    has_sqlite || echo libpython3-stdlib
    { has_sbin mkfs.ext4 && has_sbin e2fsck; } || echo e2fsprogs
    { has_sbin losetup && has_command mount; } || echo mount
    has_command prlimit || echo util-linux
    has_fio || echo fio
    { has_command iscsi-test-cu && has_command iscsi-inq && has_command iscsi-ls; } || echo libiscsi-bin
    { has_sbin tgtd && has_sbin tgtadm; } || echo tgt
    has_qemu_iscsi || printf '%s\n' "qemu-utils/$codename" "qemu-block-extra/$codename"
    # With what it depends on: a preference for a newer one would hold those back.
    has_command qemu-system-x86_64 || printf '%s\n' qemu-system-{x86,common,data}/"$codename"
    has_command node || echo nodejs
    has_command npm || echo npm
    has_venv || echo python3-venv
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

mapfile -t packages < <(absent)
if [ ${#packages[@]} -gt 0 ]; then
    echo "installing: ${packages[*]}"
    as_root apt-get update -q
    install=(env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends --allow-downgrades)
    as_root "${install[@]}" "${packages[@]}" || as_root "${install[@]}" "${packages[@]%%/*}"
    # Its service has no targets and listens to everybody; the tests start their own.
    if [[ " ${packages[*]} " == *" tgt "* ]] && [ -d /run/systemd/system ]; then
        as_root systemctl disable --now tgt
    fi
fi

mkdir -p "$tools"
if ! has_moto; then
    echo "installing: moto $moto"
    "$python" -m venv --clear "$tools/venv"
    "$tools/venv/bin/pip" install --quiet --disable-pip-version-check "moto[server]==$moto"
fi
if ! has_azurite; then
    echo "installing: azurite $azurite"
    npm install --prefix "$tools" --no-audit --no-fund --loglevel=error "azurite@$azurite"
fi

if ! has_guest; then
    echo "installing: the guest"
    as_root apt-get update -q
    # Its name has the version; this one has what virtual machines have, and so is small.
    kernel=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    rm -rf "$tools/guest"
    mkdir -p "$tools/guest"
    (cd "$tools/guest" && apt-get download -q "$kernel" "${guest[@]}")
    for package in "$tools/guest"/*.deb; do
        dpkg -x "$package" "$tools/guest"
        rm "$package"
    done
    # The last: without it nothing of the rest counts.
    mv "$tools/guest"/boot/vmlinuz-* "$tools/guest/vmlinuz"
fi

mapfile -t packages < <(absent)
has_moto || packages+=(moto)
has_azurite || packages+=(azurite)
has_guest || packages+=("the guest")
if [ ${#packages[@]} -gt 0 ]; then
    echo "tests/setup.sh: still absent: ${packages[*]}" >&2
    exit 1
fi
