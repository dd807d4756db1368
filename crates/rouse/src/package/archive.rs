//! Packs a directory into a zip, byte for byte the same each time: entries sorted, one fixed date, only the
//! executable bit of the mode. So `CodeSha256` changes only when the code does.

use std::fs;
use std::io::{self, Cursor, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// Directories that are no part of a function. Byte code is left out since it depends on the interpreter that
/// wrote it, and on dates that a zip does not keep.
const SKIPPED: [&str; 4] = [".git", ".hg", ".svn", "__pycache__"];
/// Deeper than any package; ends loops of symbolic links.
const MAX_DEPTH: usize = 64;

/// A file to pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Path in the zip, with `/`.
    pub name: String,
    /// Path on disk.
    pub path: PathBuf,
    /// Whether anybody may execute it.
    pub executable: bool,
}

/// Why a directory cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file or directory cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name is not UTF-8, which the API's unpacking requires.
    #[error("the name {} is not UTF-8", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// Directories are nested too deep, most likely through a symbolic link to a parent.
    #[error("{} lies deeper than {MAX_DEPTH} directories: is there a symbolic link to a parent?", path.display())]
    Depth {
        /// The path.
        path: PathBuf,
    },
    /// Neither a file nor a directory.
    #[error("{} is neither a file nor a directory", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// The zip could not be written.
    #[error("cannot write the zip")]
    Zip(#[from] zip::result::ZipError),
}

/// Finds the files below `root`, sorted by name. Symbolic links are followed: the package holds what they point to.
pub fn collect(root: &Path) -> Result<Vec<SourceFile>, ArchiveError> {
    let mut files = Vec::new();
    walk(root, "", 0, &mut files)?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn walk(
    dir: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<SourceFile>,
) -> Result<(), ArchiveError> {
    if depth > MAX_DEPTH {
        return Err(ArchiveError::Depth {
            path: dir.to_owned(),
        });
    }
    let read = |path: &Path| {
        let path = path.to_owned();
        move |source| ArchiveError::Read { path, source }
    };
    for entry in fs::read_dir(dir).map_err(read(dir))? {
        let path = entry.map_err(read(dir))?.path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| ArchiveError::Name { path: path.clone() })?;
        let metadata = fs::metadata(&path).map_err(read(&path))?;
        let full = format!("{prefix}{name}");
        if metadata.is_dir() {
            if !SKIPPED.contains(&name) {
                walk(&path, &format!("{full}/"), depth + 1, files)?;
            }
        } else if metadata.is_file() {
            files.push(SourceFile {
                name: full,
                executable: metadata.permissions().mode() & 0o111 != 0,
                path,
            });
        } else {
            return Err(ArchiveError::Kind { path });
        }
    }
    Ok(())
}

/// The zip of `files`.
pub fn pack(files: &[SourceFile]) -> Result<Vec<u8>, ArchiveError> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for file in files {
        let content = fs::read(&file.path).map_err(|source| ArchiveError::Read {
            path: file.path.clone(),
            source,
        })?;
        add(&mut zip, &file.name, &content, file.executable)?;
    }
    Ok(zip.finish()?.into_inner())
}

/// The zip of files that are in memory: names and contents.
pub fn pack_sources(sources: &[(&str, &str)]) -> Result<Vec<u8>, ArchiveError> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in sources {
        add(&mut zip, name, content.as_bytes(), false)?;
    }
    Ok(zip.finish()?.into_inner())
}

fn add(
    zip: &mut ZipWriter<Cursor<Vec<u8>>>,
    name: &str,
    content: &[u8],
    executable: bool,
) -> Result<(), ArchiveError> {
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(if executable { 0o755 } else { 0o644 });
    zip.start_file(name, options)?;
    zip.write_all(content)
        .map_err(zip::result::ZipError::from)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(order: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("tempdir");
        for (name, content) in order {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(&path, content).expect("write");
        }
        dir
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let one = tree(&[("a.py", "1"), ("lib/b.py", "2"), ("lib/c", "3")]);
        let two = tree(&[
            ("lib/c", "3"),
            ("lib/b.py", "2"),
            ("a.py", "1"),
            (".git/HEAD", "x"),
            ("lib/__pycache__/b.pyc", "y"),
        ]);
        let pack_dir =
            |dir: &tempfile::TempDir| pack(&collect(dir.path()).expect("collect")).expect("pack");
        assert_eq!(pack_dir(&one), pack_dir(&two));
    }

    #[test]
    fn modes_links_and_contents_arrive() {
        let dir = tree(&[("bootstrap", "#!/bin/sh\n"), ("real/data", "content")]);
        fs::set_permissions(
            dir.path().join("bootstrap"),
            fs::Permissions::from_mode(0o750),
        )
        .expect("chmod");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("symlink");
        let bytes = pack(&collect(dir.path()).expect("collect")).expect("pack");
        let mut zip = zip::ZipArchive::new(Cursor::new(bytes)).expect("zip");
        assert_eq!(
            zip.by_name("bootstrap")
                .expect("bootstrap")
                .unix_mode()
                .map(|mode| mode & 0o777),
            Some(0o755)
        );
        assert_eq!(
            zip.by_name("real/data")
                .expect("data")
                .unix_mode()
                .map(|mode| mode & 0o777),
            Some(0o644)
        );
        assert_eq!(
            io::read_to_string(zip.by_name("link/data").expect("link")).expect("read"),
            "content"
        );
    }

    #[test]
    fn a_loop_of_links_is_named() {
        let dir = tree(&[("a", "1")]);
        std::os::unix::fs::symlink(".", dir.path().join("again")).expect("symlink");
        // Either the kernel's limit on links in one path or ours ends it.
        assert!(matches!(
            collect(dir.path()),
            Err(ArchiveError::Depth { .. } | ArchiveError::Read { .. })
        ));
    }
}
