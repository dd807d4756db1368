#!/bin/busybox sh
# The first program on the test bed, from its initramfs: mounts the host's files and goes on there, in stage2.sh.
export PATH=/bin
/bin/busybox mkdir -p /dev /proc /sys /host /changes /root
/bin/busybox --install -s /bin

fail() {
    echo "testbed: failed: $1"
    reboot -f
}

mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev || fail 'cannot mount /dev'
# In an order in which each finds those that it needs.
while read -r module; do
    insmod "/modules/$module" || fail "cannot load the kernel module $module"
done </modules/order

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host ||
    fail "cannot mount the host's files"
mount -t tmpfs -o mode=755 none /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work none /root ||
    fail "cannot mount an overlay on the host's files"

mkdir -p /root/proc /root/sys /root/dev /root/run /root/tmp
# A checkout may lie below a directory that gets a file system of its own; stage2.sh fetches it from here.
mkdir -p /root/.testbed-all
mount --bind /root /root/.testbed-all
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
mount -t tmpfs -o mode=755 none /root/run
cp -r /testbed /root/run/testbed
exec switch_root /root /bin/sh /run/testbed/stage2.sh
