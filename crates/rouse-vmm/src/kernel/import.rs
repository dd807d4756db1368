//! Prepares a kernel: `rouse kernel import`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rouse_initramfs::modules::ModuleError;
use rouse_initramfs::{Archive, modules, tool};

use super::image::{self, ImageError, KernelFormat};
use super::{INITRAMFS, KERNEL, Kernel};

/// Built by this crate's build script.
const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rouse-guest"));
/// Where the guest mounts what the kernel shows of itself.
const MOUNT_POINTS: [&str; 3] = ["dev", "proc", "sys"];
/// Drivers that are modules in a distribution's kernel, with what they need; those that are part of the kernel are not looked
/// for. The checksum comes first: others ask for it by a name that no list of modules has.
const MODULES: &[&str] = &[
    "crc32c_generic",
    "virtio_mmio",
    "virtio_blk",
    "virtio_balloon",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
];
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
    /// The list of its modules cannot be made.
    #[error("cannot list the modules of {} with depmod (Debian's package kmod): {reason}", path.display())]
    Depmod {
        /// The package.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A module cannot be had.
    #[error(transparent)]
    Module(#[from] ModuleError),
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
/// A package brings its modules. For the others they are taken from `modules` (such as `/lib/modules/6.12.9-amd64`); without
/// it, all drivers must be part of the kernel.
///
/// # Errors
/// If `source` holds no kernel, or a file cannot be read or written.
pub fn import(source: &Path, modules: Option<&Path>, target: &Path) -> Result<Kernel, ImportError> {
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
    let found = find(source, temporary.path())?;
    let modules = found.modules.as_deref().or(modules);
    let (format, kernel) = image::unpack(found.kernel).map_err(|error| ImportError::Image {
        path: source.to_owned(),
        source: error,
    })?;
    let prepared = temporary.path().join("prepared");
    fs::create_dir(&prepared).map_err(file(&prepared))?;
    write(&prepared.join(KERNEL), &kernel)?;
    write(&prepared.join(INITRAMFS), &initramfs(modules)?)?;
    fs::rename(&prepared, target).map_err(file(target))?;
    Ok(described(target, format))
}

fn described(directory: &Path, format: KernelFormat) -> Kernel {
    Kernel {
        image: directory.join(KERNEL).into(),
        format,
        initramfs: directory.join(INITRAMFS).into(),
    }
}

/// What a file holds.
struct Found {
    kernel: Vec<u8>,
    modules: Option<PathBuf>,
}

fn find(source: &Path, temporary: &Path) -> Result<Found, ImportError> {
    let bytes = fs::read(source).map_err(file(source))?;
    if !bytes.starts_with(AR_MAGIC) {
        return Ok(Found {
            kernel: bytes,
            modules: None,
        });
    }
    drop(bytes);
    let root = temporary.join("package");
    let failed = |reason: String| ImportError::Package {
        path: source.to_owned(),
        reason,
    };
    let extract = ["--extract".as_ref(), source.as_os_str(), root.as_os_str()];
    tool::output(Command::new("dpkg-deb").args(extract)).map_err(failed)?;
    let kernel = entry(&root.join("boot"), "vmlinuz-")
        .ok_or_else(|| ImportError::NoKernel(source.to_owned()))?;
    Ok(Found {
        kernel: fs::read(&kernel).map_err(file(&kernel))?,
        modules: list_modules(source, &root)?,
    })
}

/// The modules below `root`, where a package was unpacked, with the list that installing it would have made.
fn list_modules(package: &Path, root: &Path) -> Result<Option<PathBuf>, ImportError> {
    // Newer packages have them below `usr`, and depmod looks below `lib`.
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).map_err(file(root))?;
    }
    let Some(modules) = entry(&root.join("lib/modules"), "") else {
        return Ok(None);
    };
    let failed = |reason: String| ImportError::Depmod {
        path: package.to_owned(),
        reason,
    };
    let mut depmod = Command::new("depmod");
    depmod
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .arg("--basedir")
        .arg(root)
        .arg(modules.file_name().unwrap_or_default());
    tool::output(&mut depmod).map_err(failed)?;
    Ok(Some(modules))
}

/// The entry of `directory` whose name begins so.
fn entry(directory: &Path, begin: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    let name = |entry: &fs::DirEntry| {
        entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(begin.as_bytes())
    };
    entries
        .filter_map(Result::ok)
        .find(name)
        .map(|entry| entry.path())
}

fn initramfs(modules: Option<&Path>) -> Result<Vec<u8>, ImportError> {
    let mut archive = Archive::default();
    for directory in MOUNT_POINTS {
        archive.directory(directory);
    }
    archive.file("init", 0o755, GUEST);
    if let Some(directory) = modules {
        archive.directory("modules");
        let mut order = String::new();
        for path in modules::find(directory, MODULES)? {
            let (name, bytes) = modules::read(&path)?;
            archive.file(&format!("modules/{name}"), 0o644, &bytes);
            order += &name;
            order.push('\n');
        }
        archive.file("modules/order", 0o644, order.as_bytes());
    }
    Ok(archive.finish())
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
            assert!(import(&source, None, &target).is_err());
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
        import(&source, None, &target).expect("it is a kernel by its beginning");
        let kernel = Kernel::open(&target).expect("it was prepared");
        assert_eq!(kernel.format, KernelFormat::Vmlinux);
        assert!(import(&source, None, &target).is_err());
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
