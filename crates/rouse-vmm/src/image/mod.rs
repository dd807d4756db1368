//! Disks for machines: images that can only be read, in EROFS, the file system that Linux has for them.
//!
//! An image is made from a directory ([`build`]), from the parts of this host that a function needs ([`host`]), or from an OCI
//! layout ([`oci`]). Equal directories give equal images: their times and their id are fixed.

pub mod host;
pub mod oci;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An image could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file or directory cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program is missing.
    #[error("there is no mkfs.erofs: install Debian's package erofs-utils")]
    NoProgram,
    /// It failed.
    #[error("cannot make an image of {} with mkfs.erofs: {reason}", directory.display())]
    Program {
        /// What the image was to be of.
        directory: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A layout cannot be unpacked.
    #[error("{} is no OCI layout that can be used", path.display())]
    Oci {
        /// The layout.
        path: PathBuf,
        /// Why.
        source: oci::OciError,
    },
}

/// Makes an image of `directory` at `target`, which is there as a whole or not at all, and replaces what was there. All files
/// belong to root.
///
/// # Errors
/// If mkfs.erofs is missing or fails.
pub fn build(directory: &Path, target: &Path) -> Result<(), ImageError> {
    make(directory, target, &[])
}

/// Without the files and directories `left_out`, relative to `directory`.
fn make(directory: &Path, target: &Path, left_out: &[PathBuf]) -> Result<(), ImageError> {
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(parent).map_err(file(parent))?;
    let temporary = tempfile::Builder::new()
        .prefix(".image-")
        .tempfile_in(parent)
        .map_err(file(parent))?;
    let mut command = Command::new("mkfs.erofs");
    command
        .args(["--quiet", "--all-root", "-T0", "-x-1"])
        .args(["-U", "726f7573-6500-4000-8000-000000000000"]);
    for path in left_out {
        let mut argument = std::ffi::OsString::from("--exclude-path=");
        argument.push(path);
        command.arg(argument);
    }
    let output = command
        .args([temporary.path(), directory])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ImageError::NoProgram,
            _ => file(Path::new("mkfs.erofs"))(error),
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(ImageError::Program {
            directory: directory.to_owned(),
            reason: format!("{}: {}", output.status, said.trim_end()),
        });
    }
    // It is renamed to its place, and must not be empty there after a power failure.
    temporary.as_file().sync_all().map_err(file(target))?;
    temporary
        .persist(target)
        .map_err(|error| file(target)(error.error))?;
    Ok(())
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> ImageError + '_ {
    move |source| ImageError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Offset of the file system's magic number, and the number.
    const MAGIC: (usize, [u8; 4]) = (1024, 0xe0f5_e1e2_u32.to_le_bytes());

    fn tree() -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("a directory can be made");
        fs::create_dir(directory.path().join("keep")).expect("it can be made");
        fs::write(directory.path().join("keep/file"), "what is kept").expect("it can be written");
        fs::write(directory.path().join("leave"), "what is left out").expect("it can be written");
        directory
    }

    #[test]
    fn equal_directories_give_equal_images() {
        let (one, other) = (tree(), tree());
        let target = tempfile::tempdir().expect("a directory can be made");
        let image = |source: &Path, name: &str| {
            let path = target.path().join(name);
            build(source, &path).expect("mkfs.erofs is there");
            fs::read(path).expect("it was made")
        };
        let first = image(one.path(), "one");
        assert_eq!(first[MAGIC.0..MAGIC.0 + 4], MAGIC.1);
        assert!(first == image(other.path(), "other"), "the images differ");
        let left = fs::read_dir(target.path()).expect("it is there").count();
        assert_eq!(left, 2, "only the images are left");
    }

    #[test]
    fn what_is_left_out_is_not_in_the_image() {
        let source = tree();
        let target = source.path().join("leave-too");
        make(
            source.path(),
            &target,
            &["leave".into(), "leave-too".into()],
        )
        .expect("it is made");
        let image = fs::read(target).expect("it was made");
        let has = |text: &[u8]| image.windows(text.len()).any(|part| part == text);
        assert!(has(b"what is kept") && !has(b"what is left out"));
    }

    #[test]
    fn what_cannot_be_read_leaves_no_image() {
        let target = tempfile::tempdir().expect("a directory can be made");
        let path = target.path().join("image");
        let error = build(Path::new("/nonexistent"), &path).expect_err("there is nothing");
        assert!(error.to_string().contains("/nonexistent"), "{error}");
        assert_eq!(fs::read_dir(target.path()).expect("it is there").count(), 0);
    }
}
