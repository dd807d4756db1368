//! Turns what a user points at, a directory or a zip, into a function's package: the zip's bytes, and a guess of
//! runtime and handler.

pub mod archive;
pub mod detect;

use std::io;
use std::path::{Path, PathBuf};

use detect::{DetectError, Guess};

/// A function, ready to be sent.
#[derive(Debug)]
pub struct Package {
    /// Name made from the path, if it gives one.
    pub name: Option<String>,
    /// The zip.
    pub zip: Vec<u8>,
    /// What the entry file says, or why it says nothing.
    pub guess: Result<Guess, DetectError>,
}

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The path cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is neither a directory nor a zip.
    #[error("{} is neither a directory nor a zip file", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// The directory could not be packed.
    #[error("cannot pack {}", path.display())]
    Pack {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: archive::ArchiveError,
    },
}

impl Package {
    /// Packs a directory, or reads a zip.
    pub fn open(path: &Path) -> Result<Self, PackageError> {
        let read = |source| PackageError::Read {
            path: path.to_owned(),
            source,
        };
        // `.` and `..` have a name only once they are resolved.
        let resolved = path.canonicalize().map_err(read)?;
        let name = resolved
            .file_stem()
            .and_then(|stem| stem.to_str())
            .map(function_name)
            .filter(|name| !name.is_empty());
        let metadata = resolved.metadata().map_err(read)?;
        if metadata.is_dir() {
            let files = archive::collect(&resolved).map_err(|source| PackageError::Pack {
                path: path.to_owned(),
                source,
            })?;
            let guess = detect::detect(files.iter().map(|file| file.name.as_str()), |name| {
                std::fs::read_to_string(resolved.join(name)).ok()
            });
            let zip = archive::pack(&files).map_err(|source| PackageError::Pack {
                path: path.to_owned(),
                source,
            })?;
            return Ok(Self { name, zip, guess });
        }
        let bytes = std::fs::read(&resolved).map_err(read)?;
        let Ok(mut zip) = zip::ZipArchive::new(io::Cursor::new(&bytes)) else {
            return Err(PackageError::Kind {
                path: path.to_owned(),
            });
        };
        let names: Vec<String> = zip
            .file_names()
            .flatten()
            .map(std::borrow::Cow::into_owned)
            .collect();
        let guess = detect::detect(names.iter().map(String::as_str), |name| {
            io::read_to_string(zip.by_name(name).ok()?).ok()
        });
        Ok(Self {
            name,
            zip: bytes,
            guess,
        })
    }
}

/// `stem` with only the characters that Lambda allows in a function's name.
fn function_name(stem: &str) -> String {
    let allowed = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c
        } else {
            '-'
        }
    };
    stem.chars().map(allowed).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zip_and_its_directory_give_the_same_package() {
        let dir = tempfile::tempdir().expect("tempdir");
        let source = dir.path().join("my.function");
        std::fs::create_dir(&source).expect("mkdir");
        std::fs::write(
            source.join("app.py"),
            "def handler(event, context):\n    return event\n",
        )
        .expect("write");
        let from_dir = Package::open(&source).expect("directory");
        assert_eq!(from_dir.name.as_deref(), Some("my"));
        let file = dir.path().join("other.zip");
        std::fs::write(&file, &from_dir.zip).expect("write");
        let from_zip = Package::open(&file).expect("zip");
        assert_eq!(from_zip.name.as_deref(), Some("other"));
        assert_eq!(from_zip.zip, from_dir.zip);
        assert_eq!(from_zip.guess, from_dir.guess);
        assert_eq!(from_zip.guess.expect("guess").handler, "app.handler");
    }

    #[test]
    fn what_is_no_package_is_said() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("notes.txt");
        std::fs::write(&file, "hello").expect("write");
        assert!(matches!(
            Package::open(&file),
            Err(PackageError::Kind { .. })
        ));
        assert!(matches!(
            Package::open(&dir.path().join("none")),
            Err(PackageError::Read { .. })
        ));
    }
}
