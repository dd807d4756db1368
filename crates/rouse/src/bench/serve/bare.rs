//! The same handler behind an HTTP server in its own process, without rouse.

use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::Serialize;

use crate::bench::functions::Function;
use crate::client::endpoint::Endpoint;

const SERVER: &str = include_str!("bare.py");

/// What serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One thread and epoll: the least that is HTTP.
    Loop,
    /// The standard library's server, a thread for each connection.
    Standard,
}

impl Kind {
    /// As in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Standard => "standard",
        }
    }
}

/// Why there is no such server.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// The interpreter could not be started.
    #[error("the bare server cannot be started")]
    Start(#[from] io::Error),
    /// It did not say where it listens.
    #[error("the bare server does not say where it listens")]
    NoPort,
}

/// A running server. Ends when it is dropped.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    /// Where it answers.
    pub endpoint: Endpoint,
}

impl Bare {
    /// Starts a server of a Python function in `directory`.
    pub fn start(
        python: &Path,
        function: &Function,
        directory: &Path,
        kind: Kind,
    ) -> Result<Self, BareError> {
        let (module, handler) = function.handler.split_once('.').ok_or(BareError::NoPort)?;
        let mut child = Command::new(python)
            .args(["-c", SERVER, kind.name(), module, handler])
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C is for us: the server ends when its standard input does.
            .process_group(0)
            .spawn()?;
        let mut line = String::new();
        if let Some(output) = child.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let endpoint = match line.trim().parse::<u16>() {
            Ok(port) => format!("http://127.0.0.1:{port}").parse().ok(),
            Err(_) => None,
        };
        match endpoint {
            Some(endpoint) => Ok(Self { child, endpoint }),
            None => {
                // It has no port, so nobody needs it.
                let _ = child.kill();
                child.wait()?;
                Err(BareError::NoPort)
            }
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // One that has ended by itself cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
