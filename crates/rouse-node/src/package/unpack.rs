//! Unpacks a zip that a stranger made.
//!
//! Nothing is written outside of the target: names must be relative and free of `..`; symbolic links come last, so
//! no file is written through one; and a link may climb (`..`) only at the start of its target and not above the
//! root, so links that lead through other links stay inside, too.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Cursor, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

/// Longest path, as the kernel takes it.
const MAX_PATH: usize = 4000;

/// What a package may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnpackLimits {
    /// Bytes, unpacked.
    pub bytes: u64,
    /// Entries.
    pub entries: usize,
}

/// Why a package was refused.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// No zip, or a damaged one.
    #[error("it is not a readable zip archive")]
    Archive(#[source] ZipError),
    /// Damaged inside of an entry.
    #[error("entry {name:?} is damaged")]
    Entry {
        /// Name of the entry.
        name: String,
        /// What is wrong.
        source: io::Error,
    },
    /// Encrypted.
    #[error("entry {0:?} is encrypted")]
    Encrypted(String),
    /// A name that leads out of the package, or that no file can have.
    #[error("entry {0:?} has a name that leads out of the package")]
    Name(String),
    /// A symbolic link that leads out of the package.
    #[error("entry {0:?} is a symbolic link that leads out of the package")]
    Link(String),
    /// A device, socket or the like.
    #[error("entry {0:?} is neither a file nor a directory nor a symbolic link")]
    Kind(String),
    /// The same name twice, or a file where another entry needs a directory.
    #[error("entry {0:?} exists twice")]
    Duplicate(String),
    /// A bomb.
    #[error("Unzipped size must be smaller than {0} bytes")]
    TooLarge(u64),
    /// A bomb of another kind.
    #[error("there are more than {0} entries")]
    TooManyEntries(usize),
    /// The disk.
    #[error("cannot write {path}")]
    Io {
        /// What was written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Unpacks `zip` into the new directory `target`.
pub fn unpack(zip: &[u8], target: &Path, limits: &UnpackLimits) -> Result<(), UnpackError> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).map_err(UnpackError::Archive)?;
    if archive.len() > limits.entries {
        return Err(UnpackError::TooManyEntries(limits.entries));
    }
    if archive.has_duplicate_names() {
        return Err(UnpackError::Duplicate(first_duplicate(&archive)));
    }
    let mut unpacking = Unpacking {
        root: target,
        made: HashSet::new(),
        left: limits.bytes,
        limit: limits.bytes,
        links: Vec::new(),
    };
    unpacking.make_directory(target)?;
    for index in 0..archive.len() {
        unpacking.entry(&mut archive, index)?;
    }
    unpacking.make_links()
}

fn first_duplicate<R: Read + io::Seek>(archive: &ZipArchive<R>) -> String {
    let mut seen = HashSet::new();
    archive
        .file_names_raw()
        .find(|name| !seen.insert(*name))
        .map_or_else(String::new, |name| {
            String::from_utf8_lossy(name).into_owned()
        })
}

struct Unpacking<'a> {
    root: &'a Path,
    /// Directories that this unpacking made, root excluded: real ones, never links.
    made: HashSet<PathBuf>,
    left: u64,
    limit: u64,
    links: Vec<(String, PathBuf, String)>,
}

impl Unpacking<'_> {
    fn entry(
        &mut self,
        archive: &mut ZipArchive<Cursor<&[u8]>>,
        index: usize,
    ) -> Result<(), UnpackError> {
        let lossy = archive
            .name_for_index(index)
            .and_then(Result::ok)
            .map_or_else(|| format!("#{index}"), |name| name.into_owned());
        let mut file = archive.by_index(index).map_err(|error| match error {
            ZipError::UnsupportedArchive(ZipError::PASSWORD_REQUIRED)
            | ZipError::InvalidPassword => UnpackError::Encrypted(lossy.clone()),
            ZipError::Io(source) => UnpackError::Entry {
                name: lossy.clone(),
                source,
            },
            other => UnpackError::Archive(other),
        })?;
        if file.encrypted() {
            return Err(UnpackError::Encrypted(lossy));
        }
        let (relative, is_directory) =
            relative_path(&lossy).ok_or_else(|| UnpackError::Name(lossy.clone()))?;
        let mode = file.unix_mode().unwrap_or(0);
        let kind = mode & libc_mode::FORMAT;
        if is_directory || kind == libc_mode::DIRECTORY {
            return self.directories(&relative, &lossy);
        }
        let path = self.root.join(&relative);
        if let Some(parent) = relative.parent() {
            self.directories(parent, &lossy)?;
        }
        match kind {
            0 | libc_mode::REGULAR => {}
            libc_mode::LINK => {
                let mut text = String::new();
                let read = (&mut file).take(MAX_PATH as u64).read_to_string(&mut text);
                read.map_err(|source| UnpackError::Entry {
                    name: lossy.clone(),
                    source,
                })?;
                if !link_stays_inside(&relative, &text) {
                    return Err(UnpackError::Link(lossy));
                }
                self.links.push((lossy, path, text));
                return Ok(());
            }
            _ => return Err(UnpackError::Kind(lossy)),
        }
        let executable = mode & 0o111 != 0;
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(if executable { 0o755 } else { 0o644 })
            .open(&path)
            .map_err(|source| write_error(&lossy, &path, source))?;
        // The umask of the node must not take the bits away that the sandbox's user needs.
        out.set_permissions(Permissions::from_mode(if executable {
            0o755
        } else {
            0o644
        }))
        .map_err(|source| UnpackError::Io {
            path: path.clone(),
            source,
        })?;
        let mut reader = Counted {
            inner: &mut file,
            left: self.left,
            failed: false,
            over: false,
        };
        match io::copy(&mut reader, &mut out) {
            Ok(bytes) if !reader.over => self.left -= bytes,
            Ok(_) => return Err(UnpackError::TooLarge(self.limit)),
            Err(source) if reader.failed => {
                return Err(UnpackError::Entry {
                    name: lossy,
                    source,
                });
            }
            Err(source) => return Err(UnpackError::Io { path, source }),
        }
        Ok(())
    }

    fn directories(&mut self, relative: &Path, name: &str) -> Result<(), UnpackError> {
        let mut path = PathBuf::new();
        for component in relative.components() {
            path.push(component);
            if !self.made.contains(&path) {
                let full = self.root.join(&path);
                self.make_directory(&full).map_err(|error| match error {
                    UnpackError::Io { path, source } => write_error(name, &path, source),
                    other => other,
                })?;
                self.made.insert(path.clone());
            }
        }
        Ok(())
    }

    fn make_directory(&self, path: &Path) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::Io {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new().mode(0o755).create(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(failed)
    }

    fn make_links(self) -> Result<(), UnpackError> {
        for (name, path, target) in self.links {
            symlink(&target, &path).map_err(|source| write_error(&name, &path, source))?;
        }
        Ok(())
    }
}

/// Tells the package's fault from the disk's.
fn write_error(name: &str, path: &Path, source: io::Error) -> UnpackError {
    match source.kind() {
        io::ErrorKind::AlreadyExists
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory => UnpackError::Duplicate(name.to_owned()),
        io::ErrorKind::InvalidFilename | io::ErrorKind::InvalidInput => {
            UnpackError::Name(name.to_owned())
        }
        _ => UnpackError::Io {
            path: path.to_owned(),
            source,
        },
    }
}

/// File types in the upper bits of a Unix mode.
mod libc_mode {
    pub const FORMAT: u32 = 0o170_000;
    pub const DIRECTORY: u32 = 0o040_000;
    pub const REGULAR: u32 = 0o100_000;
    pub const LINK: u32 = 0o120_000;
}

/// Reads at most `left` bytes, and remembers whether an error came from the archive or there was more.
struct Counted<'a, R> {
    inner: &'a mut R,
    left: u64,
    failed: bool,
    over: bool,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self
            .inner
            .read(buffer)
            .inspect_err(|_| self.failed = true)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => {
                self.left = left;
                Ok(n)
            }
            None => {
                self.over = true;
                Ok(0)
            }
        }
    }
}

/// The path below the root, and whether it names a directory. `None` for what must not be.
fn relative_path(name: &str) -> Option<(PathBuf, bool)> {
    if name.is_empty() || name.starts_with('/') || name.contains('\0') || name.len() > MAX_PATH {
        return None;
    }
    let mut path = PathBuf::new();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            // A backslash is an ordinary character here, but a zip made elsewhere may mean a separator by it.
            ".." => return None,
            other if other.split('\\').any(|part| part == "..") => return None,
            other => path.push(other),
        }
    }
    let is_directory = name.ends_with('/') || path.as_os_str().is_empty();
    Some((path, is_directory))
}

/// Does a link at `link` (relative to the root) with target `text` stay below the root?
fn link_stays_inside(link: &Path, text: &str) -> bool {
    if text.is_empty() || text.starts_with('/') || text.contains('\0') || text.len() >= MAX_PATH {
        return false;
    }
    let depth = link.components().count() - 1;
    let mut parts = text
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .peekable();
    let mut climbs = 0;
    while parts.next_if_eq(&"..").is_some() {
        climbs += 1;
    }
    climbs <= depth && parts.all(|part| part != "..")
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
