//! What is known of a machine: for the node, which asks, and for its supervisor, which tells. And pauses of its function.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rouse_process::instance::{Failure, Stage};
use rouse_vmm::agent::{Agent, AgentError, Owners, PauseRequest};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::life::{Begin, Life};
use super::supervisor::PATIENCE;

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
    /// Of a machine whose warden has this pid, and that is being started since `begin`.
    pub fn new(warden: u32, life: Life, begin: Instant) -> io::Result<Self> {
        let pid = i32::try_from(warden).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            warden: pidfd_open(pid, PidfdFlags::empty())?,
            told: Mutex::new(Told {
                since: Some(begin),
                ..Told::default()
            }),
            lives: Mutex::new(Lives {
                number: 0,
                now: Some(life),
            }),
        })
    }

    /// Stages that are over.
    pub fn stages(&self) -> Vec<Stage> {
        self.told().stages.clone()
    }

    /// Why the function never ran, if it is known that it did not.
    pub fn failure(&self) -> Option<Failure> {
        self.told().failure.clone()
    }

    /// Might instructions of the function have run?
    pub fn has_run(&self) -> bool {
        self.told().may_have_run
    }

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
