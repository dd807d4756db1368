//! Finds the snapshot behind a page of a pool.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use rustix::io::Result;

use crate::image::Image;

/// A file as the kernel names it in a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    pub major: u32,
    pub minor: u32,
    pub inode: u64,
}

/// The pools that are in use, by their files.
#[derive(Debug, Default)]
pub struct PoolIndex {
    images: RwLock<HashMap<FileKey, Weak<Image>>>,
}

impl PoolIndex {
    /// Makes an image known. It is forgotten when its last user lets go of it.
    pub(crate) fn add(&self, image: &Arc<Image>, pool: impl AsFd) -> Result<()> {
        let stat = rustix::fs::fstat(pool)?;
        let key = FileKey {
            major: rustix::fs::major(stat.st_dev),
            minor: rustix::fs::minor(stat.st_dev),
            inode: stat.st_ino,
        };
        let mut images = self.images.write().unwrap_or_else(PoisonError::into_inner);
        images.retain(|_, image| image.strong_count() > 0);
        images.insert(key, Arc::downgrade(image));
        Ok(())
    }

    /// All images that are in use.
    pub(crate) fn images(&self) -> Vec<Arc<Image>> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Arc<Image>> = Vec::new();
        for image in images.values().filter_map(Weak::upgrade) {
            // One that was stored anew has had several pools.
            if !found.iter().any(|known| Arc::ptr_eq(known, &image)) {
                found.push(image);
            }
        }
        found
    }

    pub(super) fn find(&self, key: &FileKey) -> Option<Arc<Image>> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner);
        images.get(key).and_then(Weak::upgrade)
    }
}
