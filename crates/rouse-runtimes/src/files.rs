//! The clients' files, embedded in the program and written below the folder that sandboxes see as `/var/runtime`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::Runtime;

macro_rules! embedded {
    ($($path:literal),* $(,)?) => {
        &[$(($path, include_bytes!(concat!("../files/", $path)).as_slice())),*]
    };
}

const SOURCES: &[(&str, &[u8])] = embedded![
    "python3/bootstrap.py",
    "python3/_rouse_faults.py",
    "python3/_rouse_logging.py",
    "python3/_rouse_ric.py",
    "python3/_rouse_template.py",
    "python3/_rouse_unique.py",
    "python3/snapshot_restore_py.py",
    "nodejs/bootstrap.cjs",
    "nodejs/connection.cjs",
    "nodejs/handler.cjs",
    "nodejs/hooks.cjs",
    "nodejs/log.cjs",
    "nodejs/ric.cjs",
    "nodejs/template.cjs",
    "nodejs/unique.cjs",
    "nodejs/node_modules/rouse-snapshot/index.js",
    "nodejs/node_modules/rouse-snapshot/package.json",
];

const RESEED_NODE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/reseed.node"));

/// The files that make up a runtime's client, in a fixed order: a change of one is a change of the client.
pub fn client_files(runtime: Runtime) -> impl Iterator<Item = &'static [u8]> {
    let folder = match runtime {
        Runtime::Python3 => "python3/",
        Runtime::NodeJs => "nodejs/",
        // Its client is in the package.
        Runtime::Provided => "provided/",
    };
    let files = SOURCES.iter().copied();
    files
        .chain([("nodejs/reseed.node", RESEED_NODE)])
        .filter(move |(path, _)| path.starts_with(folder))
        .map(|(_, content)| content)
}

/// Writes the clients of all runtimes below `dir`, readable by everybody.
///
/// A file whose content is already there is left alone: snapshots refer to unmodified files by identity (inode and time), so
/// that a restart of the node must not touch them. A file that differs is replaced by renaming, so that a process that has the old
/// one mapped keeps it.
///
/// # Errors
/// Those of the file operations.
pub fn install(dir: &Path) -> io::Result<()> {
    for (path, content) in SOURCES
        .iter()
        .copied()
        .chain([("nodejs/reseed.node", RESEED_NODE)])
    {
        let path = dir.join(path);
        let folder = path
            .parent()
            .expect("a path that ends in a file's name has a parent");
        make_folders(dir, folder)?;
        if fs::read(&path).is_ok_and(|present| present == content) {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
            continue;
        }
        write_whole(folder, &path, content)?;
    }
    Ok(())
}

/// Makes `folder` and its parents up to `top`, which everybody may enter whatever the umask is.
fn make_folders(top: &Path, folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(folder)?;
    for folder in folder
        .ancestors()
        .take_while(|folder| folder.starts_with(top))
    {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn write_whole(folder: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".{}.new", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temporary)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The first error is the one to report; the file is ours alone and may not exist.
        drop(fs::remove_file(&temporary));
    }
    written
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn install_writes_what_is_missing_and_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("runtime");
        install(&dir).unwrap();
        let bootstrap = dir.join("python3/bootstrap.py");
        let addon = dir.join("nodejs/reseed.node");
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert!(fs::read(&addon).unwrap().starts_with(b"\x7fELF"));
        assert_eq!(fs::metadata(&bootstrap).unwrap().mode() & 0o777, 0o644);
        assert_eq!(
            fs::metadata(dir.join("nodejs/node_modules"))
                .unwrap()
                .mode()
                & 0o777,
            0o755
        );

        let kept = inode(&bootstrap);
        fs::write(&addon, "an older version").unwrap();
        let replaced = inode(&addon);
        install(&dir).unwrap();
        assert_eq!(inode(&bootstrap), kept);
        assert_ne!(inode(&addon), replaced);
        assert_eq!(fs::read(&addon).unwrap(), RESEED_NODE);
        assert!(fs::read_dir(dir.join("nodejs")).unwrap().all(|entry| {
            !entry
                .unwrap()
                .file_name()
                .to_string_lossy()
                .ends_with(".new")
        }));
    }

    #[test]
    fn every_file_is_embedded() {
        fn list(folder: &Path, found: &mut Vec<String>, top: &Path) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && path.file_name().unwrap() != "__pycache__" {
                    list(&path, found, top);
                } else if path.is_file() {
                    found.push(
                        path.strip_prefix(top)
                            .unwrap()
                            .to_string_lossy()
                            .into_owned(),
                    );
                }
            }
        }
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("files");
        let mut found = Vec::new();
        list(&top, &mut found, &top);
        found.sort();
        let mut embedded: Vec<_> = SOURCES.iter().map(|(path, _)| (*path).to_owned()).collect();
        embedded.sort();
        assert_eq!(found, embedded);
    }
}
