//! Debian's kernel, downloaded by apt once and kept below the user's cache directory.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Options, TestbedError, packages};
use crate::machine;

/// An unpacked kernel package.
#[derive(Debug)]
pub struct Kernel {
    /// The compressed kernel.
    pub image: PathBuf,
    /// What `uname -r` says there.
    pub release: String,
    /// Its modules, with the lists that depmod makes.
    pub modules: PathBuf,
}

/// The kernel of package `wanted`, or the newest that apt has; downloaded when the cache does not have it.
///
/// A kernel in the cache stays until its directory is removed: a test bed should not change from one day to the next.
pub fn fetch(wanted: Option<&str>) -> Result<Kernel, TestbedError> {
    let cache = cache_directory();
    let directory = cache.join(wanted.unwrap_or("newest"));
    if !directory.exists() {
        download(&cache, &directory, wanted)?;
    }
    open(&directory)
}

fn cache_directory() -> PathBuf {
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("rouse/testbed-kernels")
}

fn download(cache: &Path, directory: &Path, wanted: Option<&str>) -> Result<(), TestbedError> {
    fs::create_dir_all(cache).map_err(file(cache))?;
    let lock_path = cache.join("lock");
    // One at a time: two that begin together would download 100 MB twice. The lock goes when the file is closed.
    let lock = File::create(&lock_path).map_err(file(&lock_path))?;
    lock.lock().map_err(file(&lock_path))?;
    if directory.exists() {
        return Ok(());
    }
    // It is unpacked with some of them, and may be wanted before any machine is.
    packages::install(&Options::default())?;
    let package = match choose(wanted)? {
        Some(package) => package,
        None => {
            machine::update_lists().map_err(TestbedError::Packages)?;
            choose(wanted)?.ok_or_else(|| TestbedError::NoKernel {
                name: wanted.unwrap_or("linux-image-amd64").to_owned(),
            })?
        }
    };
    eprintln!("xtask: test bed: downloading {package}");
    // Whoever holds the lock owns this one; a download that was killed may have left it.
    let partial = cache.join("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(file(&partial))?;
    }
    fs::create_dir(&partial).map_err(file(&partial))?;
    let result = unpack(&partial, &package)
        .and_then(|()| fs::rename(partial.join("root"), directory).map_err(file(directory)));
    fs::remove_dir_all(&partial).map_err(file(&partial))?;
    result
}

fn unpack(partial: &Path, package: &str) -> Result<(), TestbedError> {
    output(
        "apt-get",
        Command::new("apt-get")
            .args(["download", "-q", package])
            .current_dir(partial),
    )?;
    let archive = entry(partial, |name| name.ends_with(".deb"), "archive")?;
    let root = partial.join("root");
    output(
        "dpkg",
        Command::new("dpkg").arg("-x").arg(&archive).arg(&root),
    )?;
    // Newer packages have their modules below usr; depmod looks below lib.
    if !root.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", root.join("lib")).map_err(file(&root))?;
    }
    let kernel = open(&root)?;
    output(
        "depmod",
        Command::new("/sbin/depmod")
            .arg("-b")
            .arg(&root)
            .arg(&kernel.release),
    )?;
    Ok(())
}

/// The package with the files that `wanted` (or the newest kernel) stands for: those that people name are empty and
/// depend on one that has the version in its name. `None` when apt has no such package.
fn choose(wanted: Option<&str>) -> Result<Option<String>, TestbedError> {
    let names = match wanted {
        Some(name) => vec![name.to_owned()],
        None => text(
            "apt-cache",
            Command::new("apt-cache").args(["pkgnames", "linux-image-"]),
        )?
        .lines()
        .filter(|name| is_general(name))
        .map(str::to_owned)
        .collect(),
    };
    let mut found = Vec::new();
    for name in &names {
        // It fails for a package that does not exist.
        let listing = text(
            "apt-cache",
            Command::new("apt-cache").args(["depends", "--important", name]),
        );
        let Ok(listing) = listing else { continue };
        let real = listing
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|dependency| dependency.starts_with("linux-image-"));
        found.push(real.unwrap_or(name).to_owned());
    }
    found.sort_by_key(|name| version(name));
    Ok(found.pop())
}

/// `linux-image-amd64`, `linux-image-6.12-amd64`: no cloud kernel (which lacks drivers), no real-time one.
fn is_general(name: &str) -> bool {
    name.strip_prefix("linux-image-")
        .and_then(|rest| rest.strip_suffix("amd64"))
        .is_some_and(|series| {
            let series = series.strip_suffix('-').unwrap_or(series);
            series
                .split('.')
                .all(|part| part.bytes().all(|b| b.is_ascii_digit()))
        })
}

/// The numbers in a name, in order.
fn version(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn open(directory: &Path) -> Result<Kernel, TestbedError> {
    let boot = directory.join("boot");
    let image = entry(&boot, |name| name.starts_with("vmlinuz-"), "kernel")?;
    let all = directory.join("lib/modules");
    let modules = entry(&all, |_| true, "modules")?;
    let release = modules
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok(Kernel {
        image,
        release,
        modules,
    })
}

/// The entry of `directory` whose name pleases.
fn entry(
    directory: &Path,
    pleases: impl Fn(&str) -> bool,
    what: &str,
) -> Result<PathBuf, TestbedError> {
    let entries = fs::read_dir(directory).map_err(file(directory))?;
    entries
        .filter_map(Result::ok)
        .find(|entry| pleases(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .ok_or_else(|| TestbedError::KernelContents {
            directory: directory.to_owned(),
            what: what.to_owned(),
        })
}

/// Runs a program, and returns what it printed.
fn output(program: &'static str, command: &mut Command) -> Result<Vec<u8>, TestbedError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| TestbedError::Program {
            program,
            reason: source.to_string(),
        })?;
    if !output.status.success() {
        return Err(TestbedError::Program {
            program,
            reason: format!(
                "{}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            ),
        });
    }
    Ok(output.stdout)
}

fn text(program: &'static str, command: &mut Command) -> Result<String, TestbedError> {
    output(program, command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Says which file an error is about.
pub fn file(path: &Path) -> impl FnOnce(std::io::Error) -> TestbedError + '_ {
    move |source| TestbedError::File {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_general_kernel_is_chosen() {
        let names = [
            "linux-image-amd64",
            "linux-image-6.12-amd64",
            "linux-image-cloud-amd64",
            "linux-image-6.12-rt-amd64",
            "linux-image-amd64-dbg",
            "linux-image-6.12.9+deb12-amd64-unsigned",
        ];
        let general: Vec<&str> = names.into_iter().filter(|name| is_general(name)).collect();
        assert_eq!(general, names[..2]);
        assert!(version("linux-image-6.12.9+deb12-amd64") > version("linux-image-6.1.0-56-amd64"));
        assert!(
            version("linux-image-6.12.117+deb12-amd64") > version("linux-image-6.12.9+deb12-amd64")
        );
    }
}
