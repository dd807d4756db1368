//! Modules of a kernel: which files are needed for some of them, in which order they are loaded, and what is in them.
//!
//! A directory of modules is as `depmod` leaves it, in `/lib/modules` or in an unpacked package.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tool;

/// Modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be unpacked.
    #[error("cannot unpack the module {} with xz: {reason}", path.display())]
    Unpack {
        /// The module.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// The files of the modules `wanted` and of all that they need, in an order in which they can be loaded. A module that
/// `directory` does not have is left out: it is a part of the kernel, or its absence will be seen when it is needed.
///
/// # Errors
/// If `directory` has no list of modules.
pub fn find(directory: &Path, wanted: &[&str]) -> Result<Vec<PathBuf>, ModuleError> {
    let path = directory.join("modules.dep");
    let list = fs::read_to_string(&path).map_err(|source| ModuleError::File { path, source })?;
    let order = load_order(&list, wanted);
    Ok(order.into_iter().map(|path| directory.join(path)).collect())
}

/// `list` is depmod's: a line for each module, with all that it needs, the directly needed first.
fn load_order<'a>(list: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let needs: HashMap<&str, (&str, &str)> = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name(path), (path, needs)))
        .collect();
    let mut order = Vec::new();
    for (path, needs) in wanted.iter().filter_map(|name| needs.get(name)) {
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// `9p` for `kernel/fs/9p/9p.ko.xz`.
fn name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

/// A module's name as a file (`9p.ko`) and its bytes, uncompressed.
///
/// # Errors
/// If it cannot be read.
pub fn read(path: &Path) -> Result<(String, Vec<u8>), ModuleError> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(plain) = file.strip_suffix(".xz") else {
        let bytes = fs::read(path).map_err(|source| ModuleError::File {
            path: path.to_owned(),
            source,
        })?;
        return Ok((file.into_owned(), bytes));
    };
    let failed = |reason: String| ModuleError::Unpack {
        path: path.to_owned(),
        reason,
    };
    let unpacked =
        tool::output(Command::new("xz").args(["-dc", "--"]).arg(path)).map_err(failed)?;
    Ok((plain.to_owned(), unpacked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_those_that_they_need() {
        let list = "kernel/net/9p/9pnet.ko.xz:\n\
                    kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz\n\
                    kernel/fs/9p/9p.ko: kernel/fs/netfs/netfs.ko kernel/net/9p/9pnet.ko.xz\n";
        assert_eq!(
            load_order(list, &["virtio_pci", "9pnet_virtio", "9p"]),
            [
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko",
                "kernel/fs/9p/9p.ko"
            ]
        );
    }
}
