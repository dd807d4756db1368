//! What tells that a machine's disks are those that its guest knew when it was written down.
//!
//! A guest keeps parts of its disks in memory. With others they would be mixed, silently. So their digests lie beside the snapshot
//! (`known.rs`), and a copy is started only with disks that have the same. A template knows no package: that disk has no seal there.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rouse_vmm::devices::virtio::Disk;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes that are read at a time.
const PIECE: usize = 256 << 10;

/// A disk's place, and the digest of its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seal {
    place: String,
    sha256: String,
}

/// Digests of images; each file is read once.
#[derive(Debug, Default)]
pub struct Seals(Mutex<HashMap<PathBuf, (Version, String)>>);

/// What changes with a file's contents: device, inode, size, and when it was changed, by the clock of the kernel.
type Version = (u64, u64, u64, i64, i64);

fn version(file: &File) -> io::Result<Version> {
    let m = file.metadata()?;
    Ok((m.dev(), m.ino(), m.size(), m.ctime(), m.ctime_nsec()))
}

impl Seal {
    /// Which disk it is of.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// By what a snapshot refers to the image. Nothing, if this is no digest.
    pub fn identity(&self) -> Option<[u8; 32]> {
        let mut identity = [0; 32];
        if self.sha256.len() != 2 * identity.len() {
            return None;
        }
        for (at, byte) in identity.iter_mut().enumerate() {
            *byte = u8::from_str_radix(self.sha256.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(identity)
    }
}

impl Seals {
    /// Of all disks.
    pub fn of(&self, disks: &[Disk]) -> io::Result<Vec<Seal>> {
        let seal = |disk: &Disk| -> io::Result<Seal> {
            Ok(Seal {
                place: disk.name.clone(),
                sha256: self.digest(&disk.image)?,
            })
        };
        disks.iter().map(seal).collect()
    }

    fn digest(&self, image: &Path) -> io::Result<String> {
        let mut file = File::open(image)?;
        let version = version(&file)?;
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, digest)) = known().get(image)
            && *of == version
        {
            return Ok(digest.clone());
        }
        let mut hasher = Sha256::new();
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(read) => hasher.update(&piece[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let digest: String = (hasher.finalize().iter())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut known = known();
        known.retain(|path, _| path.exists());
        known.insert(image.to_owned(), (version, digest.clone()));
        Ok(digest)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_disk_that_was_changed_has_another_seal() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::write(&image, "one").unwrap();
        let name = "/".to_owned();
        let disks = [Disk {
            name,
            image: image.clone(),
        }];
        let seals = Seals::default();
        let before = seals.of(&disks).unwrap();
        let identity = before[0].identity().unwrap();
        assert_eq!(identity[..], Sha256::digest("one")[..]);
        assert_eq!(seals.of(&disks).unwrap(), before);
        // Of the same size, in place of the other.
        fs::write(directory.path().join("new"), "two").unwrap();
        fs::rename(directory.path().join("new"), &image).unwrap();
        assert_ne!(seals.of(&disks).unwrap(), before);
    }
}
