//! What a template of machines depends on, beside what is started in it.

use std::path::Path;

use rouse_sandbox::Limits;
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::snapshot::this_host;

use super::{Inner, machine_memory, processors};
use crate::boot::BootError;

impl Inner {
    /// Digests of kernel, initramfs, root and clients, the size of the machine, and the host that it can be restored on. Reads all these
    /// files, once.
    pub(super) fn template_ground(&self, limits: &Limits) -> Result<Vec<u8>, BootError> {
        let failed = |error: &dyn std::error::Error| BootError::from_error(error);
        let file = |name: &str, image: &Path| Disk {
            name: name.to_owned(),
            image: image.to_owned(),
        };
        let mut files = vec![file("/", &self.root), file("/var/runtime", &self.runtime)];
        for (name, of_kernel) in [
            ("kernel", &self.kernel.image),
            ("initramfs", &self.kernel.initramfs),
        ] {
            let path = of_kernel.path();
            let path = path.ok_or_else(|| BootError::new("the kernel has no name"))?;
            files.push(file(name, path));
        }
        let seals = self.seals.of(&files).map_err(|error| failed(&error))?;
        let kvm = rouse_vmm::host::usable().map_err(|error| failed(&error))?;
        let host = this_host(&kvm).map_err(|error| failed(&error))?;
        let size = (machine_memory(limits)?.bytes(), processors(limits));
        let ground = (seals, size, host.kernel, host.kvm, host.cpu);
        serde_json::to_vec(&ground).map_err(|error| failed(&error))
    }
}
