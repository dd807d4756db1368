# Pid 1 of the test bed: a machine as Debian's init would leave it, as far as the tests care, then the commands.
# Settings come from xtask: HARDWARE (a list of words), KEEP (paths, one a line), MODULES, CGROUPS.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
. /run/testbed/settings

fail() {
    echo "testbed: failed: $1"
    # QEMU ends instead.
    echo b >/proc/sysrq-trigger
    sleep 60
}
has() { case " $HARDWARE " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }

# --- file systems ---
echo "testbed: Linux $(uname -r) sees this machine's files"
mount -t tmpfs -o mode=1777 none /tmp
mkdir -p /dev/shm /dev/pts /dev/mqueue /run/lock
mount -t tmpfs -o mode=1777 none /dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 none /dev/pts
mount -t mqueue none /dev/mqueue
mount -t debugfs none /sys/kernel/debug
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
    [ -e "/dev/${link%%:*}" ] || ln -s "${link#*:}" "/dev/${link%%:*}"
done
printf '%s\n' "$KEEP" | while IFS= read -r path; do
    [ -n "$path" ] && [ -d "/.testbed-all$path" ] || continue
    mkdir -p "$path" && mount --bind "/.testbed-all$path" "$path" || fail "cannot show $path"
done
umount /.testbed-all && rmdir /.testbed-all
mkdir -p "/lib/modules/$(uname -r)"
mount --bind "$MODULES" "/lib/modules/$(uname -r)" || fail "cannot show the kernel's modules"
if has share; then
    mkdir -p /run/share
    mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 share /run/share || fail 'cannot mount /run/share'
fi

# --- control groups ---
echo 'testbed: control groups'
if [ "$CGROUPS" = v2 ]; then
    mount -t cgroup2 -o nsdelegate none /sys/fs/cgroup || fail 'cannot mount the control groups'
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
    done
else
    mount -t tmpfs -o mode=755 none /sys/fs/cgroup
    tail -n +2 /proc/cgroups | while read -r controller _ _ enabled; do
        [ "$enabled" = 1 ] && mkdir "/sys/fs/cgroup/$controller" || continue
        # Newer kernels have some controllers for v2 alone.
        mount -t cgroup -o "$controller" none "/sys/fs/cgroup/$controller" 2>/dev/null ||
            rmdir "/sys/fs/cgroup/$controller"
    done
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 none /sys/fs/cgroup/unified || fail 'cannot mount the control groups'
fi

# --- the rest of what an init does ---
mount --make-rshared /
echo testbed >/proc/sys/kernel/hostname
ip link set lo up
ulimit -Hn 524288
ulimit -Sn 1024

# --- hardware ---
echo "testbed: hardware: $HARDWARE"
modprobe -a kvm-amd vhost_vsock tun && [ -c /dev/kvm ] || fail 'no /dev/kvm'
# The first machine makes the kernel rewrite branches: one in its scheduler, and those that ask whether any processor has
# switched its interrupt controller off, as each has that never ran. The end of the last one rewrites them back. The emulator sometimes
# trips over that (an oops at an int3). So one machine is there from now on, with such a processor, while nothing else runs.
/usr/bin/python3 -c '
import fcntl, os, signal
CREATE_VM, CREATE_IRQCHIP, CREATE_VCPU = 0xAE01, 0xAE60, 0xAE41
machine = fcntl.ioctl(os.open("/dev/kvm", os.O_RDWR), CREATE_VM, 0)
fcntl.ioctl(machine, CREATE_IRQCHIP, 0)
processor = fcntl.ioctl(machine, CREATE_VCPU, 0)
open("/run/testbed/machine", "w").close()
signal.pause()' &
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -e /run/testbed/machine ] && break
    sleep 1
done
if has numa; then
    [ -d /sys/devices/system/node/node1 ] || fail 'no second NUMA node'
fi
if has dax; then
    modprobe -a nfit nd_pmem &&
        ndctl create-namespace -f -e namespace0.0 -m fsdax --map=mem >/run/testbed/ndctl.log 2>&1 ||
        fail "cannot make a DAX device: $(cat /run/testbed/ndctl.log)"
    mkdir -p /mnt/dax
    mkfs.ext4 -q -b 4096 /dev/pmem0 && mount -o dax=always /dev/pmem0 /mnt/dax ||
        fail 'cannot make a DAX file system'
fi
if has rdma; then
    modprobe -a virtio_net rdma_rxe ib_uverbs rdma_ucm
    # The interface may still be coming.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -d /sys/class/net/eth0 ] && break
        sleep 1
    done
    ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up &&
        rdma link add rxe0 type rxe netdev eth0 || fail 'cannot make an RDMA device'
fi

# --- the commands ---
# The ports can be opened once only, and programs open /dev/stdout again: so there are pipes between.
wire() {
    grep -lx "$1" /sys/class/virtio-ports/*/name | while IFS=/ read -r _ _ _ _ port _; do echo "/dev/$port"; done
}
control=$(wire control)
[ -c "$control" ] || fail 'no wire to xtask'
exec 3<>"$control"
mkfifo /run/testbed/out /run/testbed/err
cat /run/testbed/out >"$(wire output)" &
out=$!
cat /run/testbed/err >"$(wire errors)" &
err=$!
exec 4>/run/testbed/out 5>/run/testbed/err
# When it is taking too long, xtask asks what hangs.
while read -r question; do
    case $question in
    processes) ps -o pid,ppid,stat,wchan:20,args --ppid 2 --pid 2 --deselect ;;
    *) echo "$question" >/proc/sysrq-trigger ;;
    esac
done <&3 4>&- 5>&- &

echo 'testbed: ready'
echo booted >&3
status=0
for command in /run/testbed/commands/*; do
    sh "$command" </dev/null >&4 2>&5 3>&- 4>&- 5>&-
    status=$?
    [ "$status" = 0 ] || break
done
exec 4>&- 5>&-
# A process that a command left behind may hold the pipes for ever.
(
    sleep 5
    kill "$out" "$err"
) 2>/dev/null &
wait "$out" "$err"
sync
echo "exit $status" >&3
# xtask ends the machine.
sleep 3600
