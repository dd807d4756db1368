//! The host's end of the conversation with the agent in a guest (`rouse_guest::protocol`).
//!
//! The agent connects, so the host listens first and then boots or restores the machine:
//!
//! ```text
//!  booted:    listen ─> Machine::boot ──> accept ─> ready ─> start ─> ... ─> pause ─> snapshot
//!  restored:  listen ─> restore ────────> accept ─> resume ─> ...
//!  template:  start_template in the place of start, and in each copy become_function in the place of resume
//! ```

use std::fs;
use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rouse_guest::owners::Parts;
pub use rouse_guest::owners::{Owner, Owners, OwnersError};
use rouse_guest::protocol::{self, ToGuest, ToHost};
pub use rouse_guest::protocol::{API_PORT, CONTROL_PORT, Fresh, OUTPUT_PORT, RESERVED, Start};

/// A guest did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The connection is broken, or what came was no message, or nothing came in time.
    #[error("cannot talk to the guest")]
    Connection(#[from] io::Error),
    /// The machine has ended.
    #[error("the guest has closed its connection")]
    Gone,
    /// The function has ended.
    #[error("the function has ended: {0}")]
    Exited(String),
    /// In the guest's words.
    #[error("the guest says: {0}")]
    Failed(String),
    /// What it says of its pages is nonsense.
    #[error("what the guest says of its pages makes no sense")]
    Owners(#[from] OwnersError),
    /// Another answer than can come to this.
    #[error("the guest has answered {0:?}, which is no answer")]
    Unexpected(ToHost),
}

/// Where the ports of a machine are: one Unix socket each, in a directory.
#[must_use]
pub fn socket(directory: &Path, port: u32) -> PathBuf {
    directory.join(port.to_string())
}

/// Waits for the agent of one machine. The socket goes with it.
#[derive(Debug)]
pub struct AgentListener {
    listener: UnixListener,
    path: PathBuf,
}

impl AgentListener {
    /// Listens in the directory of a machine.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn bind(directory: &Path) -> io::Result<Self> {
        let path = socket(directory, CONTROL_PORT);
        Ok(Self {
            listener: UnixListener::bind(&path)?,
            path,
        })
    }

    /// The agent, which then has `patience` for each answer.
    ///
    /// # Errors
    /// If it does not connect.
    pub fn accept(&self, patience: Duration) -> Result<Agent, AgentError> {
        let (stream, _) = self.listener.accept()?;
        Ok(Agent::new(stream, patience)?)
    }
}

impl Drop for AgentListener {
    fn drop(&mut self) {
        // Whoever removed the directory has removed it too.
        drop(fs::remove_file(&self.path));
    }
}

/// An agent that is connected.
#[derive(Debug)]
pub struct Agent {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    patience: Duration,
}

impl Agent {
    /// The agent at the other end of `stream`, which has `patience` for each answer.
    ///
    /// # Errors
    /// If the socket cannot be prepared.
    pub fn new(stream: UnixStream, patience: Duration) -> io::Result<Self> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            writer: stream.try_clone()?,
            reader: BufReader::new(stream),
            patience,
        })
    }

    /// Waits, however long, until the function was paused, for which a [`PauseRequest`] has asked. Returns what
    /// [`pause`](Self::pause) does.
    ///
    /// # Errors
    /// How the function or the machine has ended; or what was said instead.
    pub fn paused(&mut self) -> Result<Owners, AgentError> {
        self.writer.set_read_timeout(None)?;
        let owners = self.owners();
        self.writer.set_read_timeout(Some(self.patience))?;
        owners
    }

    /// What asks for a pause while somebody waits in [`paused`](Self::paused).
    ///
    /// # Errors
    /// If the host gives no descriptor.
    pub fn pause_request(&self) -> io::Result<PauseRequest> {
        self.writer.try_clone().map(PauseRequest)
    }

    /// Waits until the machine has booted; returns a line about it. Only after a boot.
    ///
    /// # Errors
    /// If it has not.
    pub fn ready(&mut self) -> Result<String, AgentError> {
        match self.receive()? {
            ToHost::Ready(report) => Ok(report),
            other => Err(AgentError::Unexpected(other)),
        }
    }

    /// Starts the function's runtime.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self, start: Start) -> Result<(), AgentError> {
        self.ask(&ToGuest::Start(start), &ToHost::Started)
    }

    /// Starts the runtime of a language template, without the disk of a package.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_template(&mut self, start: Start) -> Result<(), AgentError> {
        self.ask(&ToGuest::Template(start), &ToHost::Started)
    }

    /// Stops the function before a snapshot. It runs no instruction after this, until it is resumed. Returns what the guest
    /// says of its pages: nothing, if its kernel does not tell. It may be a lie, on which nothing but speed may depend.
    ///
    /// # Errors
    /// If it does not stop, or says nonsense.
    pub fn pause(&mut self) -> Result<Owners, AgentError> {
        protocol::send(&mut self.writer, &ToGuest::Pause)?;
        self.owners()
    }

    /// What comes before an agent says that the function is paused.
    fn owners(&mut self) -> Result<Owners, AgentError> {
        let mut parts = Parts::default();
        loop {
            match self.receive()? {
                ToHost::Owners(part) => parts.push(&part)?,
                ToHost::Paused => return Ok(parts.finish()?),
                other => return Err(AgentError::Unexpected(other)),
            }
        }
    }

    /// Lets it go on, after `fresh` has been set.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn resume(&mut self, fresh: Fresh) -> Result<(), AgentError> {
        self.ask(&ToGuest::Resume(fresh), &ToHost::Resumed)
    }

    /// Lets a template go on as a function, after its package's disk was mounted and `fresh` was set.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn become_function(&mut self, fresh: Fresh) -> Result<(), AgentError> {
        self.ask(&ToGuest::Become(fresh), &ToHost::Resumed)
    }

    /// Lets it go on in the machine that was paused, as if nothing had been.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn go_on(&mut self) -> Result<(), AgentError> {
        self.ask(&ToGuest::GoOn, &ToHost::Resumed)
    }

    /// Asks the guest to switch its machine off.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn off(mut self) -> Result<(), AgentError> {
        Ok(protocol::send(&mut self.writer, &ToGuest::Off)?)
    }

    fn ask(&mut self, question: &ToGuest, answer: &ToHost) -> Result<(), AgentError> {
        protocol::send(&mut self.writer, question)?;
        let found = self.receive()?;
        if found == *answer {
            Ok(())
        } else {
            Err(AgentError::Unexpected(found))
        }
    }

    fn receive(&mut self) -> Result<ToHost, AgentError> {
        match protocol::receive(&mut self.reader)? {
            None => Err(AgentError::Gone),
            Some(ToHost::Failed(reason)) => Err(AgentError::Failed(reason)),
            Some(ToHost::Exited(how)) => Err(AgentError::Exited(how)),
            Some(message) => Ok(message),
        }
    }
}

/// Asks an agent to stop its function before a snapshot; whoever listens to it hears when it has.
#[derive(Debug)]
pub struct PauseRequest(UnixStream);

impl PauseRequest {
    /// Asks.
    ///
    /// # Errors
    /// If the agent is gone.
    pub fn send(mut self) -> io::Result<()> {
        protocol::send(&mut self.0, &ToGuest::Pause)
    }
}

/// What makes a machine differ from all others, now.
///
/// # Errors
/// If the host has no randomness.
pub fn fresh() -> io::Result<Fresh> {
    let mut random = [0; 32];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let unix_time = SystemTime::UNIX_EPOCH.elapsed().map_err(io::Error::other)?;
    Ok(Fresh {
        unix_time: u64::try_from(unix_time.as_nanos()).map_err(io::Error::other)?,
        random,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::thread;

    use super::*;

    /// What comes of an agent that says `lines`.
    fn hear(lines: &'static str) -> Result<String, AgentError> {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let listener = AgentListener::bind(directory.path()).expect("a socket can be made");
        let path = socket(directory.path(), CONTROL_PORT);
        let guest = thread::spawn(move || {
            let mut stream = UnixStream::connect(path).expect("somebody listens");
            stream.write_all(lines.as_bytes()).expect("it is taken");
        });
        let mut agent = listener
            .accept(Duration::from_secs(60))
            .expect("it connects");
        guest.join().expect("it does not panic");
        agent.ready()
    }

    /// What comes of asking an agent to pause that says `lines`.
    fn pause(lines: &str) -> Result<Owners, AgentError> {
        let (host, mut guest) = UnixStream::pair().expect("sockets can be made");
        guest.write_all(lines.as_bytes()).expect("there is room");
        guest
            .shutdown(std::net::Shutdown::Write)
            .expect("it is open");
        let mut agent = Agent::new(host, Duration::from_secs(60)).expect("it is a socket");
        agent.pause()
    }

    #[test]
    fn an_agent_says_whose_its_pages_are() {
        let none = pause("\"paused\"\n").expect("it need not say anything");
        assert!(none.is_empty());
        let lines = "{\"owners\":\"1922\"}\n{\"owners\":\"1a\"}\n\"paused\"\n";
        let owners = pause(lines).expect("it makes sense");
        assert_eq!(owners.pages(), 4);
        assert_eq!(owners.of_page(3), Owner::Stack);
        let same = "{\"owners\":\"1919\"}\n\"paused\"\n";
        for (lines, wanted) in [
            ("{\"owners\":\"\"}\n", "makes no sense"),
            ("{\"owners\":\"1f\"}\n\"paused\"\n", "makes no sense"),
            (same, "makes no sense"),
            ("{\"owners\":\"19\"}\n", "has closed its connection"),
            ("{\"owners\":\"19\"}\n\"resumed\"\n", "which is no answer"),
        ] {
            let error = pause(lines).expect_err("it is none").to_string();
            assert!(error.contains(wanted), "{lines}: {error}");
        }
    }

    #[test]
    fn a_template_becomes_a_function_once() {
        let (host, mut guest) = UnixStream::pair().expect("sockets can be made");
        let lines = "\"started\"\n\"resumed\"\n{\"failed\":\"it is a function already\"}\n";
        guest.write_all(lines.as_bytes()).expect("there is room");
        let mut agent = Agent::new(host, Duration::from_secs(60)).expect("it is a socket");
        let fresh = fresh().expect("the host has randomness");
        let start = Start {
            arguments: vec!["/usr/bin/python3".to_owned()],
            environment: Vec::new(),
            directory: "/var/task".to_owned(),
            owner: (993, 990),
            fresh: fresh.clone(),
        };
        agent.start_template(start).expect("it starts");
        agent.become_function(fresh.clone()).expect("it becomes");
        let error = agent.become_function(fresh).expect_err("it has become");
        assert_eq!(
            error.to_string(),
            "the guest says: it is a function already"
        );
        drop(agent);
        let mut told = String::new();
        std::io::Read::read_to_string(&mut guest, &mut told).expect("it is text");
        let words = told.lines().map(|line| line.split('"').nth(1));
        assert!(
            words.eq(["template", "become", "become"].map(Some)),
            "{told}"
        );
    }

    #[test]
    fn an_agent_may_say_anything() {
        assert_eq!(
            hear("{\"ready\":\"Linux\"}\n").expect("it is ready"),
            "Linux"
        );
        let cases = [
            ("", "the guest has closed its connection"),
            ("nonsense\n", "cannot talk to the guest"),
            ("{\"ready\":\"cut", "cannot talk to the guest"),
            ("{\"failed\":\"no root\"}\n", "the guest says: no root"),
            (
                "\"paused\"\n",
                "the guest has answered Paused, which is no answer",
            ),
        ];
        for (lines, wanted) in cases {
            let error = hear(lines).expect_err("it is not ready");
            assert_eq!(error.to_string(), wanted, "{lines}");
        }
    }
}
