//! All sandboxes of the spawner, from the first clone to the last reaped process.
//!
//! ```text
//!  (request) --slot with namespaces---------------------> Init --init: "ready"--> Live --release--> Ending --reaped--> (released)
//!      |                                                    ^                       |                                    ^
//!      '--> Home --maker: "ready"--> (Connecting) ----------'                       '--init dies--> Ended ----release----'
//!
//!  any failure: answered, then Ending
//! ```

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::process::Signal;

use super::populate::{Inhabitants, Porter};
use super::protocol::{Event, Extra};
use super::slots::{Slot, Slots};
use super::{BlankMain, outbound, tell};
use crate::cgroup::{Cgroups, MemoryAccounts};
use crate::config::{Limits, Network, SandboxKind};
use crate::home::{self, Home};
use crate::kernel::api_socket::ApiSockets;
use crate::kernel::clone::{CloneRequest, Side, clone3};
use crate::kernel::socket;
use crate::root::Roots;
use crate::sandbox::Process;
use crate::{blank, init};

/// Between two looks for killed children when the spawner ends.
const END_PAUSE: Duration = Duration::from_micros(500);

#[derive(Debug)]
enum Stage {
    /// The slot's namespaces are in the making.
    Home { status: OwnedFd },
    /// The way to the network is in the making.
    Connecting { status: OwnedFd },
    /// Init builds the sandbox.
    Init {
        status: OwnedFd,
        blank: Option<(Process, OwnedFd)>,
        sockets: ApiSockets,
    },
    /// The node has it.
    Live,
    /// Its init has died, and the node has not given it back.
    Ended,
    /// Killed; some of its processes have not been reaped.
    Ending,
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// Makes namespaces.
    Maker,
    /// Carries packets.
    Outbound,
    /// Pid 1.
    Init,
}

#[derive(Debug)]
struct Entry {
    request: u64,
    slot: Slot,
    limits: Limits,
    kind: SandboxKind,
    /// Those that must be reaped before the slot is free. (Init cannot be while there is a blank process.)
    processes: Vec<(Role, Process)>,
    stage: Stage,
}

impl Entry {
    fn kill(&self, role: &Role) {
        for (_, process) in self.processes.iter().filter(|(other, _)| other == role) {
            // Fails only if it has ended already; then it is reaped soon.
            let _ = rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL);
        }
    }

    fn take_down(&mut self) {
        for role in [Role::Init, Role::Outbound, Role::Maker] {
            self.kill(&role);
        }
        self.stage = Stage::Ending;
    }
}

/// All sandboxes.
#[derive(Debug)]
pub struct Nursery {
    socket: OwnedFd,
    cgroups: Cgroups,
    host_mounts: OwnedFd,
    uid_base: u32,
    blank_main: BlankMain,
    next_id: u64,
    roots: Roots,
    slots: Slots,
    entries: BTreeMap<u64, Entry>,
    /// Whose groups processes of the node's are in.
    lent: BTreeMap<u64, Slot>,
    porter: Porter,
}

impl Nursery {
    /// None yet. `host_mounts` is the host's mount namespace.
    pub fn new(
        socket: OwnedFd,
        cgroups: Cgroups,
        host_mounts: OwnedFd,
        roots: Roots,
        uid_base: u32,
        blank_main: BlankMain,
        porter: Porter,
    ) -> Nursery {
        Nursery {
            socket,
            cgroups,
            host_mounts,
            uid_base,
            blank_main,
            next_id: 1,
            roots,
            slots: Slots::new(),
            entries: BTreeMap::new(),
            lent: BTreeMap::new(),
            porter,
        }
    }

    /// The socket to the node.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sandboxes in the making, with the socket on which to hear from each.
    pub fn growing(&self) -> impl Iterator<Item = (u64, BorrowedFd<'_>)> {
        self.entries
            .iter()
            .filter_map(|(id, entry)| match &entry.stage {
                Stage::Home { status }
                | Stage::Connecting { status }
                | Stage::Init { status, .. } => Some((*id, status.as_fd())),
                Stage::Live | Stage::Ended | Stage::Ending => None,
            })
    }

    /// Whether a killed sandbox has not been reaped.
    pub fn is_taking_down(&self) -> bool {
        self.entries
            .values()
            .any(|entry| matches!(entry.stage, Stage::Ending))
    }

    /// Gives up what no sandbox has needed for a while.
    pub fn tidy(&mut self) {
        self.slots.trim(&self.cgroups);
    }

    /// Starts to make a sandbox.
    pub fn create(&mut self, request: u64, limits: Limits, kind: SandboxKind) {
        let slot = match self.slots.take(&self.cgroups, &limits) {
            Ok(slot) => slot,
            Err(error) => {
                let reason = format!("cannot prepare the control groups: {error}");
                return tell(&self.socket, &Event::Failed { request, reason }, &[]);
            }
        };
        let id = self.next_id;
        self.next_id += 1;
        let furnished = slot.home.is_some();
        let entry = Entry {
            request,
            slot,
            limits,
            kind,
            processes: Vec::new(),
            stage: Stage::Ending,
        };
        self.entries.insert(id, entry);
        let begun = if furnished {
            self.populate(id)
        } else {
            self.start_maker(id)
        };
        if let Err(error) = begun {
            self.fail(id, error.to_string());
        }
    }

    /// Starts to make the namespaces of a slot.
    fn start_maker(&mut self, id: u64) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(());
        };
        let (ours, theirs) = socket::pair()?;
        let request = CloneRequest {
            namespaces: home::NAMESPACES as u64,
            ..CloneRequest::default()
        };
        // SAFETY: the spawner has a single thread.
        let maker = match unsafe { clone3(&request) }.map_err(explain("make the namespaces"))? {
            Side::Child => home::run_maker(theirs),
            Side::Parent(maker) => maker,
        };
        let pid = maker.pid;
        entry.processes.push((Role::Maker, maker));
        let first = entry.slot.number.saturating_mul(2);
        home::map_users(pid, self.uid_base.saturating_add(first))
            .map_err(explain("map the users"))?;
        entry
            .slot
            .groups
            .take_in(pid)
            .map_err(explain("enter the control groups"))?;
        socket::send(&ours, home::GO, &[])?;
        entry.stage = Stage::Home { status: ours };
        Ok(())
    }

    /// The maker of a slot's namespaces is done.
    fn settle(&mut self, id: u64) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(());
        };
        let maker = entry
            .processes
            .iter()
            .find(|(role, _)| *role == Role::Maker);
        let Some((_, maker)) = maker else {
            return Err(io::Error::other("the maker of the namespaces has ended"));
        };
        let home = Home::of(maker.pid).map_err(explain("open the namespaces"))?;
        entry.kill(&Role::Maker);
        if entry.limits.network == Network::None {
            entry.slot.home = Some(home);
            return self.populate(id);
        }
        let (process, status) = outbound::start(&home, &self.host_mounts)
            .map_err(explain("start the outbound network"))?;
        entry.slot.home = Some(home);
        entry.processes.push((Role::Outbound, process));
        entry.stage = Stage::Connecting { status };
        Ok(())
    }

    /// Makes the processes of a sandbox.
    fn populate(&mut self, id: u64) -> io::Result<()> {
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(());
        };
        // Before init, whose namespace is a copy of this one; gone when this is over.
        let root = self.roots.prepare().map_err(explain("mount the root"))?;
        let mut made = Inhabitants::default();
        let outcome = self.porter.populate(
            &entry.slot,
            &entry.limits,
            entry.kind,
            self.blank_main,
            &mut made,
        );
        drop(root);
        entry
            .processes
            .extend(made.init.map(|init| (Role::Init, init)));
        outcome?;
        let (Some(status), Some(sockets)) = (made.status, made.sockets) else {
            return Err(io::Error::other("the sandbox is incomplete"));
        };
        entry.stage = Stage::Init {
            status,
            blank: made.blank,
            sockets,
        };
        Ok(())
    }

    /// Hears from a sandbox in the making.
    pub fn advance(&mut self, id: u64) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let (status, expected) = match &entry.stage {
            Stage::Home { status } => (status, home::READY),
            Stage::Connecting { status } => (status, outbound::READY),
            Stage::Init { status, .. } => (status, init::READY),
            Stage::Live | Stage::Ended | Stage::Ending => return,
        };
        match socket::receive(status) {
            Ok(Some((message, _))) if message == expected => {}
            Ok(Some((message, _))) => {
                return self.fail(id, String::from_utf8_lossy(&message).into_owned());
            }
            Ok(None) => {
                return self.fail(
                    id,
                    "a process of the sandbox ended while it was being made".into(),
                );
            }
            Err(error) => return self.fail(id, format!("cannot hear from the sandbox: {error}")),
        }
        let outcome = match std::mem::replace(&mut entry.stage, Stage::Live) {
            Stage::Home { .. } => self.settle(id),
            Stage::Connecting { .. } => self.populate(id),
            Stage::Init { blank, sockets, .. } => {
                self.hand_over(id, blank.as_ref(), &sockets);
                Ok(())
            }
            stage => {
                entry.stage = stage;
                Ok(())
            }
        };
        if let Err(error) = outcome {
            self.fail(id, error.to_string());
        }
    }

    /// Gives a finished sandbox to the node.
    fn hand_over(&self, id: u64, blank: Option<&(Process, OwnedFd)>, sockets: &ApiSockets) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let Some((_, init)) = entry.processes.iter().find(|(role, _)| *role == Role::Init) else {
            return;
        };
        let mut descriptors = vec![
            init.pidfd.as_fd(),
            sockets.listener.as_fd(),
            sockets.client.as_fd(),
            sockets.server.as_fd(),
        ];
        let mut extras = Vec::new();
        let mut further = |extra, descriptor| {
            extras.push(extra);
            descriptors.push(descriptor);
        };
        if let Some((process, control)) = blank {
            further(Extra::BlankPidfd, process.pidfd.as_fd());
            further(Extra::BlankControl, control.as_fd());
        }
        let memory = entry.slot.groups.memory();
        for entrance in entry.slot.groups.entrances() {
            further(Extra::CgroupEntrance, entrance);
        }
        hand_out(memory.as_ref(), further);
        let event = Event::Created {
            request: entry.request,
            sandbox: id,
            init: init.pid,
            blank: blank.map(|(process, _)| process.pid),
            extras,
        };
        tell(&self.socket, &event, &descriptors);
    }

    /// Lends control groups to processes of the node's.
    pub fn lend(&mut self, request: u64, limits: &Limits) {
        let slot = match self.slots.take_bare(&self.cgroups, limits) {
            Ok(slot) => slot,
            Err(error) => {
                let reason = format!("cannot prepare the control groups: {error}");
                return tell(&self.socket, &Event::Failed { request, reason }, &[]);
            }
        };
        let group = self.next_id;
        self.next_id += 1;
        let (mut extras, mut descriptors) = (Vec::new(), Vec::new());
        let memory = slot.groups.memory();
        let mut further = |extra, descriptor| {
            extras.push(extra);
            descriptors.push(descriptor);
        };
        for procs in slot.groups.procs() {
            further(Extra::CgroupProcs, procs);
        }
        hand_out(memory.as_ref(), further);
        let event = Event::Group {
            request,
            group,
            extras,
        };
        tell(&self.socket, &event, &descriptors);
        drop(descriptors);
        drop(memory);
        self.lent.insert(group, slot);
    }

    /// Takes them back.
    pub fn take_back(&mut self, group: u64) {
        if let Some(slot) = self.lent.remove(&group) {
            self.slots.give(slot);
        }
    }

    /// Makes a template host.
    pub fn create_template_host(&self, request: u64, main: BlankMain) {
        let made = socket::pair().and_then(|(control, their_control)| {
            // SAFETY: the spawner has a single thread.
            match unsafe { clone3(&CloneRequest::default()) }? {
                Side::Child => blank::run_template_host(their_control, &self.host_mounts, main),
                Side::Parent(process) => Ok((process, control)),
            }
        });
        match made {
            Ok((process, control)) => {
                let descriptors = [process.pidfd.as_fd(), control.as_fd()];
                tell(
                    &self.socket,
                    &Event::TemplateHost {
                        request,
                        pid: process.pid,
                    },
                    &descriptors,
                );
            }
            Err(error) => {
                let reason = format!("cannot make a template host: {error}");
                tell(&self.socket, &Event::Failed { request, reason }, &[]);
            }
        }
    }

    /// Answers a request that cannot be fulfilled, and takes down what exists of its sandbox.
    fn fail(&mut self, id: u64, reason: String) {
        if let Some(entry) = self.entries.get_mut(&id) {
            tell(
                &self.socket,
                &Event::Failed {
                    request: entry.request,
                    reason,
                },
                &[],
            );
            entry.take_down();
            self.forget_if_empty(id);
        }
    }

    /// The node gives a sandbox back.
    pub fn release(&mut self, id: u64) {
        match self.entries.get_mut(&id) {
            Some(entry) => {
                entry.take_down();
                self.forget_if_empty(id);
            }
            None => tell(&self.socket, &Event::Released { sandbox: id }, &[]),
        }
    }

    /// Reaps every child that has ended.
    pub fn reap(&mut self) {
        let mut status = 0;
        loop {
            // SAFETY: stores the status in a local.
            let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG | libc::__WALL) };
            if pid <= 0 {
                return;
            }
            tell(&self.socket, &Event::Exit { pid, status }, &[]);
            let found = self.entries.iter().find_map(|(id, entry)| {
                let at = entry
                    .processes
                    .iter()
                    .position(|(_, process)| process.pid == pid)?;
                Some((*id, at))
            });
            if let Some((id, at)) = found {
                self.bury(id, at);
            }
        }
    }

    /// Process `at` of a sandbox has been reaped.
    fn bury(&mut self, id: u64, at: usize) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let (role, process) = entry.processes.remove(at);
        drop(process);
        match (&entry.stage, role) {
            // Without it the sandbox has no network, which its function is told by every connection.
            (Stage::Live, Role::Outbound) => {}
            (Stage::Live, Role::Init) => {
                entry.kill(&Role::Outbound);
                entry.stage = Stage::Ended;
            }
            // The maker has done its work in all stages but the first.
            (Stage::Home { .. }, _) | (_, Role::Init | Role::Outbound) => {
                // Its last words explain the end better than the end itself.
                self.advance(id);
                let entry = self.entries.get(&id);
                if entry.is_some_and(|entry| matches!(entry.stage, Stage::Init { .. })) {
                    self.fail(
                        id,
                        "the sandbox's init ended while it was being made".into(),
                    );
                }
            }
            (_, Role::Maker) => {}
        }
        self.forget_if_empty(id);
    }

    /// Gives back what an ending sandbox had, once all its processes are reaped.
    fn forget_if_empty(&mut self, id: u64) {
        let is_over =
            |entry: &Entry| matches!(entry.stage, Stage::Ending) && entry.processes.is_empty();
        if self.entries.get(&id).is_some_and(is_over)
            && let Some(entry) = self.entries.remove(&id)
        {
            self.slots.give(entry.slot);
            tell(&self.socket, &Event::Released { sandbox: id }, &[]);
        }
    }

    /// Kills and reaps every child, and removes the control groups.
    pub fn end(self) {
        for entry in self.entries.values() {
            entry.kill(&Role::Init);
        }
        // Template hosts, and whatever else has become a child. Killing one may make another: orphans are adopted.
        loop {
            let children =
                std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
            for pid in children
                .split_whitespace()
                .filter_map(|text| rustix::process::Pid::from_raw(text.parse().ok()?))
            {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            // SAFETY: reaps children and stores nothing.
            match unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) } {
                0 => std::thread::sleep(END_PAUSE),
                -1 => break,
                _ => {}
            }
        }
        self.cgroups.remove();
    }
}

/// What the node needs of a slot's memory.
fn hand_out<'a>(
    memory: Option<&'a MemoryAccounts<'a>>,
    mut further: impl FnMut(Extra, BorrowedFd<'a>),
) {
    if let Some(memory) = memory {
        further(Extra::MemoryEvents, memory.events);
        if let Some(peak) = &memory.peak {
            further(Extra::MemoryPeak, peak.as_fd());
        }
    }
}

fn explain(step: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("cannot {step}: {error}"))
}
