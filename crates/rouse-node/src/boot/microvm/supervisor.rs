//! Two threads for each machine: one takes the connections that its guest opens and sees its end, one talks to its agent.
//!
//! Whatever comes out of the machine is its function's word, and is treated so.

use std::io::{self, PipeReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use rouse_pool::keeper::Registration;
use rouse_process::instance::{ExitReason, Failure};
use rouse_sandbox::LentGroup;
use rouse_vmm::Ended;
use rouse_vmm::agent::{self, API_PORT, Agent, AgentError, CONTROL_PORT, OUTPUT_PORT, RESERVED};
use rouse_vmm::zygote::{Connections, Incoming, ZygoteError};
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::image::Held;
use super::life::Begin;
use super::live::SharedVmm;
use super::state::{Paused, State};
use super::users::User;
use crate::boot::Carried;

/// For each answer of the agent. Who waits for the function has limits of their own, and ends the machine at them.
pub const PATIENCE: Duration = Duration::from_secs(600);
/// To which a guest may connect.
pub const PORTS: [u32; 3] = [CONTROL_PORT, OUTPUT_PORT, API_PORT as u32];
/// Bytes of the console that are logged when a machine ends badly.
const CONSOLE: u64 = 4096;

/// What it has.
pub struct Supervisor {
    pub running: SharedVmm,
    pub connections: Connections,
    pub console: PipeReader,
    /// Until the machine is gone.
    pub user: User,
    /// The same.
    pub group: Arc<LentGroup>,
    /// What a copy's memory relies on, until the VMM has ended.
    pub held: Option<(Held, Option<Registration>)>,
    pub state: Arc<State>,
    pub tasks: Handle,
}

/// Hears how the machine has ended.
pub type Exit = watch::Receiver<Option<ExitReason>>;

impl Supervisor {
    /// Starts the threads, which end with the machine.
    pub fn start(self) -> io::Result<Exit> {
        let (exit, heard) = watch::channel(None);
        let exit = Arc::new(exit);
        thread::Builder::new()
            .name("microvm".into())
            .spawn(move || self.run(&exit))?;
        Ok(heard)
    }

    fn run(self, exit: &Arc<watch::Sender<Option<ExitReason>>>) {
        loop {
            match self.connections.accept() {
                Ok(Some(incoming)) => self.take(incoming, exit),
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "the connections of a machine cannot be taken; it is ended");
                    self.state.kill();
                    break;
                }
            }
        }
        let state = Arc::clone(&self.state);
        let how = self.end();
        // Before the function was started, the platform has failed.
        if let (ExitReason::Machine(how), true) = (&how, state.is_starting()) {
            state.fail(Failure::Platform(how.clone()));
        }
        // Whoever waits for its connections hears that none come any more.
        state.end_life();
        note(exit, how);
    }

    /// The guest has opened a connection, or has brought one along.
    fn take(
        &self,
        Incoming { ports, stream }: Incoming,
        exit: &Arc<watch::Sender<Option<ExitReason>>>,
    ) {
        match ports.host {
            // Any other is the function, which plays the agent.
            CONTROL_PORT if RESERVED.contains(&ports.guest) => self.talk(stream, exit),
            OUTPUT_PORT => {
                let log = self.state.life(|life| life.log.try_clone());
                self.copy(stream, log);
            }
            port if port == u32::from(API_PORT) => {
                // The relay has no other ports.
                if let Ok(port) = u16::try_from(ports.guest) {
                    let carried = Carried { port, stream };
                    self.state.life(|life| life.take_api(carried));
                }
            }
            // Nobody listens there.
            _ => {}
        }
    }

    /// The agent has come: a thread has it start the function, or lets that go on, and hears how it ends.
    fn talk(&self, stream: UnixStream, exit: &Arc<watch::Sender<Option<ExitReason>>>) {
        // A second one in a life is none.
        let Some((begin, life)) = self.state.begin() else {
            return;
        };
        let (state, exit) = (Arc::clone(&self.state), Arc::clone(exit));
        let started = thread::Builder::new()
            .name("microvm-agent".into())
            .spawn(move || {
                let error = match run_function(stream, begin, &state) {
                    // Whoever has asked for the pause had the agent, and ends the machine.
                    Ok(()) => return,
                    Err(error) => error,
                };
                if !state.is_life(life) {
                    return;
                }
                match error {
                    AgentError::Exited(how) => {
                        let how = format!("the function has ended: {how}");
                        note(&exit, ExitReason::Machine(how));
                    }
                    // The end of the machine is seen by its process, which may have a reason to tell: it is not cut short.
                    AgentError::Gone => return,
                    // Counts only before the function was started.
                    error => {
                        let why = crate::refusal::chain(&error);
                        if state.is_starting() {
                            state.fail(Failure::Platform(why.clone()));
                        }
                        note(&exit, ExitReason::Machine(why));
                    }
                }
                // Nothing is left to do in a machine without its function.
                state.kill();
            });
        if let Err(error) = started {
            self.state.fail(Failure::Platform(format!(
                "cannot talk to the guest: {error}"
            )));
            self.state.kill();
        }
    }

    /// What the function prints goes on to the log.
    fn copy(&self, stream: UnixStream, log: Option<io::Result<OwnedFd>>) {
        let Some(Ok(log)) = log else {
            return;
        };
        self.tasks.spawn(async move {
            let stream = stream
                .set_nonblocking(true)
                .and_then(|()| tokio::net::UnixStream::from_std(stream));
            let log = pipe::Sender::from_owned_fd(log);
            if let (Ok(mut stream), Ok(mut log)) = (stream, log) {
                // Either may be gone at any time.
                drop(tokio::io::copy(&mut stream, &mut log).await);
            }
        });
    }

    /// Waits until the VMM is gone, gives back what it had, and says how it ended.
    fn end(self) -> ExitReason {
        let running = self
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let ended = running.map_or(Err(ZygoteError::Gone), |running| running.wait());
        drop(self.held);
        drop(self.user);
        if self.group.oom_kills() > 0 {
            return ExitReason::OutOfMemory;
        }
        let how = match &ended {
            Ok(Ended::Off) => "the machine was switched off".to_owned(),
            Ok(Ended::Reset) => "the machine was reset: its kernel panicked".to_owned(),
            Ok(Ended::TripleFault) => "the machine's processor gave up".to_owned(),
            Err(ZygoteError::Gone) => "the machine's VMM was killed".to_owned(),
            Err(error) => error.to_string(),
        };
        let mut console = Vec::new();
        // All its writers are gone, so that this ends.
        drop(self.console.take(CONSOLE).read_to_end(&mut console));
        if !console.is_empty() {
            let console = String::from_utf8_lossy(&console);
            tracing::info!(how, %console, "a machine has ended");
        }
        ExitReason::Machine(how)
    }
}

/// Has the function started, or go on, and waits until it has ended or was paused. The error says why the conversation is over.
fn run_function(stream: UnixStream, begin: Begin, state: &State) -> Result<(), AgentError> {
    let mut agent = Agent::new(stream, PATIENCE)?;
    match begin {
        Begin::Start(start) => {
            agent.ready()?;
            state.stage("kernel");
            state.may_run();
            agent.start(start)?;
        }
        Begin::Template(start) => {
            agent.ready()?;
            state.stage("kernel");
            state.may_run();
            agent.start_template(start)?;
        }
        // Nothing of the function has run yet: what must differ in each copy is set before.
        Begin::Resume(go) => {
            if let Some(go) = go {
                // Whoever could say so may have given it up: it is being ended.
                go.recv().map_err(|_| AgentError::Gone)?;
            }
            state.may_run();
            agent.resume(agent::fresh()?)?;
        }
        Begin::Become => {
            state.may_run();
            agent.become_function(agent::fresh()?)?;
        }
    }
    state.started();
    let paused = state.may_pause(&agent)?;
    let mut listening = (agent, paused);
    loop {
        let (mut agent, paused) = listening;
        let owners = agent.paused()?;
        if !state.is_pausing() {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        }
        let (back, given_back) = mpsc::sync_channel(1);
        // Whoever has asked may have given up.
        drop(paused.try_send(Paused::new(agent, owners, back)));
        match given_back.recv() {
            Ok(again) => listening = again,
            Err(_) => return Ok(()),
        }
    }
}

/// What is said first counts.
fn note(exit: &watch::Sender<Option<ExitReason>>, how: ExitReason) {
    exit.send_if_modified(|reason| {
        let is_first = reason.is_none();
        reason.get_or_insert(how);
        is_first
    });
}
