//! Why the test bed could not run the commands to their end.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::step::StepError;

/// Why the test bed failed. A command that fails in it is no error: its status is returned.
#[derive(Debug, thiserror::Error)]
pub enum TestbedError {
    /// Debian packages could not be installed.
    #[error("cannot install what the test bed needs")]
    Packages(#[source] StepError),
    /// apt knows no such kernel.
    #[error("apt has no kernel package {name}; is this Debian, and are its package lists there?")]
    NoKernel {
        /// The package that was looked for.
        name: String,
    },
    /// A program of this machine could not be run or failed.
    #[error("{program} failed: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// Its status and what it printed.
        reason: String,
    },
    /// A module of the kernel cannot be had.
    #[error(transparent)]
    Module(#[from] rouse_initramfs::modules::ModuleError),
    /// The kernel package does not hold what it should.
    #[error("the kernel package in {} has no {what}", directory.display())]
    KernelContents {
        /// Where it was unpacked.
        directory: PathBuf,
        /// What is missing.
        what: String,
    },
    /// A file of this machine could not be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A wire to the machine or the memory of its initramfs could not be made.
    #[error("cannot prepare the machine's files and wires")]
    Wire(#[source] io::Error),
    /// QEMU could not be started.
    #[error("cannot start qemu-system-x86_64")]
    Start(#[source] io::Error),
    /// QEMU's end could not be waited for.
    #[error("cannot wait for qemu-system-x86_64")]
    Wait(#[source] io::Error),
    /// The machine ended without an answer.
    #[error("{reason} (QEMU: {status}, after {after:.1?})\n{console}")]
    Died {
        /// In one sentence, as far as the console tells it.
        reason: String,
        /// Before a command had begun, its kernel ran into its own patching: another boot may do.
        tripped: bool,
        /// How QEMU ended.
        status: ExitStatus,
        /// Since its start.
        after: Duration,
        /// The end of the console's log, and what QEMU said.
        console: String,
    },
    /// The machine or a command hangs.
    #[error("{what} within {limit:.0?}; the machine was ended\n{console}")]
    Hung {
        /// What did not happen.
        what: &'static str,
        /// How long it was waited for.
        limit: Duration,
        /// The end of the console's log, with the tasks that were blocked or running.
        console: String,
    },
}
