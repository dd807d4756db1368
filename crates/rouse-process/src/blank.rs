//! The life of a blank process: wait for an order, then become something else.
//!
//! Blanks are what Catalyzer calls Zygotes: processes that exist before anybody knows for which
//! function. They and the template hosts run the same code; they differ in where they live
//! (inside of a sandbox or outside) and in the program that they are given.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rouse_sandbox::{BlankContext, exec};

use crate::kernel;
use crate::order::{self, Order};
use crate::plan::{RECEIVE_BASE, waiting_room};

/// Entry of a blank process and of a template host. Never returns.
pub fn main(context: BlankContext) -> ! {
    let error = match run(context) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    // The node sees the end of the control socket and the exit status; stderr is for a person.
    let _ = writeln!(io::stderr(), "rouse blank process: {error}");
    std::process::exit(126);
}

enum Never {}

fn run(context: BlankContext) -> io::Result<Never> {
    kernel::reset_signals()?;
    let control = occupy(context.control)?;
    match order::receive(control.as_fd())? {
        // The node is gone, or does not need this process.
        None => std::process::exit(0),
        Some((Order::Exec(request), fds)) => {
            let [log, task] =
                <[OwnedFd; 2]>::try_from(fds).map_err(|_| io::ErrorKind::InvalidData)?;
            exec::exec(request, task, log, control)
        }
        Some((Order::Wait { len, entry }, fds)) => {
            let [image] = <[OwnedFd; 1]>::try_from(fds).map_err(|_| io::ErrorKind::InvalidData)?;
            Err(wait(image.as_fd(), len, entry))
        }
    }
}

/// Moves `control` to the number [`RECEIVE_BASE`] and occupies every number below it.
///
/// The kernel gives received descriptors the lowest free numbers: afterwards these are the ones
/// behind the control socket, which is what programs are compiled for.
fn occupy(control: OwnedFd) -> io::Result<OwnedFd> {
    let null = std::fs::File::open("/dev/null")?;
    // Out of the way first: the socket may itself have a number below the base.
    let high = rustix::io::fcntl_dupfd_cloexec(&control, RECEIVE_BASE + 1)?;
    drop(control);
    for number in 0..RECEIVE_BASE {
        kernel::dup_to(null.as_fd(), number)?;
    }
    kernel::dup_to(high.as_fd(), RECEIVE_BASE)?;
    // Its number is one of those that must stay occupied.
    std::mem::forget(null);
    // SAFETY: `dup_to` has just made this number, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(RECEIVE_BASE) })
}

/// Leaves this program for the waiting room. Returns only on failure.
fn wait(image: BorrowedFd<'_>, len: u64, entry: u64) -> io::Error {
    if let Err(error) = kernel::block_signals().and_then(|()| kernel::unregister_rseq()) {
        return error;
    }
    // SAFETY: the node is the only sender of orders, and the image is the room that it compiled.
    // Signals are blocked and the restartable sequence is unregistered, as `enter` asks.
    unsafe { rouse_restorer::enter::enter(image, waiting_room::BASE, len, entry) }
}
