//! Puts processes into a slot.
//!
//! A pid namespace must belong to the sandbox's user namespace, so its maker has to be in that. The spawner cannot go
//! there and come back; a process that borrows its memory goes instead (the porter):
//!
//! ```text
//! spawner ---vfork---> porter: control groups, namespaces of the slot's home, uid 0
//!    .                   opens the runtime API's sockets, then goes on with a small table of descriptors of its own
//!    .                   clone3 ---> init    pid 1 of new pid, mount and ipc namespaces; a child of the spawner
//!    .                   enters these
//!    .                   clone3 ---> blank   pid 2; a child of the spawner
//!    '<---- ends --------'
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::BlankMain;
use super::slots::Slot;
use crate::config::{Limits, SandboxKind};
use crate::kernel::api_socket::ApiSockets;
use crate::kernel::clone::{BorrowerStack, CloneRequest, Side, borrow_memory, clone3};
use crate::kernel::luggage::Luggage;
use crate::kernel::{namespace, process, socket};
use crate::sandbox::Process;
use crate::{blank, init};

/// Pid of the blank process in its sandbox.
const BLANK_PID: i32 = 2;

/// The processes of a sandbox.
#[derive(Debug, Default)]
pub struct Inhabitants {
    /// Its init. Everything else ends with it.
    pub init: Option<Process>,
    /// The blank process, and the node's end of its control socket.
    pub blank: Option<(Process, OwnedFd)>,
    /// The runtime API's sockets.
    pub sockets: Option<ApiSockets>,
    /// Init says here when the sandbox is built.
    pub status: Option<OwnedFd>,
}

/// What the porter takes along: the status and the control socket for init and blank, and its own end of the first.
pub type PorterLuggage = Luggage<3>;

/// What a porter needs besides the slot, used again and again.
#[derive(Debug)]
pub struct Porter {
    stack: BorrowerStack,
    luggage: PorterLuggage,
}

impl Porter {
    /// To be made before the spawner has many descriptors.
    pub fn new() -> io::Result<Porter> {
        Ok(Porter {
            stack: BorrowerStack::new(),
            luggage: PorterLuggage::reserve()?,
        })
    }

    /// Fills `inhabitants` in this order: sockets, init, blank. After an error what has been made is there.
    pub fn populate(
        &mut self,
        slot: &Slot,
        limits: &Limits,
        kind: SandboxKind,
        blank_main: BlankMain,
        inhabitants: &mut Inhabitants,
    ) -> io::Result<()> {
        let home = slot
            .home
            .as_ref()
            .ok_or_else(|| io::Error::other("the slot has no namespaces"))?;
        let (status, their_status) = socket::pair()?;
        let (control, their_control) = socket::pair()?;
        let Porter { stack, luggage } = self;
        let mut pids = Pids::default();
        // SAFETY: the spawner has a single thread. The closure returns in the porter; the copies never do.
        let outcome = unsafe {
            borrow_memory(stack, || {
                slot.groups
                    .enter()
                    .map_err(explain("enter the control groups"))?;
                home.enter().map_err(explain("enter the namespaces"))?;
                process::become_user(0, 0).map_err(explain("become uid 0"))?;
                inhabitants.sockets =
                    Some(ApiSockets::open().map_err(explain("open the runtime API's port"))?);
                // From here on the porter opens for itself, and closes only that.
                luggage
                    .leave_with([their_status.as_fd(), their_control.as_fd(), status.as_fd()])
                    .map_err(explain("leave the spawner's descriptors"))?;
                make_processes(luggage.numbers(), limits, kind, blank_main, &mut pids)
            })
        };
        luggage.unpack()?;
        inhabitants.status = Some(status);
        // They are the spawner's children, which it reaps, so the numbers are theirs.
        let found = |pid: i32| -> io::Result<Process> {
            let number = rustix::process::Pid::from_raw(pid)
                .ok_or_else(|| io::Error::other("the porter has made no process"))?;
            let pidfd = rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty())?;
            Ok(Process { pid, pidfd })
        };
        inhabitants.init = pids.init.map(found).transpose()?;
        let blank = pids.blank.map(found).transpose()?;
        inhabitants.blank = blank.map(|blank| (blank, control));
        match outcome.map_err(explain("make a process"))? {
            Some(outcome) => outcome,
            None => Err(io::Error::other("the porter failed")),
        }
    }
}

/// Processes that the porter has made.
#[derive(Debug, Default)]
struct Pids {
    init: Option<i32>,
    blank: Option<i32>,
}

/// Makes init, and the blank process unless the sandbox is for a clone.
///
/// # Safety
/// The caller is the porter: nobody else runs in its memory, and its descriptors with these numbers (the status socket for
/// init, the control socket for the blank process, the spawner's status socket) have no owner.
unsafe fn make_processes(
    [their_status, their_control, status]: [RawFd; 3],
    limits: &Limits,
    kind: SandboxKind,
    blank_main: BlankMain,
    made: &mut Pids,
) -> io::Result<()> {
    // Only in processes that let themselves be dumped may others of the same user look for their namespaces.
    // A change of user takes that away, and init does once it is told to.
    set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(|error| explain("stay visible")(error.into()))?;
    // SAFETY: it is open until the porter has ended, which closes its table.
    let status = unsafe { BorrowedFd::borrow_raw(status) };
    let request = CloneRequest {
        namespaces: init::NAMESPACES as u64,
        sibling: true,
        ..CloneRequest::default()
    };
    // SAFETY: the porter alone uses its memory.
    let init = match unsafe { clone3(&request) }.map_err(explain("make the init process"))? {
        // SAFETY: in the child's table nobody owns the number; what the porter took along had no owner.
        Side::Child => init::run(unsafe { OwnedFd::from_raw_fd(their_status) }, limits),
        Side::Parent(init) => init,
    };
    made.init = Some(init.pid);
    if kind == SandboxKind::ForkTarget {
        return socket::send(status, init::GO, &[]);
    }
    // A pid namespace cannot be entered by a process, only given to its children. Pid 2 is free: the
    // function's processes come later, and init makes none.
    namespace::enter(&init.pidfd, init::NAMESPACES).map_err(explain("enter init's namespaces"))?;
    let request = CloneRequest {
        pid: Some(BLANK_PID),
        sibling: true,
        ..CloneRequest::default()
    };
    // SAFETY: as above.
    match unsafe { clone3(&request) }.map_err(explain("make the blank process"))? {
        // SAFETY: as above.
        Side::Child => blank::run(unsafe { OwnedFd::from_raw_fd(their_control) }, blank_main),
        Side::Parent(blank) => made.blank = Some(blank.pid),
    }
    // Init changes the root now, and the blank process with it.
    socket::send(status, init::GO, &[])
}

fn explain(step: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot {step}: {error}"))
}
