//! A file that a machine needs: by its name, or opened already by whoever has jailed this process, where files have no names.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Which file.
#[derive(Debug, Clone)]
pub enum GivenFile {
    /// This one.
    Named(PathBuf),
    /// One that is open. Its position is this machine's own: whoever gives it has opened it for this machine alone.
    Opened(Arc<File>),
}

impl GivenFile {
    /// The file, at its beginning.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn open(&self) -> io::Result<File> {
        match self {
            Self::Named(path) => File::open(path),
            Self::Opened(file) => {
                let mut file = file.try_clone()?;
                file.rewind()?;
                Ok(file)
            }
        }
    }

    /// Its name, if it has one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Named(path) => Some(path),
            Self::Opened(_) => None,
        }
    }
}

impl fmt::Display for GivenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(path) => path.display().fmt(f),
            Self::Opened(_) => f.write_str("a file that was given"),
        }
    }
}

impl From<PathBuf> for GivenFile {
    fn from(path: PathBuf) -> Self {
        Self::Named(path)
    }
}

impl From<File> for GivenFile {
    fn from(file: File) -> Self {
        Self::Opened(Arc::new(file))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_file_is_read_from_its_beginning_each_time() {
        let mut named = tempfile::NamedTempFile::new().expect("a file can be made");
        named.write_all(b"contents").expect("it can be written");
        let opened = File::open(named.path()).expect("it can be opened");
        for file in [GivenFile::from(named.path().to_owned()), opened.into()] {
            for _ in 0..2 {
                let mut text = String::new();
                file.open()
                    .and_then(|mut file| file.read_to_string(&mut text))
                    .expect("it can be read");
                assert_eq!(text, "contents", "{file}");
            }
        }
    }
}
