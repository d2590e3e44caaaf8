#!/bin/busybox sh
# The first program of an emulated board, in its initial RAM disk: mounts the image, starts an ssh server and says so
# on the console. The image is read-only; what is written goes to memory.
busybox=/bin/busybox

give_up() {
    echo "board: $1"
    $busybox poweroff -f
}

# Modules in the order in which they need each other; what a kernel has built in is not among the files.
for name in virtio_ring virtio virtio_mmio virtio_blk failover net_failover virtio_net; do
    [ ! -f /modules/$name.ko ] || $busybox insmod /modules/$name.ko || give_up "cannot load $name"
done
$busybox mount -t devtmpfs dev /dev
$busybox mount -t ext4 -o ro /dev/vda /image || give_up "cannot mount the image"
$busybox mount -t proc proc /image/proc
$busybox mount -t sysfs sys /image/sys
$busybox mount -t devtmpfs dev /image/dev
$busybox mkdir -p /image/dev/pts /image/dev/shm
$busybox mount -t devpts pts /image/dev/pts
for folder in dev/shm tmp run; do
    $busybox mount -t tmpfs -o mode=1777 "$folder" "/image/$folder"
done
$busybox mount -t tmpfs -o mode=700 home /image/root
$busybox mkdir -m 700 /image/root/.ssh
$busybox cp /authorized_keys /image/root/.ssh/

$busybox ip link set lo up
$busybox ip address add 10.0.2.15/24 dev eth0
$busybox ip link set eth0 up || give_up "there is no network"

key=$($busybox chroot /image dropbearkey -t ed25519 -f /run/host_key | $busybox grep '^ssh-')
$busybox chroot /image dropbear -r /run/host_key -s -E || give_up "the ssh server does not start"
echo "board: ready $key"
while :; do $busybox sleep 3600; done
