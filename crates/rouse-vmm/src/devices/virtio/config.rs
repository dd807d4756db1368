//! Which devices a machine has.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::balloon::{Forget, FreePages};
use super::block::DiskError;
use super::vsock::Dialer;

/// The devices of a machine, in the order in which the guest finds them.
#[derive(Clone)]
pub struct DeviceConfig {
    /// Its disks.
    pub disks: Vec<Disk>,
    /// How it talks to the node.
    pub vsock: Option<Vsock>,
    /// Whether it gives memory back that it does not need, and to whom.
    pub balloon: Option<Arc<dyn FreePages>>,
}

impl Default for DeviceConfig {
    /// No disks, nobody to talk to, and free memory is forgotten.
    fn default() -> Self {
        Self {
            disks: Vec::new(),
            vsock: None,
            balloon: Some(Arc::new(Forget)),
        }
    }
}

impl DeviceConfig {
    /// Opens what the devices need.
    ///
    /// # Errors
    /// If a disk's image cannot be opened.
    pub fn open(&self) -> Result<OpenDevices, DiskError> {
        let disks = self.disks.iter().map(|disk| {
            Ok(OpenDisk {
                name: disk.name.clone(),
                image: disk.open()?,
            })
        });
        Ok(OpenDevices {
            disks: disks.collect::<Result<_, DiskError>>()?,
            vsock: (self.vsock.as_ref()).map(|vsock| Dialer::Directory(vsock.directory.clone())),
            balloon: self.balloon.clone(),
        })
    }
}

impl fmt::Debug for DeviceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceConfig")
            .field("disks", &self.disks)
            .field("vsock", &self.vsock)
            .field("balloon", &self.balloon.is_some())
            .finish()
    }
}

/// A disk that can only be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// By this the guest knows what it is for. At most 20 bytes.
    pub name: String,
    /// The file with its contents. It must not change while a machine has it.
    pub image: PathBuf,
}

impl Disk {
    /// The file, opened for one machine: machines must not share a position in it.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> Result<File, DiskError> {
        File::open(&self.image).map_err(|source| DiskError::Open {
            path: self.image.clone(),
            source,
        })
    }
}

/// The same devices, with what they need open. A VMM in its jail is given this, because it can open nothing itself.
pub struct OpenDevices {
    /// Its disks.
    pub disks: Vec<OpenDisk>,
    /// How its connections reach the node.
    pub vsock: Option<Dialer>,
    /// As in [`DeviceConfig`].
    pub balloon: Option<Arc<dyn FreePages>>,
}

/// A disk whose image is open.
#[derive(Debug)]
pub struct OpenDisk {
    /// As in [`Disk`].
    pub name: String,
    /// No other machine uses its position.
    pub image: File,
}

/// Where a machine's connections lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vsock {
    /// When the guest connects to port N, this side connects to the Unix socket N in this directory. A port without a
    /// socket refuses connections.
    pub directory: PathBuf,
}
