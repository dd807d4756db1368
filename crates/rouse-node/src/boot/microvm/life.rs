//! One life of a machine's function: from its start, or from its snapshot, to its end, or until its machine is put back to the snapshot.
//! Each has channels of its own.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use rouse_vmm::agent::Start;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::sync::mpsc;

use crate::boot::{BootError, Carried};

/// Connections of a runtime that may wait to be served; a machine has at most 64.
const WAITING: usize = 64;
/// How long the VMM may take to hand out the connection of the parked request.
const HANDED_OUT: Duration = Duration::from_secs(60);

/// The machine's side: where what comes out of it goes.
pub struct Life {
    /// What the agent is told when it comes, once.
    pub agent: Option<Begin>,
    /// Who takes the connection to the API on which the runtime was parked, and its port.
    pub parked: Option<(u16, SyncSender<Carried>)>,
    /// The others.
    pub api: mpsc::Sender<Carried>,
    /// What the function prints.
    pub log: OwnedFd,
}

/// How the function begins.
pub enum Begin {
    /// It is started in a machine that has just booted.
    Start(Start),
    /// The same of a runtime without a function, of which a template is made.
    Template(Start),
    /// It goes on in a copy of its machine, when this is heard, if something is to be waited for.
    Resume(Option<Receiver<()>>),
    /// A copy of a template becomes the function.
    Become,
}

/// The node's side.
pub struct Channels {
    pub api: mpsc::Receiver<Carried>,
    pub log: OwnedFd,
}

/// What the node has of a copy that has not gone on yet.
pub struct Copied {
    pub channels: Channels,
    /// Lets it go on, if it waits.
    pub go: Option<SyncSender<()>>,
    parked: Receiver<Carried>,
}

impl Life {
    /// Of a function that is started.
    pub fn started(start: Start) -> io::Result<(Self, Channels)> {
        Self::new(Begin::Start(start), None)
    }

    /// Of a runtime that is started to become a template.
    pub fn template(start: Start) -> io::Result<(Self, Channels)> {
        Self::new(Begin::Template(start), None)
    }

    /// Of a copy of a template that was parked on the connection from port `parked`.
    pub fn of_template(parked: u16) -> io::Result<(Self, Copied)> {
        Self::copy(Begin::Become, parked, None)
    }

    /// Of a copy that goes on at once, or when it is told to. Its runtime was parked on the connection from port `parked`.
    pub fn copied(parked: u16, waits: bool) -> io::Result<(Self, Copied)> {
        let (go, heard) = match waits {
            true => {
                let (go, heard) = sync_channel(1);
                (Some(go), Some(heard))
            }
            false => (None, None),
        };
        Self::copy(Begin::Resume(heard), parked, go)
    }

    fn copy(begin: Begin, port: u16, go: Option<SyncSender<()>>) -> io::Result<(Self, Copied)> {
        let (sender, parked) = sync_channel(1);
        let (life, channels) = Self::new(begin, Some((port, sender)))?;
        let copied = Copied {
            channels,
            go,
            parked,
        };
        Ok((life, copied))
    }

    fn new(
        begin: Begin,
        parked: Option<(u16, SyncSender<Carried>)>,
    ) -> io::Result<(Self, Channels)> {
        let (api, receiver) = mpsc::channel(WAITING);
        let (reader, log) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let life = Self {
            agent: Some(begin),
            parked,
            api,
            log,
        };
        let channels = Channels {
            api: receiver,
            log: reader,
        };
        Ok((life, channels))
    }

    /// A connection to the API has come out.
    pub fn take_api(&mut self, connection: Carried) {
        // Where nobody takes it any more, or so many wait, it is closed.
        match self.parked.take() {
            // What was open when the machine was written down comes after the agent. Before that, it is of another life.
            Some(parked) if self.agent.is_some() => self.parked = Some(parked),
            Some((port, parked)) if port == connection.port => {
                drop(parked.try_send(connection));
            }
            parked => {
                self.parked = parked;
                drop(self.api.try_send(connection));
            }
        }
    }
}

impl Copied {
    /// The connection on which the runtime was parked. Blocks until it has come out.
    pub fn parked(&self) -> Result<Carried, BootError> {
        self.parked
            .recv_timeout(HANDED_OUT)
            .map_err(|error| match error {
                // Whatever ended it says nothing of its snapshot.
                RecvTimeoutError::Disconnected => {
                    BootError::from_outside("the machine ended before its function went on")
                }
                RecvTimeoutError::Timeout => {
                    BootError::new("the machine did not bring the connection of its parked request")
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_was_open_comes_after_the_agent() {
        let (mut life, copied) = Life::copied(7, false).unwrap();
        let connection = |port| {
            let (stream, other) = UnixStream::pair().unwrap();
            (Carried { port, stream }, other)
        };
        let (stale, mut other) = connection(7);
        life.take_api(stale);
        assert_eq!(
            io::Read::read(&mut other, &mut [0]).unwrap(),
            0,
            "it is closed"
        );
        assert!(life.agent.take().is_some());
        let mut others = vec![other];
        // The runtime may have had others; and the same port again, later.
        let mut channels = copied.channels;
        for port in [3, 7, 9, 7] {
            let (open, other) = connection(port);
            others.push(other);
            life.take_api(open);
        }
        assert_eq!(copied.parked.try_recv().unwrap().port, 7);
        let later = std::iter::from_fn(|| channels.api.try_recv().ok());
        let later: Vec<u16> = later.map(|carried| carried.port).collect();
        assert_eq!(later, [3, 9, 7]);
    }

    #[test]
    fn a_copy_of_a_template_becomes_a_function_at_once() {
        let (life, copied) = Life::of_template(7).unwrap();
        assert!(matches!(life.agent, Some(Begin::Become)));
        assert!(copied.go.is_none() && life.parked.is_some());
    }

    #[test]
    fn a_machine_that_ends_is_not_waited_for() {
        let (life, copied) = Life::copied(7, true).unwrap();
        drop(life);
        assert!(copied.parked().unwrap_err().is_from_outside);
    }
}
