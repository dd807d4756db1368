//! Puts processes into a slot.
//!
//! A pid namespace must belong to the sandbox's user namespace, so its maker has to be in that. The spawner cannot go
//! there and come back; a process that borrows its memory goes instead (the porter):
//!
//! ```text
//! spawner ---vfork---> porter: control groups, namespaces of the slot's home, uid 0
//!    .                   opens the runtime API's sockets
//!    .                   clone3 ---> init    pid 1 of new pid, mount and ipc namespaces; a child of the spawner
//!    .                   enters these
//!    .                   clone3 ---> blank   pid 2; a child of the spawner
//!    '<---- ends --------'
//! ```

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::BlankMain;
use super::slots::Slot;
use crate::config::{Limits, SandboxKind};
use crate::kernel::api_socket::ApiSockets;
use crate::kernel::clone::{BorrowerStack, CloneRequest, Side, borrow_memory, clone3};
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

/// Fills `inhabitants` in this order: sockets, init, blank. After an error what has been made is there.
pub fn populate(
    slot: &Slot,
    limits: &Limits,
    kind: SandboxKind,
    blank_main: BlankMain,
    stack: &mut BorrowerStack,
    inhabitants: &mut Inhabitants,
) -> io::Result<()> {
    let home = slot
        .home
        .as_ref()
        .ok_or_else(|| io::Error::other("the slot has no namespaces"))?;
    let (status, their_status) = socket::pair()?;
    let (control, their_control) = socket::pair()?;
    // The copies that become init and blank each own one of these; here they are closed when both are made.
    let mut theirs = Some((their_status, their_control));
    let mut control = Some(control);
    // SAFETY: the spawner has a single thread. The closure returns in the porter; the copies never do.
    let outcome = unsafe {
        borrow_memory(stack, || {
            let (their_status, their_control) = theirs
                .take()
                .ok_or_else(|| io::Error::other("the porter has run before"))?;
            slot.groups
                .enter(0)
                .map_err(explain("enter the control groups"))?;
            home.enter().map_err(explain("enter the namespaces"))?;
            process::become_user(0, 0).map_err(explain("become uid 0"))?;
            inhabitants.sockets =
                Some(ApiSockets::open().map_err(explain("open the runtime API's port"))?);
            // Only in processes that let themselves be dumped may others of the same user look for their namespaces.
            // A change of user takes that away, and init does once it is told to.
            set_dumpable_behavior(DumpableBehavior::Dumpable)
                .map_err(|error| explain("stay visible")(error.into()))?;
            let request = CloneRequest {
                namespaces: init::NAMESPACES as u64,
                sibling: true,
                ..CloneRequest::default()
            };
            let init = match clone3(&request).map_err(explain("make the init process"))? {
                Side::Child => init::run(their_status, limits),
                Side::Parent(init) => inhabitants.init.insert(init),
            };
            if kind == SandboxKind::ForkTarget {
                return socket::send(&status, init::GO, &[]);
            }
            // A pid namespace cannot be entered by a process, only given to its children. Pid 2 is free: the
            // function's processes come later, and init makes none.
            namespace::enter(&init.pidfd, init::NAMESPACES)
                .map_err(explain("enter init's namespaces"))?;
            socket::send(&status, init::GO, &[])?;
            let request = CloneRequest {
                pid: Some(BLANK_PID),
                sibling: true,
                ..CloneRequest::default()
            };
            match clone3(&request).map_err(explain("make the blank process"))? {
                Side::Child => blank::run(their_control, blank_main),
                Side::Parent(blank) => inhabitants.blank = control.take().map(|end| (blank, end)),
            }
            Ok(())
        })
    };
    inhabitants.status = Some(status);
    match outcome.map_err(explain("make a process"))? {
        Some(outcome) => outcome,
        None => Err(io::Error::other("the porter failed")),
    }
}

fn explain(step: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot {step}: {error}"))
}
