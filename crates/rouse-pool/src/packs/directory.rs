//! Where packs are.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rouse_snapshot::page_map::PackId;
use rustix::fs::OFlags;

/// Name of the directory of packs below the store's root.
pub const PACKS: &str = "packs";

/// The directory of packs of a store.
#[derive(Debug, Clone)]
pub struct PackDir {
    path: PathBuf,
}

impl PackDir {
    /// The packs of the store at `root`. Makes nothing and looks at nothing.
    pub fn open(root: &Path) -> Self {
        Self {
            path: root.join(PACKS),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a pack.
    pub fn path_of(&self, pack: PackId) -> PathBuf {
        self.path.join(format!("{pack}.pack"))
    }

    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// What `mkdir` says.
    pub fn create(&self) -> io::Result<()> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
    }

    /// All packs, in no order. Files with other names are not packs.
    ///
    /// # Errors
    /// What listing says. A directory that does not exist holds nothing.
    pub fn list(&self) -> io::Result<Vec<PackId>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut packs = Vec::new();
        for entry in entries {
            packs.extend(entry?.file_name().to_str().and_then(parse));
        }
        Ok(packs)
    }

    /// Opens a pack for reading through the page cache.
    ///
    /// A pack that is open can be read until it is closed, whatever is collected meanwhile.
    ///
    /// # Errors
    /// What `open` says.
    pub fn pack(&self, pack: PackId) -> io::Result<File> {
        File::open(self.path_of(pack))
    }
}

/// Another description of a file that is open, for reads past the page cache (where the file system can) or through it.
///
/// # Errors
/// What opening says. That the file has been removed since is no error.
pub(crate) fn reopen(file: BorrowedFd<'_>, past_the_cache: bool) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    if past_the_cache {
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(&path);
        match direct {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            other => return other,
        }
    }
    File::open(path)
}

/// The pack whose file has this name.
fn parse(name: &str) -> Option<PackId> {
    let id = name.strip_suffix(".pack")?;
    let id = PackId(u64::from_str_radix(id, 16).ok()?);
    (format!("{id}.pack") == name).then_some(id)
}
