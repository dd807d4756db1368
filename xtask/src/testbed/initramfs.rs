//! The initramfs: busybox, the modules that lead to this machine's files, the scripts, and the commands.
//!
//! It is made anew for each run, in memory: what changes from run to run goes the same way as what does not, and no file
//! is left behind or out of date. It is not compressed, as the emulated machine would be slower at that than this one.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rouse_initramfs::{Archive, modules};
use rustix::fs::MemfdFlags;

use super::kernel::{Kernel, file};
use super::options::Cgroups;
use super::{Options, TestbedError};

const BUSYBOX: &str = "/bin/busybox";
/// With those that they need, as far as they are not part of the kernel.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
];
/// Variables that commands see as they are here; so are those that begin with ROUSE_.
const ENVIRONMENT: &[&str] = &[
    "PATH",
    "HOME",
    "LANG",
    "CARGO_HOME",
    "CARGO_TARGET_DIR",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "RUST_BACKTRACE",
    "RUST_LOG",
];

/// What an initramfs is made of.
pub struct Contents<'a> {
    /// Where its modules are from.
    pub kernel: &'a Kernel,
    /// The directory in which the commands run.
    pub root: &'a Path,
    /// What to make ready before.
    pub options: &'a Options,
    /// Programs with their arguments.
    pub commands: &'a [Vec<OsString>],
}

/// A memfd with the archive; programs that are started inherit it.
pub fn build(contents: &Contents<'_>) -> Result<File, TestbedError> {
    let mut archive = Archive::default();
    for directory in ["bin", "modules", "testbed", "testbed/commands"] {
        archive.directory(directory);
    }
    archive.file("init", 0o755, include_bytes!("init.sh"));
    let busybox = fs::read(BUSYBOX).map_err(file(Path::new(BUSYBOX)))?;
    archive.file("bin/busybox", 0o755, &busybox);
    let mut order = String::new();
    for path in modules::find(&contents.kernel.modules, MODULES)? {
        let (name, bytes) = modules::read(&path)?;
        archive.file(&format!("modules/{name}"), 0o644, &bytes);
        order += &format!("{name}\n");
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    archive.file("testbed/stage2.sh", 0o644, include_bytes!("stage2.sh"));
    archive.file("testbed/settings", 0o644, &settings(contents));
    for (number, command) in contents.commands.iter().enumerate() {
        archive.file(
            &format!("testbed/commands/{number:04}"),
            0o644,
            &script(contents, command),
        );
    }
    // Not closed on exec: QEMU reads it as /proc/self/fd/N.
    rustix::fs::memfd_create("testbed-initramfs", MemfdFlags::empty())
        .map_err(io::Error::from)
        .map(File::from)
        .and_then(|mut memory| memory.write_all(&archive.finish()).map(|()| memory))
        .map_err(TestbedError::Wire)
}

/// What stage2.sh must know, as assignments of the shell.
fn settings(contents: &Contents<'_>) -> Vec<u8> {
    let Contents {
        kernel,
        root,
        options,
        ..
    } = contents;
    let hardware: Vec<&str> = [
        ("numa", options.numa),
        ("dax", options.dax),
        ("rdma", options.rdma),
        ("share", options.share.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect();
    // These get a file system of their own, so that what is below must be made visible again.
    let hidden = |path: &&PathBuf| {
        ["/tmp", "/run", "/dev/shm"]
            .iter()
            .any(|dir| path.starts_with(dir))
    };
    let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let target = target.filter(|path| path.is_absolute());
    let keep: Vec<PathBuf> = [root.to_path_buf(), kernel.modules.clone()]
        .into_iter()
        .chain(target)
        .collect();
    let keep: Vec<&OsStr> = keep
        .iter()
        .filter(hidden)
        .map(|path| path.as_os_str())
        .collect();
    let cgroups = match options.cgroups {
        Cgroups::V2 => "v2",
        Cgroups::Hybrid => "hybrid",
    };
    let mut text = Vec::new();
    for (name, value) in [
        ("HARDWARE", hardware.join(" ").into()),
        ("KEEP", keep.join(OsStr::new("\n"))),
        ("MODULES", kernel.modules.clone().into()),
        ("CGROUPS", OsString::from(cgroups)),
    ] {
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        text.extend(quoted(&value));
        text.push(b'\n');
    }
    text
}

/// A shell script that becomes the command, with the environment that it expects.
fn script(contents: &Contents<'_>, command: &[OsString]) -> Vec<u8> {
    let mut text = Vec::new();
    let mut export = |name: &OsStr, value: &OsStr| {
        text.extend_from_slice(b"export ");
        text.extend_from_slice(name.as_bytes());
        text.push(b'=');
        text.extend(quoted(value));
        text.push(b'\n');
    };
    for (name, value) in env::vars_os() {
        let ours = name.as_bytes().starts_with(b"ROUSE_") && is_variable(&name);
        if ours || ENVIRONMENT.iter().any(|wanted| name == *wanted) {
            export(&name, &value);
        }
    }
    // Tests that need the test bed, or what it may have, see it by these.
    export(OsStr::new("ROUSE_TESTBED"), OsStr::new("1"));
    if contents.options.numa {
        export(OsStr::new("ROUSE_TESTBED_FAR_NODE"), OsStr::new("1"));
    }
    if contents.options.dax {
        export(OsStr::new("ROUSE_TESTBED_DAX"), OsStr::new("/mnt/dax"));
    }
    if contents.options.rdma {
        export(OsStr::new("ROUSE_TESTBED_RDMA"), OsStr::new("rxe0"));
    }
    text.extend_from_slice(b"cd ");
    text.extend(quoted(contents.root.as_os_str()));
    text.extend_from_slice(b" || exit 125\nexec");
    for word in command {
        text.push(b' ');
        text.extend(quoted(word));
    }
    text.push(b'\n');
    text
}

fn is_variable(name: &OsStr) -> bool {
    name.as_bytes()
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// One word of the shell, whatever is in it.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut text = vec![b'\''];
    for byte in word.as_bytes() {
        match byte {
            b'\'' => text.extend_from_slice(b"'\\''"),
            _ => text.push(*byte),
        }
    }
    text.push(b'\'');
    text
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn the_shell_reads_words_as_they_were() {
        let word = OsString::from_vec(b"a 'b' \"$c\" \\ `d`\n\xff;".to_vec());
        let mut script = b"printf %s ".to_vec();
        script.extend(quoted(&word));
        let output = Command::new("sh")
            .arg("-c")
            .arg(OsString::from_vec(script))
            .output()
            .expect("there is a shell");
        assert_eq!(output.stdout, word.as_bytes());
    }
}
