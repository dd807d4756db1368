//! The microVMs of a node in this process, or the sentence that says why there are none.

use std::env;

use rouse_node::boot::BootError;
use rouse_node::boot::microvm::{MicroVmConfig, MicroVms};
use rouse_process::launcher::Launcher;

use super::StateDir;
use crate::settings::ServeConfig;

/// Makes ready what all machines have.
pub fn start(
    config: &ServeConfig,
    state_dir: &StateDir,
    launcher: &Launcher,
) -> Result<MicroVms, BootError> {
    // First of all: where none can be, no setting helps.
    rouse_vmm::host::usable().map_err(|error| BootError::new(error.to_string()))?;
    let (Some(kernel), Some(root)) = (&config.node.microvm_kernel, &config.node.microvm_root)
    else {
        return Err(BootError::new(
            "the node was not told of a kernel and a root for microVMs (microvm_kernel, microvm_root): use `process` sandboxes",
        ));
    };
    let program = env::current_exe()
        .map_err(|error| BootError::new(format!("the program of VMMs cannot be found: {error}")))?;
    let made = MicroVms::new(MicroVmConfig {
        kernel: kernel.clone(),
        root: root.clone(),
        runtime: state_dir.path().join("runtime"),
        launcher: launcher.clone(),
        images: state_dir.path().join("microvm-images"),
        program,
        first_user: config.first_microvm_user(),
        ready_vmms: config.ready_microvms,
    });
    made.map_err(|error| {
        let error = BootError::from(error);
        tracing::warn!(%error, "there are no microVMs");
        error
    })
}
