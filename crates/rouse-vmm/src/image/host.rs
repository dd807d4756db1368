//! A root of this host's programs and libraries: what a function sees in a process sandbox, without anything that is private or of
//! no use to a function.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{ImageError, file, make};

/// Of `/`.
const TOP: &[&str] = &[
    "bin", "etc", "lib", "lib32", "lib64", "libx32", "nix", "opt", "sbin", "usr",
];
/// Of `/etc`: what libraries look for. Nothing in it is secret.
const ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "debian_version",
    "fonts",
    "gai.conf",
    "host.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "nsswitch.conf",
    "os-release",
    "pki",
    "protocols",
    "python3",
    "python3.11",
    "python3.12",
    "python3.13",
    "services",
    "ssl",
    "timezone",
];
/// Large, and of no use to a function; or private.
const LEFT_OUT: &[&str] = &[
    "etc/ssl/private",
    "lib/firmware",
    "lib/modules",
    "usr/include",
    "usr/lib/debug",
    "usr/lib/firmware",
    "usr/lib/gcc",
    "usr/lib/modules",
    "usr/sbin",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "usr/src",
];

/// Makes an image of the host's root at `target`.
///
/// # Errors
/// Those of [`super::build`].
pub fn build(target: &Path) -> Result<(), ImageError> {
    let mut left_out = except("/", TOP)?;
    left_out.extend(except("/etc", ETC)?);
    left_out.extend(LEFT_OUT.iter().map(PathBuf::from));
    make(Path::new("/"), target, &left_out)
}

/// What `directory` has beside `kept`, relative to the root.
fn except(directory: &str, kept: &[&str]) -> Result<Vec<PathBuf>, ImageError> {
    let kept: BTreeSet<&str> = kept.iter().copied().collect();
    let path = Path::new(directory);
    let relative = path.strip_prefix("/").unwrap_or(path);
    let entries = fs::read_dir(path).map_err(file(path))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    names
        .filter(|name| {
            let kept =
                |name: &std::ffi::OsString| name.to_str().is_some_and(|name| kept.contains(name));
            !name.as_ref().is_ok_and(kept)
        })
        .map(|name| name.map(|name| relative.join(name)).map_err(file(path)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_private_is_in_it() {
        let left_out = except("/etc", ETC).expect("every host has it");
        assert!(left_out.contains(&PathBuf::from("etc/passwd")));
        assert!(!left_out.contains(&PathBuf::from("etc/ssl")));
        let left_out = except("/", TOP).expect("every host has it");
        assert!(left_out.contains(&PathBuf::from("proc")));
        assert!(!left_out.contains(&PathBuf::from("usr")));
    }
}
