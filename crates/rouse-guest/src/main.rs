//! The first program inside of a microVM.
//!
//! ```text
//!  kernel ──> modules ──> root (a disk below a tmpfs) ──> agent <── vsock ──> host
//!                                                          └─ function ── loopback ── relay ── vsock ──> runtime API
//! ```
//!
//! It is pid 1, so a panic of this program is a panic of the kernel, which ends the machine: all that can fail is reported
//! before, on the console, and ends in a machine that is off.

mod agent;
mod fresh;
mod function;
mod modules;
mod network;
mod package;
mod reclaim;
mod relay;
mod report;
mod root;
mod survey;

use std::process::ExitCode;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// What the kernel shows of itself, each with its file system.
const FILE_SYSTEMS: [(&str, &str); 3] =
    [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")];

fn main() -> ExitCode {
    if let Err(failure) = start() {
        println!("rouse-guest: failed: {failure}");
    }
    // Nothing was written anywhere that a power failure could harm, so there is nothing to sync.
    if let Err(errno) = reboot(RebootCommand::PowerOff) {
        println!("rouse-guest: failed: cannot switch the machine off: {errno}");
    }
    ExitCode::FAILURE
}

fn start() -> Result<(), String> {
    for (place, kind) in FILE_SYSTEMS {
        mount(kind, place, kind, MountFlags::NOSUID, None)
            .map_err(|errno| format!("cannot mount {kind} on {place}: {errno}"))?;
    }
    modules::load()?;
    let has_root = root::enter()?;
    let report = report::machine()?;
    println!("rouse-guest: ready: {report}");
    match agent::connect() {
        Ok(host) => agent::serve(host, report, has_root),
        // A machine without anybody to talk to has booted, and that is all there is for it to do.
        Err(reason) => {
            println!("rouse-guest: no host to talk to: {reason}");
            Ok(())
        }
    }
}
