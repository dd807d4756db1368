//! QEMU's command line: which machine is emulated.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use super::Options;
use super::kernel::Kernel;

/// The far node and the persistent memory, each.
const EXTRA_MIB: u32 = 1024;

/// The machine's ends of the wires to it. QEMU inherits them.
pub struct Wires {
    /// The serial console: the kernel's log.
    pub console: UnixStream,
    /// What xtask and stage2.sh tell each other.
    pub control: UnixStream,
    /// The commands' standard output.
    pub output: UnixStream,
    /// The commands' standard error.
    pub errors: UnixStream,
}

/// The command that runs the machine. The files and wires given must stay open until it has been started.
pub fn command(kernel: &Kernel, initramfs: &File, wires: &Wires, options: &Options) -> Command {
    // QEMU must die with xtask, however that ends.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    // No file of the machine's own, no window, no default device; a reset (which a panic causes) ends it.
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
    ]);
    // A thread for each processor: kernels have died so that are sound elsewhere (at breakpoints that were no longer there, once of
    // a stack that was overwritten), but with one thread for all, a machine that runs machines itself stands still.
    qemu.args(["-accel", "tcg,thread=multi"]);
    // An AMD processor, as QEMU can emulate SVM but not VMX. Named features that are off: it would warn of each.
    qemu.args([
        "-cpu",
        if options.pku {
            "EPYC-v1,+svm,+npt,+pku"
        } else {
            "EPYC-v1,+svm,+npt"
        },
    ]);
    qemu.arg("-smp").arg(options.cpus.to_string());

    let near = options.memory_mib;
    let total = near + if options.numa { EXTRA_MIB } else { 0 };
    let mut machine = "q35".to_owned();
    let mut memory = total.to_string();
    if options.dax {
        // Persistent memory takes a slot and addresses behind the rest.
        let most = total + 2 * EXTRA_MIB;
        machine += ",nvdimm=on";
        memory += &format!(",slots=2,maxmem={most}M");
        qemu.args(["-device", "nvdimm,memdev=persistent,id=nvdimm0"]);
        qemu.arg("-object").arg(format!(
            "memory-backend-ram,id=persistent,size={EXTRA_MIB}M"
        ));
    }
    if options.numa {
        // With the table that tells how slow the far node is; without it Linux takes both for the same.
        machine += ",hmat=on";
        for (id, size) in [("near", near), ("far", EXTRA_MIB)] {
            qemu.arg("-object")
                .arg(format!("memory-backend-ram,id={id},size={size}M"));
        }
        let cpus = format!(
            "node,nodeid=0,memdev=near,initiator=0,cpus=0-{}",
            options.cpus - 1
        );
        qemu.args(["-numa", &cpus]);
        qemu.args(["-numa", "node,nodeid=1,memdev=far,initiator=0"]);
        qemu.args(["-numa", "dist,src=0,dst=1,val=40"]);
        // As of a CXL expander: nanoseconds, and bytes a second.
        for (node, latency, bandwidth) in [(0, 100, "100G"), (1, 400, "20G")] {
            let of = format!("hmat-lb,initiator=0,target={node},hierarchy=memory");
            for value in [
                format!("data-type=access-latency,latency={latency}"),
                format!("data-type=access-bandwidth,bandwidth={bandwidth}"),
            ] {
                qemu.arg("-numa").arg(format!("{of},{value}"));
            }
        }
    }
    qemu.arg("-machine").arg(machine).arg("-m").arg(memory);
    if options.rdma {
        // RDMA needs a network device to lie on, not a network.
        qemu.args(["-netdev", "user,id=net0,restrict=on"]);
        qemu.args(["-device", "virtio-net-pci,netdev=net0,romfile="]);
    }

    qemu.arg("-virtfs")
        .arg(shared("host", Path::new("/"), ",readonly=on"));
    if let Some(directory) = &options.share {
        qemu.arg("-virtfs").arg(shared("share", directory, ""));
    }
    for (name, wire) in [
        ("console", &wires.console),
        ("control", &wires.control),
        ("output", &wires.output),
        ("errors", &wires.errors),
    ] {
        let fd = wire.as_raw_fd();
        qemu.arg("-chardev")
            .arg(format!("socket,id={name},fd={fd}"));
    }
    qemu.args(["-serial", "chardev:console", "-device", "virtio-serial-pci"]);
    for (number, name) in [(1, "control"), (2, "output"), (3, "errors")] {
        qemu.arg("-device").arg(format!(
            "virtserialport,nr={number},chardev={name},name={name}"
        ));
    }

    qemu.arg("-kernel").arg(&kernel.image);
    qemu.arg("-initrd")
        .arg(format!("/proc/self/fd/{}", initramfs.as_raw_fd()));
    // A panic or an oops ends the machine at once. Mitigations only cost time: there is no processor to attack. The
    // check of the timer fails on a busy machine, where interrupts come late.
    qemu.args([
        "-append",
        "console=ttyS0 panic=-1 oops=panic quiet mitigations=off no_timer_check",
    ]);
    qemu
}

fn shared(tag: &str, directory: &Path, more: &str) -> OsString {
    let mut text = OsString::from("local,path=");
    // A comma is written twice, else it ends the path.
    let path = directory.as_os_str().as_encoded_bytes();
    for (number, part) in path.split(|byte| *byte == b',').enumerate() {
        use std::os::unix::ffi::OsStrExt;
        if number > 0 {
            text.push(",,");
        }
        text.push(std::ffi::OsStr::from_bytes(part));
    }
    text.push(format!(
        ",mount_tag={tag},security_model=none,multidevs=remap{more}"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_no_separator() {
        assert_eq!(
            shared("tag", Path::new("/a,b"), ",readonly=on"),
            "local,path=/a,,b,mount_tag=tag,security_model=none,multidevs=remap,readonly=on"
        );
    }
}
