//! The node's directory: its lock, and the file that says where the node answers.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::client::endpoint::Endpoint;

/// The state directory of this node, and of no other while this lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// The kernel lets go of the lock when the process ends, however it ends.
    _lock: File,
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    /// It cannot be made.
    #[error("cannot make {}", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another node has it.
    #[error("another node runs on {}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The lock cannot be taken.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The endpoint cannot be written.
    #[error("cannot write {}", path.display())]
    Publish {
        /// The endpoint's file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StateDir {
    /// Makes the directory if there is none, and takes its lock.
    pub fn lock(path: &Path) -> Result<Self, StateDirError> {
        // Functions' code and environment are nobody else's business.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|source| StateDirError::Create {
                path: path.to_owned(),
                source,
            })?;
        let file = path.join("lock");
        let failed = |source| StateDirError::Lock {
            path: file.clone(),
            source,
        };
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self {
                path: path.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(StateDirError::Locked {
                path: path.to_owned(),
            }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes where `service` answers, whole or not at all: a reader that sees the file can connect.
    pub fn publish(&self, service: Service, endpoint: &Endpoint) -> Result<(), StateDirError> {
        let path = self.path.join(service.file());
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
            writeln!(file, "{endpoint}")?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(|source| StateDirError::Publish {
            path: path.clone(),
            source,
        })
    }

    /// Removes the file that says where `service` answers.
    pub fn withdraw(&self, service: Service) {
        if let Err(error) = fs::remove_file(self.path.join(service.file())) {
            tracing::warn!(%error, "the endpoint's file could not be removed");
        }
    }
}

/// What a node serves, each at an address of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The API.
    Api,
    /// Metrics and health, if they have an address of their own.
    Metrics,
}

impl Service {
    fn file(self) -> &'static str {
        match self {
            Service::Api => "endpoint",
            Service::Metrics => "metrics-endpoint",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_node_for_one_directory() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("state");
        let first = StateDir::lock(&path).expect("first");
        assert!(matches!(
            StateDir::lock(&path),
            Err(StateDirError::Locked { .. })
        ));
        drop(first);
        StateDir::lock(&path).expect("after the first has ended");
    }

    #[test]
    fn the_endpoint_is_published_and_withdrawn() {
        let dir = tempfile::tempdir().expect("tempdir");
        let state = StateDir::lock(dir.path()).expect("lock");
        let endpoint = "http://127.0.0.1:9000".parse().expect("endpoint");
        state.publish(Service::Api, &endpoint).expect("publish");
        assert_eq!(
            fs::read_to_string(dir.path().join("endpoint")).expect("read"),
            "http://127.0.0.1:9000\n"
        );
        state.withdraw(Service::Api);
        let left: Vec<_> = fs::read_dir(dir.path())
            .expect("list")
            .map(|entry| entry.expect("entry").file_name())
            .collect();
        assert_eq!(left, ["lock"]);
    }
}
