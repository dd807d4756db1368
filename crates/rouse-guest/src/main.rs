//! The first program inside of a microVM.
//!
//! It makes the machine's file systems ready, says on the console what machine it found itself in, and switches the
//! machine off. It is pid 1, so a panic of this program is a panic of the kernel: all that can fail is reported, and ends in
//! a machine that is off.

mod report;

use std::process::ExitCode;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// What the kernel shows of itself, each with its file system.
const FILE_SYSTEMS: [(&str, &str); 3] =
    [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")];

fn main() -> ExitCode {
    match start() {
        Ok(report) => println!("rouse-guest: ready: {report}"),
        Err(failure) => println!("rouse-guest: failed: {failure}"),
    }
    // Nothing was written anywhere that a power failure could harm, so there is nothing to sync.
    if let Err(errno) = reboot(RebootCommand::PowerOff) {
        println!("rouse-guest: failed: cannot switch the machine off: {errno}");
    }
    ExitCode::FAILURE
}

fn start() -> Result<String, String> {
    for (place, kind) in FILE_SYSTEMS {
        mount(kind, place, kind, MountFlags::NOSUID, None)
            .map_err(|errno| format!("cannot mount {kind} on {place}: {errno}"))?;
    }
    report::machine()
}
