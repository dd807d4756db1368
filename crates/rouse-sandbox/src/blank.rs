//! Processes that the spawner makes for the node to use: the blank of a sandbox, and template hosts.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Signal;

use crate::kernel::{namespace, process, socket};
use crate::sandbox::BlankContext;
use crate::spawner::BlankMain;

/// Runs a blank process, born in its sandbox as uid 0 of the sandbox's user namespace.
///
/// `control` is its socket to the node, which reads why it has failed, should it fail before `main` runs.
pub fn run(control: OwnedFd, main: BlankMain) -> ! {
    process::run_child(|| {
        // First of all: the spawner may have more descriptors open than a blank may have.
        let Ok(control) = process::keep_one_descriptor(control) else {
            return 1;
        };
        match settle() {
            Ok(()) => main(BlankContext { control }),
            Err((step, error)) => {
                let words = format!("the blank process cannot {step}: {error}");
                let _ = socket::send(&control, words.as_bytes(), &[]);
                1
            }
        }
    })
}

fn settle() -> Result<(), (&'static str, io::Error)> {
    let at = |step| move |error: io::Error| (step, error);
    // The function gets its own, lower limits when the blank becomes it.
    process::limit_resource(libc::RLIMIT_NOFILE, process::BLANK_DESCRIPTORS)
        .map_err(at("limit its descriptors"))?;
    // Its memory is a copy of the spawner's.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|error| at("hide its memory")(error.into()))?;
    // Leaves the spawner's session; the function leads a session of its own.
    rustix::process::setsid().map_err(|error| at("start a session")(error.into()))?;
    // The spawner catches no signal, but blocks all.
    process::unblock_signals();
    let _ = rustix::thread::set_name(c"blank");
    Ok(())
}

/// Runs a template host: a child of the spawner with the host's file system and all its rights.
pub fn run_template_host(control: OwnedFd, host: impl AsFd, main: BlankMain) -> ! {
    process::run_child(|| {
        let ready = rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(io::Error::from)
            .and_then(|()| namespace::enter(host, libc::CLONE_NEWNS))
            .and_then(|()| keep_template_descriptors(control));
        process::reset_signals();
        let _ = rustix::thread::set_name(c"rouse-template");
        match ready {
            Ok(control) => main(BlankContext { control }),
            Err(_) => 1,
        }
    })
}

fn keep_template_descriptors(control: OwnedFd) -> io::Result<OwnedFd> {
    rustix::process::chdir("/")?;
    process::keep_one_descriptor(control)
}
