//! What machine is wanted, and the command line that says so.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

pub const USAGE: &str = "usage: cargo xtask testbed [OPTIONS] [--script FILE]... [-- COMMAND [ARGUMENT...]]

Boots Debian's kernel on an emulated machine with hardware virtual machines (/dev/kvm), over this machine's files
(changes are lost at the end), runs the scripts and then COMMAND there in the checkout, and ends with the status of the
first that fails. Status 125: the machine did not boot, panicked or hung.

  --numa             a second NUMA node with 1 GiB and no processors, as a CXL expander has
  --dax              persistent memory, 1 GiB, ext4 with DAX on /mnt/dax
  --rdma             soft RoCE: the RDMA device rxe0
  --pku              a processor with memory protection keys
  --cgroup v2|hybrid control groups: one v2 tree with all controllers (default), or v1 controllers and a bare v2 tree
  --memory MIB       memory of the machine (default 4096)
  --cpus N           its processors (default: as many as this machine has, at most 4)
  --timeout SECONDS  for all commands together, from the end of the boot (default 1800)
  --kernel PACKAGE   a Debian kernel package, as linux-image-amd64 (default: the newest that apt has)
  --share DIRECTORY  a directory of this machine that is writable there, as /run/share
  --script FILE      a shell script to run; may be given several times
  --console          print the machine's console to standard error, too
";

/// How control groups are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cgroups {
    /// One v2 tree with all controllers, as current distributions have.
    V2,
    /// The v1 controllers that the kernel has, each on its own, and a v2 tree without controllers.
    Hybrid,
}

/// What machine is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// A second NUMA node, with memory only.
    pub numa: bool,
    /// Persistent memory, formatted and mounted with DAX on `/mnt/dax`.
    pub dax: bool,
    /// An RDMA device, `rxe0`.
    pub rdma: bool,
    /// Memory protection keys.
    pub pku: bool,
    /// How control groups are mounted.
    pub cgroups: Cgroups,
    /// Memory, without that of `numa` and `dax`, in MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// For all commands together, from the end of the boot.
    pub timeout: Duration,
    /// The Debian package of the kernel; the newest that apt has when `None`.
    pub kernel: Option<String>,
    /// A directory of this machine that is writable in the test bed, as `/run/share`.
    pub share: Option<PathBuf>,
    /// Whether the console is printed as it comes.
    pub console: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            numa: false,
            dax: false,
            rdma: false,
            pku: false,
            cgroups: Cgroups::V2,
            memory_mib: 4096,
            cpus: thread::available_parallelism()
                .map_or(2, |n| u32::try_from(n.get()).unwrap_or(4).min(4)),
            timeout: Duration::from_secs(1800),
            kernel: None,
            share: None,
            console: false,
        }
    }
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// An option that does not exist.
    #[error("unknown option {0}")]
    Unknown(String),
    /// An option without its value.
    #[error("{0} needs a value")]
    NoValue(&'static str),
    /// A value out of range.
    #[error("{option} cannot be {value:?}: {wanted}")]
    Value {
        /// The option.
        option: &'static str,
        /// What was given.
        value: OsString,
        /// What is possible.
        wanted: &'static str,
    },
    /// A script that cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Script {
        /// The script.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Neither a command nor a script.
    #[error("nothing to run")]
    NoCommand,
}

type Parsed = (Options, Vec<Vec<OsString>>);

/// The machine and the commands that the arguments ask for; `None` when they ask for help.
pub fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Option<Parsed>, UsageError> {
    let mut options = Options::default();
    let mut commands = Vec::new();
    while let Some(argument) = arguments.next() {
        let mut value = |option| arguments.next().ok_or(UsageError::NoValue(option));
        match argument.to_str() {
            Some("--") => break,
            Some("-h" | "--help") => return Ok(None),
            Some("--numa") => options.numa = true,
            Some("--dax") => options.dax = true,
            Some("--rdma") => options.rdma = true,
            Some("--pku") => options.pku = true,
            Some("--console") => options.console = true,
            Some("--cgroup") => {
                let given = value("--cgroup")?;
                options.cgroups = match given.to_str() {
                    Some("v2") => Cgroups::V2,
                    Some("hybrid") => Cgroups::Hybrid,
                    _ => {
                        return Err(UsageError::Value {
                            option: "--cgroup",
                            value: given,
                            wanted: "v2 or hybrid",
                        });
                    }
                };
            }
            Some("--memory") => {
                options.memory_mib = number("--memory", &value("--memory")?, 512, 1 << 20)?;
            }
            Some("--cpus") => options.cpus = number("--cpus", &value("--cpus")?, 1, 64)?,
            Some("--timeout") => {
                let seconds = number("--timeout", &value("--timeout")?, 1, 1 << 20)?;
                options.timeout = Duration::from_secs(seconds.into());
            }
            Some("--kernel") => {
                let given = value("--kernel")?;
                let name = given.to_str().filter(|name| is_package(name));
                let name = name.ok_or_else(|| UsageError::Value {
                    option: "--kernel",
                    value: given.clone(),
                    wanted: "the name of a package that begins with linux-image-",
                })?;
                options.kernel = Some(name.to_owned());
            }
            Some("--share") => options.share = Some(value("--share")?.into()),
            Some("--script") => {
                // Its text, not its name: it may lie where the test bed has a file system of its own.
                let path = PathBuf::from(value("--script")?);
                match fs::read(&path) {
                    Ok(text) => {
                        let text = OsString::from_vec(text);
                        commands.push(vec!["sh".into(), "-ec".into(), text, path.into()]);
                    }
                    Err(source) => return Err(UsageError::Script { path, source }),
                }
            }
            _ => return Err(UsageError::Unknown(argument.to_string_lossy().into_owned())),
        }
    }
    let command: Vec<OsString> = arguments.collect();
    if !command.is_empty() {
        commands.push(command);
    }
    if commands.is_empty() {
        return Err(UsageError::NoCommand);
    }
    Ok(Some((options, commands)))
}

fn number(option: &'static str, value: &OsStr, least: u32, most: u32) -> Result<u32, UsageError> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| UsageError::Value {
            option,
            value: value.to_owned(),
            wanted: "a whole number in the range that makes sense",
        })
}

/// It becomes an argument of apt and a folder's name.
fn is_package(name: &str) -> bool {
    name.starts_with("linux-image-")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-.+~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Option<Parsed>, UsageError> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn options_end_where_the_command_begins() {
        let (options, commands) = parsed("--numa --memory 2048 --script /dev/null -- ls --dax --")
            .expect("a right line")
            .expect("no help was asked for");
        assert!(options.numa && !options.dax);
        assert_eq!(options.memory_mib, 2048);
        assert_eq!(
            commands,
            [
                vec!["sh", "-ec", "", "/dev/null"],
                vec!["ls", "--dax", "--"]
            ]
        );
    }

    #[test]
    fn wrong_lines_are_refused() {
        let message = |line| parsed(line).expect_err("a wrong line").to_string();
        assert_eq!(message(""), "nothing to run");
        assert_eq!(message("--numa --"), "nothing to run");
        assert_eq!(message("--cpus"), "--cpus needs a value");
        assert_eq!(message("--far -- ls"), "unknown option --far");
        // A command without the two dashes is a mistake more often than a command.
        assert_eq!(message("ls"), "unknown option ls");
        assert!(message("--script /nowhere").starts_with("cannot read /nowhere: "));
        for line in [
            "--memory 0 -- ls",
            "--cpus two -- ls",
            "--cgroup v3 -- ls",
            "--kernel ../linux-image- -- ls",
        ] {
            assert!(message(line).contains(" cannot be "), "{line}");
        }
    }
}
