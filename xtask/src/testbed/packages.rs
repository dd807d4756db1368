//! The Debian packages that the test bed uses: QEMU and what makes the initramfs here, tools for the hardware there.

use std::path::Path;

use super::{Options, TestbedError};
use crate::machine;

/// A file that tells that a package is there, and the package. Files, as tools of hardware that is not here fail.
type Package = (&'static str, &'static str);

const ALWAYS: &[Package] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    // The dynamic busybox has the same path: its documentation tells them apart.
    ("/usr/share/doc/busybox-static", "busybox-static"),
    ("/sbin/depmod", "kmod"),
    ("/usr/bin/xz", "xz-utils"),
    ("/usr/bin/setpriv", "util-linux"),
    ("/sbin/ip", "iproute2"),
    ("/bin/ps", "procps"),
];
const NUMA: &[Package] = &[("/usr/bin/numactl", "numactl")];
const DAX: &[Package] = &[
    ("/usr/bin/ndctl", "ndctl"),
    ("/sbin/mkfs.ext4", "e2fsprogs"),
];
const RDMA: &[Package] = &[
    ("/etc/libibverbs.d/rxe.driver", "ibverbs-providers"),
    ("/usr/bin/ibv_devinfo", "ibverbs-utils"),
    ("/usr/bin/ib_read_lat", "perftest"),
];

/// Installs what is missing.
pub fn install(options: &Options) -> Result<(), TestbedError> {
    let wanted = [
        (true, ALWAYS),
        (options.numa, NUMA),
        (options.dax, DAX),
        (options.rdma, RDMA),
    ];
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter(|(asked, _)| *asked)
        .flat_map(|(_, packages)| packages)
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    machine::install(&missing).map_err(TestbedError::Packages)
}
