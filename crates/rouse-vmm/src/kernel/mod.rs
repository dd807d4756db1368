//! The kernel that machines boot, prepared once.
//!
//! A prepared kernel is a directory:
//!
//! | file | what |
//! |---|---|
//! | `kernel` | an uncompressed `vmlinux`, or a `bzImage` whose compression rouse does not know |
//! | `initramfs` | `rouse-guest` as `/init`, where it mounts, and the modules that it loads |

mod image;
pub mod import;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::given::GivenFile;
pub use image::{ImageError, KernelFormat};

const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";

/// A prepared kernel, as found in its directory.
#[derive(Debug)]
pub struct Kernel {
    /// The kernel.
    pub image: GivenFile,
    /// How it is to be loaded.
    pub format: KernelFormat,
    /// What it starts from.
    pub initramfs: GivenFile,
}

/// A directory is no prepared kernel.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file of it cannot be read.
    #[error("cannot read {} of a prepared kernel", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel in it is none.
    #[error("{}", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
}

impl Kernel {
    /// BLAKE3 of the image, by which a snapshot names its kernel.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn digest(&self) -> io::Result<[u8; 32]> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(self.image.open()?)?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// The prepared kernel in `directory`.
    ///
    /// # Errors
    /// If a file of it is missing, or is not what it should be.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let image = directory.join(KERNEL);
        let initramfs = directory.join(INITRAMFS);
        let unreadable = |path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::File { path, source }
        };
        let mut file = File::open(&image).map_err(unreadable(&image))?;
        let begin = image::beginning(&mut file).map_err(unreadable(&image))?;
        let format = KernelFormat::of(&begin).map_err(|source| OpenError::Image {
            path: image.clone(),
            source,
        })?;
        File::open(&initramfs).map_err(unreadable(&initramfs))?;
        Ok(Self {
            image: image.into(),
            format,
            initramfs: initramfs.into(),
        })
    }
}
