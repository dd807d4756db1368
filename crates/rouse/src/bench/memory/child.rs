//! A node in a process of its own, with settings of its own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::endpoint::Endpoint;

/// Why there is no such node.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("a node cannot be started")]
    Start(#[source] io::Error),
    /// It did not answer in time.
    #[error("the node did not start; its log is {}", log.display())]
    Silent {
        /// What it said.
        log: PathBuf,
    },
}

const PATIENCE: Duration = Duration::from_secs(30);

/// A running node, stopped when dropped.
pub struct ChildNode {
    child: Child,
    /// Where it answers.
    pub endpoint: Endpoint,
    /// Its state directory.
    pub state_dir: PathBuf,
}

impl ChildNode {
    /// Starts a node on a directory, which it makes.
    pub fn start(state_dir: &Path, settings: &[(&str, String)]) -> Result<Self, ChildError> {
        fs::create_dir_all(state_dir).map_err(ChildError::Start)?;
        let log = state_dir.with_extension("log");
        let output = File::create(&log).map_err(ChildError::Start)?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("serve")
            .arg("--state-dir")
            .arg(state_dir)
            .args(["--listen", "127.0.0.1:0"]);
        for (name, value) in settings {
            command.arg(format!("--{name}={value}"));
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(ChildError::Start)?;
        let begin = Instant::now();
        loop {
            let written = fs::read_to_string(state_dir.join("endpoint"));
            if let Some(endpoint) = written.ok().and_then(|text| text.trim().parse().ok()) {
                return Ok(Self {
                    child,
                    endpoint,
                    state_dir: state_dir.to_owned(),
                });
            }
            let ended = child.try_wait().map_err(ChildError::Start)?.is_some();
            if ended || begin.elapsed() > PATIENCE {
                // One that has ended cannot be killed, which is as well.
                let _ = child.kill();
                let _ = child.wait();
                return Err(ChildError::Silent { log });
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether this program's `serve` knows a setting.
    pub fn knows(setting: &str) -> bool {
        let help = Command::new("/proc/self/exe")
            .args(["serve", "--help"])
            .output();
        help.is_ok_and(|help| {
            String::from_utf8_lossy(&help.stdout).contains(&format!("--{setting}"))
        })
    }
}

impl Drop for ChildNode {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It stops and ends all that it has started; then it is reaped.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Bytes of all files below a directory, as the disk holds them.
pub fn stored_bytes(directory: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            stored_bytes(&entry.path())?
        } else {
            metadata.blocks() * 512
        };
    }
    Ok(bytes)
}
