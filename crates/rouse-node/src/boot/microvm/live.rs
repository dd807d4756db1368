//! A machine as the node knows it: a VMM process, by its pidfd, and what its guest has said.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rouse_pool::memory::ImageMemory;
use rouse_pool::pagemap::Pagemap;
use rouse_process::instance::{Failure, MemoryUse, Stage};
use rouse_process::launcher::Launcher;
use rouse_sandbox::LentGroup;
use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::working_set::WorkingSet;
use rouse_vmm::agent::{Agent, AgentError, Owners, PauseRequest};
use rouse_vmm::zygote::Running;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::image::MachineImage;
use super::life::{Begin, Life};
use super::supervisor::{Exit, PATIENCE};
use crate::boot::{BoxFuture, Live};

/// What is known of a machine, for the node and for its supervisor.
pub struct State {
    /// The warden, which ends with the VMM, and the VMM with it.
    warden: OwnedFd,
    told: Mutex<Told>,
    lives: Mutex<Lives>,
}

#[derive(Debug, Default)]
struct Told {
    stages: Vec<Stage>,
    since: Option<Instant>,
    failure: Option<Failure>,
    may_have_run: bool,
    is_started: bool,
    pause: Pause,
}

/// Why a function does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// Nor did it run; nothing has changed.
    #[error("the function does not run in its machine")]
    NotRunning,
    /// Its machine has ended.
    #[error("the machine has ended")]
    Gone(#[source] io::Error),
    /// Nobody knows what it does.
    #[error("the guest did not stop its function")]
    NotStopped,
}

/// The life that the machine is in, and its number.
struct Lives {
    number: u64,
    now: Option<Life>,
}

/// A pause for a snapshot.
#[derive(Debug, Default)]
enum Pause {
    /// The function does not run.
    #[default]
    Impossible,
    /// It can be asked for, and heard.
    Possible(PauseRequest, Receiver<Paused>),
    /// It was asked for.
    Asked,
}

/// A machine whose function stands still.
#[derive(Debug)]
pub struct Paused {
    agent: Agent,
    /// Whose its pages are, as far as its guest says so.
    pub owners: Owners,
    back: SyncSender<Listening>,
}

/// Whoever listens to an agent while its function runs, and whom to tell when that was paused.
pub type Listening = (Agent, SyncSender<Paused>);

impl Paused {
    /// `back` listens to the agent when the function goes on.
    pub fn new(agent: Agent, owners: Owners, back: SyncSender<Listening>) -> Self {
        Self {
            agent,
            owners,
            back,
        }
    }

    /// Lets the function go on as if nothing had been.
    pub fn go_on(self, state: &State) -> Result<(), AgentError> {
        let Self {
            mut agent, back, ..
        } = self;
        agent.go_on()?;
        let paused = state.may_pause(&agent)?;
        (back.try_send((agent, paused))).map_err(|_| AgentError::Gone)
    }
}

impl State {
    /// Ends the machine.
    pub fn kill(&self) {
        // It may have ended already.
        let _ = pidfd_send_signal(&self.warden, Signal::KILL);
    }

    /// A stage is over.
    pub fn stage(&self, name: &'static str) {
        let mut told = self.told();
        let since = told.since.replace(Instant::now());
        let us = since.map_or(0, |since| since.elapsed().as_micros() as u64);
        told.stages.push(Stage { name, us });
    }

    /// From now on instructions of the function may run.
    pub fn may_run(&self) {
        self.told().may_have_run = true;
    }

    /// The function's runtime was started, or goes on.
    pub fn started(&self) {
        self.stage("runtime");
        self.told().is_started = true;
    }

    /// Was it not yet?
    pub fn is_starting(&self) -> bool {
        !self.told().is_started
    }

    /// From now on it can be asked to pause. Returns whom to tell when it has.
    pub fn may_pause(&self, agent: &Agent) -> io::Result<SyncSender<Paused>> {
        let (sender, paused) = sync_channel(1);
        self.told().pause = Pause::Possible(agent.pause_request()?, paused);
        Ok(sender)
    }

    /// Has the function stand still. Whoever drops what is returned ends it: its agent is gone.
    pub fn pause(&self) -> Result<Paused, PauseError> {
        let possible = {
            let mut told = self.told();
            match std::mem::take(&mut told.pause) {
                Pause::Possible(request, paused) => {
                    told.pause = Pause::Asked;
                    Some((request, paused))
                }
                other => {
                    told.pause = other;
                    None
                }
            }
        };
        let (request, paused) = possible.ok_or(PauseError::NotRunning)?;
        request.send().map_err(PauseError::Gone)?;
        (paused.recv_timeout(PATIENCE)).map_err(|_| PauseError::NotStopped)
    }

    /// Was it asked for?
    pub fn is_pausing(&self) -> bool {
        matches!(self.told().pause, Pause::Asked)
    }

    /// The function never ran. What is said first counts.
    pub fn fail(&self, failure: Failure) {
        self.told().failure.get_or_insert(failure);
    }

    /// What the agent is told that has come, and the number of this life. Nothing, if it was told before.
    pub fn begin(&self) -> Option<(Begin, u64)> {
        let mut lives = self.lives();
        let begin = lives.now.as_mut()?.agent.take()?;
        Some((begin, lives.number))
    }

    /// Something of this life has come out.
    pub fn life<T>(&self, take: impl FnOnce(&mut Life) -> T) -> Option<T> {
        self.lives().now.as_mut().map(take)
    }

    /// Is it still in the life with this number?
    pub fn is_life(&self, number: u64) -> bool {
        self.lives().number == number
    }

    /// The machine is about to be put back to its snapshot: what comes out from now on is of another life, or worth nothing.
    pub fn begin_life(&self, life: Life) {
        let last = {
            let mut lives = self.lives();
            lives.number += 1;
            lives.now.replace(life)
        };
        // Closes what the node gave it.
        drop(last);
        *self.told() = Told {
            since: Some(Instant::now()),
            ..Told::default()
        };
    }

    /// Nothing comes out any more.
    pub fn end_life(&self) {
        let last = self.lives().now.take();
        drop(last);
    }

    fn lives(&self) -> MutexGuard<'_, Lives> {
        self.lives.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("told", &self.told)
            .finish_non_exhaustive()
    }
}

/// An instance. Its machine ends when this is dropped.
#[derive(Debug)]
pub struct Machine {
    state: Arc<State>,
    warden: u32,
    running: SharedVmm,
    group: Arc<LentGroup>,
    /// It runs no function, and has booted: a template can be made of it.
    pub is_template: bool,
    /// Of which snapshot it is a copy. That has it, when it waits.
    image: Weak<MachineImage>,
    /// The same, while it is in use: a snapshot of it refers to that one.
    in_use: Option<Arc<MachineImage>>,
    /// What it maps of that one, if it lies on far memory.
    far: Option<Arc<ImageMemory>>,
    /// Lets it go on, if it waits.
    go: Option<SyncSender<()>>,
    /// Hears its end, once it is supervised.
    exit: Option<Exit>,
    /// Who wants to know what it touches until it answers.
    observer: Option<Observer>,
    has_answered: AtomicBool,
}

/// Sees what a machine touches.
#[derive(Debug)]
pub struct Observer {
    pub image: Arc<MachineImage>,
    pub launcher: Launcher,
    /// Where the guest's memory begins in the VMM.
    pub base: u64,
}

impl Observer {
    /// Pages of the guest that it has touched so far, by their addresses.
    fn touched(&self, vmm: i32) -> io::Result<WorkingSet> {
        let memory = self.base..self.base + self.image.snapshot.hardware.memory_pages * PAGE_SIZE;
        let pages = Pagemap::open(vmm)?;
        let to_guest = |ranges: Vec<Range<u64>>| {
            let range = |range: Range<u64>| range.start - self.base..range.end - self.base;
            ranges.into_iter().map(range).collect()
        };
        Ok(WorkingSet {
            written: to_guest(pages.private_pages(&memory)?),
            read: to_guest(pages.file_pages(&memory)?),
        })
    }
}

/// The VMM: of its machine's supervisor, which waits for its end, and of whoever writes the machine down.
pub type SharedVmm = Arc<Mutex<Option<Running>>>;

impl Machine {
    /// A machine that runs in `group`, and is being started since `begin`.
    pub fn new(
        running: Running,
        group: Arc<LentGroup>,
        life: Life,
        begin: Instant,
    ) -> io::Result<Self> {
        let warden = running.pid();
        let pid = i32::try_from(warden).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        let state = State {
            warden: pidfd_open(pid, PidfdFlags::empty())?,
            told: Mutex::new(Told {
                since: Some(begin),
                ..Told::default()
            }),
            lives: Mutex::new(Lives {
                number: 0,
                now: Some(life),
            }),
        };
        state.stage("sandbox");
        Ok(Self {
            state: Arc::new(state),
            warden,
            running: Arc::new(Mutex::new(Some(running))),
            group,
            is_template: false,
            image: Weak::new(),
            in_use: None,
            far: None,
            go: None,
            exit: None,
            observer: None,
            has_answered: AtomicBool::new(false),
        })
    }

    /// It is a copy of this snapshot, and goes on when `go` is told so, if that is there.
    pub fn copied(&mut self, image: &Arc<MachineImage>, go: Option<SyncSender<()>>) {
        self.image = Arc::downgrade(image);
        // One that waits for `go` may wait in its snapshot.
        self.in_use = go.is_none().then(|| Arc::clone(image));
        self.go = go;
    }

    /// It maps this memory of the snapshot.
    pub fn maps(&mut self, memory: &Arc<ImageMemory>) {
        self.far = memory.far_file().is_some().then(|| Arc::clone(memory));
    }

    /// It waits no longer.
    pub fn take_into_use(&mut self) {
        self.in_use = self.image.upgrade();
    }

    /// The snapshot of which it is a copy, if that is still loaded, as it is while the copy is in use.
    pub fn image(&self) -> Option<Arc<MachineImage>> {
        self.image.upgrade()
    }

    /// This hears its end.
    pub fn supervised(&mut self, exit: Exit) {
        self.exit = Some(exit);
    }

    /// What hears its end.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.clone()
    }

    /// What it touches until it answers is to be known.
    pub fn observe(&mut self, observer: Observer) {
        self.observer = Some(observer);
    }

    pub fn running(&self) -> SharedVmm {
        Arc::clone(&self.running)
    }

    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state)
    }

    /// Pid of the VMM.
    fn vmm(&self) -> io::Result<i32> {
        let warden = self.warden;
        let children = fs::read_to_string(format!("/proc/{warden}/task/{warden}/children"))?;
        let vmm = children.split_whitespace().next();
        let vmm = vmm.and_then(|pid| pid.parse().ok());
        vmm.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A file that the kernel has about it.
    fn proc_file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.vmm()?))
    }
}

/// KiB behind `name` in a file of lines `name: 12 kB`.
fn kib(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.strip_prefix(':')?.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl Live for Machine {
    fn kill(&self) {
        self.state.kill();
    }

    /// Of the VMM, with the guest's memory in it.
    fn memory(&self) -> io::Result<MemoryUse> {
        let rollup = self.proc_file("smaps_rollup")?;
        let uss_kib = kib(&rollup, "Private_Clean") + kib(&rollup, "Private_Dirty");
        Ok(MemoryUse {
            pss_kib: kib(&rollup, "Pss"),
            uss_kib,
            rss_kib: kib(&rollup, "Rss"),
            private_pages: uss_kib / 4,
            peak_bytes: self.memory_peak(),
            ..MemoryUse::default()
        })
    }

    fn stages(&self) -> Vec<Stage> {
        self.state.told().stages.clone()
    }

    fn failure(&self) -> Option<Failure> {
        self.state.told().failure.clone()
    }

    fn memory_peak(&self) -> u64 {
        self.group.memory_peak()
    }

    fn resume(&self) -> io::Result<()> {
        match &self.go {
            Some(go) => (go.try_send(())).map_err(|_| io::ErrorKind::BrokenPipe.into()),
            None => Ok(()),
        }
    }

    fn has_run(&self) -> bool {
        self.state.told().may_have_run
    }

    fn verify_far(&self) -> BoxFuture<'_, Option<String>> {
        let verified = self.image().zip(self.far.clone());
        Box::pin(async move {
            let (image, memory) = verified?;
            let verify = move || image.verify_far(&memory);
            // Cancelled only when the node ends.
            tokio::task::spawn_blocking(verify).await.ok()?
        })
    }

    fn is_to_be_observed(&self) -> bool {
        self.observer.is_some() && !self.has_answered.swap(true, Ordering::Relaxed)
    }

    fn learn(&self) {
        let Some(observer) = &self.observer else {
            return;
        };
        let seen = self.vmm().and_then(|vmm| observer.touched(vmm));
        match seen {
            Ok(seen) => observer.image.learn(seen, &observer.launcher),
            // It has ended, for instance.
            Err(error) => tracing::debug!(%error, "what a machine has touched is not known"),
        }
    }

    /// Of all threads of the VMM.
    fn cpu_time(&self) -> io::Result<Duration> {
        // Behind the program's name, which may have anything in it.
        let stat = self.proc_file("stat")?;
        let (_, rest) = stat.rsplit_once(')').ok_or(io::ErrorKind::InvalidData)?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Ok(Duration::from_millis(ticks * 1000 / per_second))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.state.kill();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_found_behind_their_names() {
        let text = "Rss:\t  1234 kB\nPss:  7 kB\nPss_Dirty: 8 kB\n";
        let found = ["Rss", "Pss", "Pss_Dirty", "Swap"].map(|name| super::kib(text, name));
        assert_eq!(found, [1234, 7, 8, 0]);
    }
}
