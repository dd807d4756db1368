//! Prepares a kernel: `rouse kernel import`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rouse_initramfs::Archive;

use super::image::{self, ImageError, KernelFormat};
use super::{INITRAMFS, KERNEL, Kernel};

/// Built by this crate's build script.
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rouse-guest"));
/// Where the guest mounts what the kernel shows of itself.
const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// What a Debian package begins with.
const AR_MAGIC: &[u8] = b"!<arch>\n";

/// A kernel could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file or directory cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The package cannot be unpacked.
    #[error("cannot unpack {} with dpkg-deb: {reason}", path.display())]
    Package {
        /// The package.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The package holds no kernel.
    #[error("the package {} holds no boot/vmlinuz-*", .0.display())]
    NoKernel(PathBuf),
    /// It is no kernel.
    #[error("{} cannot be booted", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ImageError,
    },
}

/// Prepares the kernel in `source`, a Debian package of a kernel, a `vmlinux` or a `bzImage`, as the directory `target`.
/// `target` must not exist; it is there as a whole or not at all.
///
/// # Errors
/// If `source` holds no kernel, or a file cannot be read or written.
pub fn import(source: &Path, target: &Path) -> Result<Kernel, ImportError> {
    if target.exists() {
        let source = io::Error::from(io::ErrorKind::AlreadyExists);
        return Err(file(target)(source));
    }
    let parent = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(file(parent))?;
    let temporary = tempfile::Builder::new()
        .prefix(".kernel-")
        .tempdir_in(parent)
        .map_err(file(parent))?;
    let bytes = kernel_bytes(source, temporary.path())?;
    let (format, kernel) = image::unpack(bytes).map_err(|error| ImportError::Image {
        path: source.to_owned(),
        source: error,
    })?;
    let prepared = temporary.path().join("prepared");
    fs::create_dir(&prepared).map_err(file(&prepared))?;
    write(&prepared.join(KERNEL), &kernel)?;
    write(&prepared.join(INITRAMFS), &initramfs())?;
    fs::rename(&prepared, target).map_err(file(target))?;
    Ok(described(target, format))
}

fn described(directory: &Path, format: KernelFormat) -> Kernel {
    Kernel {
        image: directory.join(KERNEL),
        format,
        initramfs: directory.join(INITRAMFS),
    }
}

fn kernel_bytes(source: &Path, temporary: &Path) -> Result<Vec<u8>, ImportError> {
    let bytes = fs::read(source).map_err(file(source))?;
    if !bytes.starts_with(AR_MAGIC) {
        return Ok(bytes);
    }
    drop(bytes);
    let root = temporary.join("package");
    let failed = |reason: String| ImportError::Package {
        path: source.to_owned(),
        reason,
    };
    let output = Command::new("dpkg-deb")
        .arg("--extract")
        .args([source, &root])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim_end())));
    }
    let boot = root.join("boot");
    let kernel = fs::read_dir(&boot)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .find(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"vmlinuz-")
        })
        .ok_or_else(|| ImportError::NoKernel(source.to_owned()))?
        .path();
    fs::read(&kernel).map_err(file(&kernel))
}

fn initramfs() -> Vec<u8> {
    let mut archive = Archive::default();
    for directory in MOUNT_POINTS {
        archive.directory(directory);
    }
    archive.file("init", 0o755, GUEST);
    archive.finish()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ImportError> {
    use std::io::Write;
    let mut created = fs::File::create_new(path).map_err(file(path))?;
    created.write_all(bytes).map_err(file(path))?;
    // It is renamed to its place afterwards, and must not be empty there after a power failure.
    created.sync_all().map_err(file(path))
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> ImportError + '_ {
    move |source| ImportError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_kernel_leaves_nothing_behind() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let source = directory.path().join("source");
        for contents in [b"no kernel".as_slice(), b"!<arch>\nno package"] {
            fs::write(&source, contents).expect("it can be written");
            let target = directory.path().join("kernels/one");
            assert!(import(&source, &target).is_err());
            let left = fs::read_dir(directory.path().join("kernels")).expect("it was made");
            assert_eq!(left.count(), 0);
        }
    }

    #[test]
    fn a_prepared_kernel_is_found_again_and_not_replaced() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let source = directory.path().join("vmlinux");
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(16, 0);
        elf.extend([2, 0, 62, 0]);
        fs::write(&source, &elf).expect("it can be written");
        let target = directory.path().join("kernel");
        import(&source, &target).expect("it is a kernel by its beginning");
        let kernel = Kernel::open(&target).expect("it was prepared");
        assert_eq!(kernel.format, KernelFormat::Vmlinux);
        assert!(import(&source, &target).is_err());
        // The guest's first program needs no other file.
        assert!(GUEST.starts_with(b"\x7fELF"));
        let interpreter = b"/lib64/ld-linux-x86-64.so.2";
        assert!(
            !GUEST
                .windows(interpreter.len())
                .any(|part| part == interpreter)
        );
    }
}
