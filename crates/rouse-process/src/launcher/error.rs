//! Why the launcher could not do what was asked.

use std::io;
use std::path::PathBuf;

use rouse_pool::FarError;
use rouse_pool::StoreError;
use rouse_pool::keeper::PagerError;
use rouse_pool::key::KeyError;
use rouse_sandbox::{SandboxError, SpawnerError};

use crate::checkpoint::CheckpointError;
use crate::clones::CloneError;
use crate::image::ImageError;
use crate::plan::PlanError;

/// Why the launcher could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The spawner did not start.
    #[error("the spawner did not start")]
    Spawner(#[from] SpawnerError),
    /// This host lets no sandbox be made.
    #[error("no sandbox can be made on this host")]
    Sandbox(#[from] SandboxError),
    /// A background thread did not start.
    #[error("a background thread did not start")]
    Thread(#[source] io::Error),
    /// The record of functions' clocks cannot be read or written.
    #[error("the clock record {0} cannot be used")]
    Clock(PathBuf, #[source] io::Error),
    /// The node has no key, or one that cannot be used.
    #[error("the node has no key")]
    Key(#[from] KeyError),
    /// Snapshots cannot be stored.
    #[error("the snapshot store cannot be used")]
    Store(#[from] StoreError),
    /// What programs need to know could not be found out.
    #[error("the node cannot find out about itself")]
    Environment(#[from] PlanError),
    /// An empty directory could not be made, over which functions' code is lent.
    #[error("no empty directory could be made beside the snapshots")]
    Empty(#[source] io::Error),
    /// The waiting room could not be stored.
    #[error("the waiting room of blank processes cannot be stored")]
    Room(#[from] ImageError),
    /// The system-call filter could not be compiled.
    #[error("the system-call filter could not be compiled: {0}")]
    Seccomp(String),
}

/// Why an instance could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// An instance that was to be made ahead did not get so far.
    #[error("the instance could not be parked: {0}")]
    NotParked(String),
    /// No sandbox could be made.
    #[error("no sandbox could be made")]
    Sandbox(#[from] SandboxError),
    /// No clone could be made.
    #[error("no clone of the template could be made")]
    Clone(#[from] CloneError),
    /// The snapshot does not fit to its files any more.
    #[error("the snapshot cannot be used")]
    Image(#[from] ImageError),
    /// Templates need all pages in memory.
    #[error("the snapshot is not in memory")]
    NotResident,
    /// A channel to the instance could not be made or used.
    #[error("{0}")]
    Channel(&'static str, #[source] io::Error),
    /// A background task did not come to its end.
    #[error("a background task was cancelled")]
    Cancelled,
}

impl LaunchError {
    /// Was something killed, or short, that the instance needs? That says nothing about the snapshot.
    pub fn is_from_outside(&self) -> bool {
        match self {
            Self::Sandbox(_) | Self::NotResident | Self::Channel(..) | Self::Cancelled => true,
            Self::Clone(error) => !matches!(error, CloneError::NotReady { .. }),
            Self::NotParked(_) | Self::Image(_) => false,
        }
    }
}

/// Why a snapshot could not be taken, or not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The process could not be stopped and read.
    #[error("the function could not be checkpointed")]
    Checkpoint(#[from] CheckpointError),
    /// It could not be written or read.
    #[error("the snapshot could not be stored or read")]
    Store(#[from] StoreError),
    /// What was read makes no sense.
    #[error("the snapshot makes no sense")]
    Invalid(#[from] rouse_snapshot::validate::Invalid),
    /// The pager cannot bring its pages in.
    #[error("the snapshot's pages cannot be brought in")]
    Pager(#[from] PagerError),
    /// They cannot be brought to far memory.
    #[error("the snapshot's pages cannot be brought to far memory")]
    Far(#[from] FarError),
    /// The time that it knows could not be remembered.
    #[error("the snapshot's time could not be recorded")]
    Clock(#[source] io::Error),
    /// It cannot be used on this host, or not any more.
    #[error("the snapshot cannot be used")]
    Image(#[from] ImageError),
    /// It may know of a tenant, and so must not be shared by all.
    #[error("only what was started from nothing, without a function's code, can be a template")]
    NoTemplate,
    /// The instance had no known process, or ended.
    #[error("the instance has ended")]
    Ended,
    /// A background task did not come to its end.
    #[error("a background task was cancelled")]
    Cancelled,
}
