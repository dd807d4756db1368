//! Who may be at work in a store at the same time.
//!
//! Reading and writing share the lock. Collecting holds it alone, for two reasons:
//! - a writer that found an equal chunk in a pack refers to it only when its page map is on disk:
//!   until then nobody else can know that the pack is still needed;
//! - a file with a temporary name is rubbish only if nobody is writing it.
//!
//! Who stores a snapshot anew holds its directory besides, from reading it on: of two, each would take what it has read for
//! what is there, and leave the other's page map behind.
//!
//! The kernel gives the lock back when a process ends, however it ends.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::StoreError;
use super::error::Context;
use super::layout::lock_file;

/// A lock, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

impl Lock {
    pub fn shared(root: &Path) -> Result<Self, StoreError> {
        Self::take(root, FlockOperation::LockShared)
    }

    pub fn exclusive(root: &Path) -> Result<Self, StoreError> {
        Self::take(root, FlockOperation::LockExclusive)
    }

    /// The turn to store a snapshot anew. To be taken before the lock on the store.
    pub fn of_snapshot(dir: &Path) -> Result<Self, StoreError> {
        let file = File::open(dir).context("open", dir)?;
        rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .context("lock", dir)?;
        Ok(Self { _file: file })
    }

    /// Each opens the file anew, so that threads of one process exclude each other too.
    fn take(root: &Path, operation: FlockOperation) -> Result<Self, StoreError> {
        let path = lock_file(root);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .context("open", &path)?;
        rustix::io::retry_on_intr(|| flock(&file, operation)).context("lock", &path)?;
        Ok(Self { _file: file })
    }
}
