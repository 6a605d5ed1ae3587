#!/bin/sh
# The first program of a guest: mounts what a host has, loads the modules, and runs /script. Lines that begin with @@ are
# for who started the machine.
export PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin HOME=/root TERM=dumb
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tracefs tracefs /sys/kernel/tracing
mount -t securityfs securityfs /sys/kernel/security
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "@@booted $(uname -r)"
while read -r module; do
    insmod "/modules/$module" || echo "@@module-refused $module"
done </modules/order
ip link set lo up
. /script
echo "@@done"
poweroff -f
