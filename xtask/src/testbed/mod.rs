//! `cargo xtask testbed`: a machine with the hardware that this one lacks, made of software, to run tests in.
//!
//! Debian's kernel boots under `qemu-system-x86_64` without hardware virtualisation. Inside there are hardware virtual
//! machines (`/dev/kvm` by emulated SVM), and, when asked for, a NUMA node without processors (what a CXL memory
//! expander looks like to Linux), persistent memory with DAX, RDMA over Ethernet, memory protection keys. The files are
//! this machine's, read-only below an overlay that is lost at the end. So a test that needs such hardware is built here
//! and runs there, unchanged. Times measured in there mean nothing; behaviour does.
//!
//! ```text
//!  xtask ──spawns──> qemu ── boots ──> init.sh (initramfs) ──> stage2.sh (pid 1 on this machine's files)
//!    │                 │                                          │
//!    │   ttyS0: console└── kernel log, kept for failures ────────>│ for each command:
//!    │   port 1: control   <── "booted", "exit N" ───────────────>│   sh /run/testbed/commands/N
//!    └── ports 2, 3        <── its standard output and error ─────┘
//! ```
//!
//! Nothing is left behind: the initramfs lives in a memfd, the wires are socket pairs, and QEMU dies with xtask.

mod emulator;
mod error;
mod initramfs;
mod kernel;
mod options;
mod packages;
mod session;

pub use kernel::Kernel;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

pub use error::TestbedError;
pub use options::Options;

/// What `cargo xtask testbed` ends with when the test bed itself failed: the machine did not boot, panicked or hung.
/// The same number that `timeout(1)` and `env(1)` use for failures of their own.
const FAILED: u8 = 125;

/// Boots a machine, runs `commands` in it one after the other, in `root`, and returns the exit status of the first that
/// fails, else 0. A command is a program and its arguments; one that was killed by a signal counts as 128 + signal.
/// What they print is passed on at once.
///
/// # Errors
/// When the machine cannot be prepared, does not boot, panics, ends too early, or when the commands take too long.
pub fn run(root: &Path, options: &Options, commands: &[Vec<OsString>]) -> Result<u8, TestbedError> {
    packages::install(options)?;
    let kernel = kernel::fetch(options.kernel.as_deref())?;
    let initramfs = initramfs::build(&initramfs::Contents {
        kernel: &kernel,
        root,
        options,
        commands,
    })?;
    session::run(&kernel, &initramfs, options)
}

/// The kernel that a machine with the default options runs: a distribution's, as tests of other machines want one.
///
/// # Errors
/// When it cannot be downloaded.
pub fn default_kernel() -> Result<Kernel, TestbedError> {
    kernel::fetch(None)
}

/// The command `cargo xtask testbed`.
pub fn main(root: &Path, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let (options, commands) = match options::parse(arguments) {
        Ok(Some(parsed)) => parsed,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprint!("xtask: {error}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(root, &options, &commands) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            crate::report("test bed: ", &error);
            ExitCode::from(FAILED)
        }
    }
}
