//! Sandboxes that are virtual machines: a jailed VMM process for each instance.
//!
//! ```text
//!  node                                  VMM (jailed)                      guest
//!  MicroVms::cold ─ zygote ────────────> kernel, disks, memory ──────────> rouse-guest
//!  supervisor.rs <── connections ─────── each with its port, handed out
//!    1024 agent  ─ ready, start ─────────────────────────────────────────> the runtime
//!    9001 the runtime API  ─> runtime_api/server.rs
//!    1025 what it prints   ─> a pipe ─> logs/capture.rs
//! ```
//!
//! | what | where |
//! |---|---|
//! | what the node asks of this kind, and of its snapshots | `kind.rs`, `loaded.rs` |
//! | a VMM process, started ahead, with a user and limits | `ready.rs`, `users.rs`, `prepare.rs` |
//! | a machine that boots, one that is a copy | `cold.rs`, `restore.rs` |
//! | its threads in the node, what comes out of it, what is known of it, and what the engine has of it | `supervisor.rs`, `life.rs`, `state.rs`, `live.rs` |
//! | a snapshot: written and read, loaded, described | `snapshot.rs`, `image.rs`, `report.rs` |
//! | a snapshot in memory, of a machine that goes on | `branch.rs` |
//! | where its pages are | `placement.rs` |
//! | what calls touch of it | `learning.rs` |
//! | what a template of machines depends on | `template.rs` |
//! | disks: the package as an image, and digests of all; what the guest of a snapshot knew | `packages.rs`, `seals.rs`, `known.rs` |

mod branch;
mod cold;
mod image;
mod kind;
mod known;
mod learning;
mod life;
mod live;
mod loaded;
mod packages;
mod placement;
mod prepare;
mod ready;
mod report;
mod restore;
mod seals;
mod snapshot;
mod state;
mod supervisor;
mod template;
mod users;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rouse_process::launcher::Launcher;
use rouse_sandbox::Limits;
use rouse_vmm::image::ImageError;
use rouse_vmm::kernel::{Kernel, OpenError};
use rouse_vmm::{MemorySize, host};

use super::{ApiListener, BootError, Booted};
pub(super) use kind::is_machine;
use packages::Packages;
use ready::ReadyVmms;
use seals::Seals;
use users::Users;

/// Whose chunks machines' snapshots are: as those of processes.
const TENANT: &str = "default";
/// The disk with a function's package, by the place that it belongs to.
const PACKAGE: &str = "/var/task";
/// What a guest's kernel and its agent need beside the function, MiB.
const GUEST_MIB: u32 = 128;
/// Milliseconds of processor time a second that one processor of a machine gives.
const MILLIS_PER_CPU: u32 = 1000;

/// What machines are made of.
#[derive(Debug, Clone)]
pub struct MicroVmConfig {
    /// The directory that `rouse kernel import` has made.
    pub kernel: PathBuf,
    /// The image that `rouse image build` has made.
    pub root: PathBuf,
    /// The runtimes' clients, which a function sees as `/var/runtime`.
    pub runtime: PathBuf,
    /// Has the store, and the pager.
    pub launcher: Launcher,
    /// Where images of packages are kept. What is there is removed.
    pub images: PathBuf,
    /// The program of VMM processes: it must call `rouse_vmm::zygote::vmm_main` when its first argument is `vmm`.
    pub program: PathBuf,
    /// The first of [`USERS`](MicroVmConfig::USERS) users and groups of the host that VMMs run as.
    pub first_user: u32,
    /// VMMs that are started ahead.
    pub ready_vmms: usize,
}

impl MicroVmConfig {
    /// Users and groups that VMMs may have: so many machines there can be at a time.
    pub const USERS: u32 = 4096;
}

/// There are no microVMs.
#[derive(Debug, thiserror::Error)]
pub enum MicroVmError {
    /// Not on this host.
    #[error(transparent)]
    Host(#[from] host::Unusable),
    /// The kernel was not prepared.
    #[error("there is no prepared kernel (`rouse kernel import`)")]
    Kernel(#[source] OpenError),
    /// The root was not.
    #[error("there is no image of a root (`rouse image build`) at {}", path.display())]
    Root {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory of images.
    #[error("{} cannot be used", path.display())]
    Images {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The clients' image.
    #[error("the image of the runtimes' clients cannot be made")]
    Runtime(#[source] ImageError),
}

impl From<MicroVmError> for BootError {
    fn from(error: MicroVmError) -> Self {
        BootError::from_error(&error)
    }
}

/// The kind of sandboxes.
#[derive(Debug, Clone)]
pub struct MicroVms(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: Kernel,
    root: PathBuf,
    runtime: PathBuf,
    packages: Packages,
    ready: Arc<ReadyVmms>,
    launcher: Launcher,
    seals: Seals,
}

impl MicroVms {
    /// Looks whether there can be machines here, and makes ready what all of them have.
    ///
    /// # Errors
    /// Why there can be none.
    pub fn new(config: MicroVmConfig) -> Result<Self, MicroVmError> {
        host::usable()?;
        let kernel = Kernel::open(&config.kernel).map_err(MicroVmError::Kernel)?;
        std::fs::File::open(&config.root).map_err(|source| MicroVmError::Root {
            path: config.root.clone(),
            source,
        })?;
        let packages = Packages::open(&config.images).map_err(|source| MicroVmError::Images {
            path: config.images.clone(),
            source,
        })?;
        let runtime = config.images.join("runtime.erofs");
        rouse_vmm::image::build(&config.runtime, &runtime).map_err(MicroVmError::Runtime)?;
        let users = Users::new(config.first_user, MicroVmConfig::USERS);
        Ok(Self(Arc::new(Inner {
            kernel,
            root: config.root,
            runtime,
            packages,
            ready: ReadyVmms::new(config.program, users, config.ready_vmms),
            launcher: config.launcher,
            seals: Seals::default(),
        })))
    }
}

/// Memory of the machine of a function.
fn memory(memory_mib: u32) -> Result<MemorySize, BootError> {
    MemorySize::mib(memory_mib.saturating_add(GUEST_MIB)).map_err(|error| {
        BootError::new(format!(
            "its {memory_mib} MiB and the {GUEST_MIB} MiB of a guest's kernel do not fit into a machine ({error}): use `process` sandboxes"
        ))
    })
}

/// Memory of the machine of an instance with these limits.
fn machine_memory(limits: &Limits) -> Result<MemorySize, BootError> {
    memory(u32::try_from(limits.memory >> 20).unwrap_or(u32::MAX))
}

/// Its processors.
fn processors(limits: &Limits) -> u8 {
    let cpus = limits.cpu_millis.div_ceil(MILLIS_PER_CPU);
    u8::try_from(cpus.clamp(1, 32)).unwrap_or(1)
}
