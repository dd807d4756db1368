//! Packages: the zip as it was uploaded, and its files unpacked, each named after the zip's SHA-256.
//!
//! ```text
//! packages/<sha256>.zip   as uploaded, given back by GetFunction
//! code/<sha256>/          unpacked, what functions see as /var/task; directories 0755, files 0644 or 0755
//! ```
//!
//! Both are written under another name, synced and renamed: a name that exists is whole. A package stays as
//! long as a [`CodePin`] of it lives; when the last one is dropped, [`PackageStore::collect`] may remove it.

mod unpack;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

pub use unpack::{UnpackError, UnpackLimits};

use crate::function::record::CodeRef;

/// Why a package could not be stored.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The zip is larger than allowed.
    #[error("Zipped size must be smaller than {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: u64,
    },
    /// The zip is bad.
    #[error("the package cannot be unpacked")]
    Unpack(#[from] UnpackError),
    /// The state directory cannot be written.
    #[error("cannot write {path}")]
    Io {
        /// What was written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The packages of a node.
#[derive(Debug)]
pub struct PackageStore {
    code: PathBuf,
    zips: PathBuf,
    max_zip: u64,
    limits: UnpackLimits,
    pins: Arc<Mutex<HashMap<String, usize>>>,
    unpinned: mpsc::UnboundedSender<String>,
}

/// Keeps a package in the state directory while it lives.
#[derive(Debug)]
pub struct CodePin {
    sha256: String,
    directory: PathBuf,
    pins: Arc<Mutex<HashMap<String, usize>>>,
    unpinned: mpsc::UnboundedSender<String>,
}

impl CodePin {
    /// Where the unpacked files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for CodePin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = pins.get_mut(&self.sha256) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.sha256);
                // Nobody collects any more once the node shuts down; the next start removes what is not used.
                let _ = self.unpinned.send(std::mem::take(&mut self.sha256));
            }
        }
    }
}

impl PackageStore {
    /// Opens the store below `state_dir` and removes every package that is not in `used`, half-written ones included.
    /// The receiver yields packages that lost their last pin, for [`collect`](Self::collect).
    pub fn open(
        state_dir: &Path,
        max_zip: u64,
        limits: UnpackLimits,
        used: &HashSet<String>,
    ) -> io::Result<(Self, mpsc::UnboundedReceiver<String>)> {
        let (code, zips) = (state_dir.join("code"), state_dir.join("packages"));
        fs::create_dir_all(&code)?;
        fs::create_dir_all(&zips)?;
        for entry in fs::read_dir(&code)? {
            let entry = entry?;
            if !entry
                .file_name()
                .to_str()
                .is_some_and(|name| used.contains(name))
            {
                fs::remove_dir_all(entry.path())?;
            }
        }
        for entry in fs::read_dir(&zips)? {
            let entry = entry?;
            let name = entry.file_name();
            if !name
                .to_str()
                .and_then(|name| name.strip_suffix(".zip"))
                .is_some_and(|name| used.contains(name))
            {
                fs::remove_file(entry.path())?;
            }
        }
        let (unpinned, receiver) = mpsc::unbounded_channel();
        Ok((
            PackageStore {
                code,
                zips,
                max_zip,
                limits,
                pins: Arc::default(),
                unpinned,
            },
            receiver,
        ))
    }

    /// Stores a package and pins it. When this returns, zip and files are on disk for good.
    pub fn store(&self, zip: &[u8]) -> Result<(CodeRef, CodePin), PackageError> {
        if zip.len() as u64 > self.max_zip {
            return Err(PackageError::TooLarge {
                limit: self.max_zip,
            });
        }
        let code = CodeRef {
            sha256_hex: hex(&Sha256::digest(zip)),
            size: zip.len() as u64,
        };
        // Pinned before looking: from here on nobody removes what is found.
        let pin = self.pin(&code.sha256_hex);
        if !pin.directory.exists() || !self.zip_path(&code.sha256_hex).exists() {
            let scratch = self.code.join(format!(".new-{}", uuid::Uuid::new_v4()));
            let done = self.write(zip, &code.sha256_hex, &scratch);
            if done.is_err() {
                // What is left over is removed at the next start at the latest.
                let _ = fs::remove_dir_all(&scratch);
            }
            done?;
        }
        Ok((code, pin))
    }

    fn write(&self, zip: &[u8], sha256: &str, scratch: &Path) -> Result<(), PackageError> {
        unpack::unpack(zip, scratch, &self.limits)?;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PackageError::Io { path, source }
        };
        let zip_scratch = self.zips.join(format!(".new-{}", uuid::Uuid::new_v4()));
        let mut file = File::create(&zip_scratch).map_err(failed(&zip_scratch))?;
        let written = file.write_all(zip).and_then(|()| file.sync_all());
        if let Err(source) = written {
            let _ = fs::remove_file(&zip_scratch);
            return Err(PackageError::Io {
                path: zip_scratch,
                source,
            });
        }
        let zip_path = self.zip_path(sha256);
        fs::rename(&zip_scratch, &zip_path).map_err(failed(&zip_path))?;
        // One syncfs instead of an fsync for each of thousands of files.
        let directory = File::open(scratch).map_err(failed(scratch))?;
        rustix::fs::syncfs(&directory).map_err(|errno| PackageError::Io {
            path: scratch.to_owned(),
            source: errno.into(),
        })?;
        let target = self.code.join(sha256);
        match fs::rename(scratch, &target) {
            Ok(()) => {}
            // Another request stored the same package meanwhile; its bytes are the same.
            Err(_) if target.exists() => {
                let _ = fs::remove_dir_all(scratch);
            }
            Err(source) => {
                return Err(PackageError::Io {
                    path: target,
                    source,
                });
            }
        }
        for parent in [&self.code, &self.zips] {
            File::open(parent)
                .and_then(|dir| dir.sync_all())
                .map_err(failed(parent))?;
        }
        Ok(())
    }

    /// Pins a package that is known to be there.
    pub fn pin(&self, sha256: &str) -> CodePin {
        *self
            .pins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(sha256.to_owned())
            .or_default() += 1;
        CodePin {
            sha256: sha256.to_owned(),
            directory: self.code.join(sha256),
            pins: Arc::clone(&self.pins),
            unpinned: self.unpinned.clone(),
        }
    }

    /// Path of the zip. `sha256` must be hexadecimal.
    pub fn zip_path(&self, sha256: &str) -> PathBuf {
        self.zips.join(format!("{sha256}.zip"))
    }

    /// Removes a package unless it is pinned (again).
    pub fn collect(&self, sha256: &str) -> io::Result<()> {
        let trash = self.code.join(format!(".old-{}", uuid::Uuid::new_v4()));
        {
            // Under the lock, so that `store` cannot find the package and then lose it.
            let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            if pins.contains_key(sha256) {
                return Ok(());
            }
            match fs::remove_file(self.zip_path(sha256)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            match fs::rename(self.code.join(sha256), &trash) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            }
        }
        fs::remove_dir_all(&trash)
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> UnpackLimits {
        UnpackLimits {
            bytes: 1 << 20,
            entries: 100,
        }
    }

    fn zip(files: &[(&str, &str)]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        for (name, text) in files {
            writer
                .start_file(*name, zip::write::SimpleFileOptions::default())
                .unwrap();
            writer.write_all(text.as_bytes()).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn a_package_lives_as_long_as_its_pins() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut unpinned) =
            PackageStore::open(dir.path(), 1 << 20, limits(), &HashSet::new()).unwrap();
        let bytes = zip(&[("a.py", "x = 1")]);
        let (code, first) = store.store(&bytes).unwrap();
        let (same, second) = store.store(&bytes).unwrap();
        assert_eq!(code, same);
        assert_eq!(fs::read(first.directory().join("a.py")).unwrap(), b"x = 1");
        assert_eq!(fs::read(store.zip_path(&code.sha256_hex)).unwrap(), bytes);
        drop(first);
        assert!(unpinned.try_recv().is_err());
        store.collect(&code.sha256_hex).unwrap();
        assert!(second.directory().exists());
        let directory = second.directory().to_owned();
        drop(second);
        store.collect(&unpinned.try_recv().unwrap()).unwrap();
        assert!(!directory.exists() && !store.zip_path(&code.sha256_hex).exists());
        assert_eq!(fs::read_dir(dir.path().join("code")).unwrap().count(), 0);
    }

    #[test]
    fn opening_removes_what_is_not_used_and_what_is_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let (kept, lost);
        {
            let (store, _unpinned) =
                PackageStore::open(dir.path(), 1 << 20, limits(), &HashSet::new()).unwrap();
            kept = store.store(&zip(&[("a", "kept")])).unwrap().0.sha256_hex;
            lost = store.store(&zip(&[("a", "lost")])).unwrap().0.sha256_hex;
        }
        fs::create_dir(dir.path().join("code/.new-1")).unwrap();
        fs::write(dir.path().join("packages/.new-2"), "x").unwrap();
        let used = HashSet::from([kept.clone()]);
        let (store, _unpinned) = PackageStore::open(dir.path(), 1 << 20, limits(), &used).unwrap();
        assert!(store.pin(&kept).directory().exists());
        assert!(!store.zip_path(&lost).exists());
        assert_eq!(fs::read_dir(dir.path().join("code")).unwrap().count(), 1);
        assert_eq!(
            fs::read_dir(dir.path().join("packages")).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_bad_package_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _unpinned) =
            PackageStore::open(dir.path(), 1000, limits(), &HashSet::new()).unwrap();
        assert!(matches!(
            store.store(b"no zip"),
            Err(PackageError::Unpack(_))
        ));
        assert!(matches!(
            store.store(&[0; 1001]),
            Err(PackageError::TooLarge { limit: 1000 })
        ));
        assert_eq!(fs::read_dir(dir.path().join("code")).unwrap().count(), 0);
    }
}
