//! The floor: what an operating system's own `fork` of a warmed interpreter costs. Every figure of rouse is given
//! beside it, measured in the same run.
//!
//! The interpreter has imported the handler's module and run the handler once. For each request it forks; the child
//! runs the handler and answers by pipe. Measured from before the request is written to after the answer is read.

pub mod memory;
pub mod node;

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use memory::Memory;

const PYTHON: &str = include_str!("python.py");

/// Why there is no floor, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// The interpreter could not be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The interpreter.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The interpreter ended, or did not answer as agreed.
    #[error("the floor's interpreter did not answer")]
    Pipe(#[from] io::Error),
    /// The interpreter said something else than that it is ready.
    #[error("the floor's interpreter could not load the handler")]
    NotReady,
    /// The child's memory could not be read.
    #[error("cannot read the memory of the floor's child {pid}")]
    Memory {
        /// The child.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// What the floor of this runtime needs is not installed.
    #[error("{0}")]
    Unavailable(String),
}

/// How to start an interpreter.
#[derive(Debug, Clone)]
pub struct FloorCommand {
    program: PathBuf,
    arguments: Vec<String>,
    directory: PathBuf,
}

impl FloorCommand {
    /// A Python handler `module.function` in `directory`.
    pub fn python(interpreter: &Path, directory: &Path, handler: &str) -> Self {
        let (module, function) = handler.split_once('.').unwrap_or((handler, "handler"));
        let arguments = ["-c", PYTHON, module, function].map(str::to_owned).to_vec();
        Self {
            program: interpreter.to_owned(),
            arguments,
            directory: directory.to_owned(),
        }
    }
}

/// A warmed interpreter that waits for requests. Ends when it is dropped.
#[derive(Debug)]
pub struct Floor {
    child: Child,
    requests: Option<ChildStdin>,
    answers: ChildStdout,
    frame: Vec<u8>,
}

/// Asks for an answer only.
const ANSWER: u8 = 0;
/// Asks the child to stay until its memory has been read.
const MEASURE: u8 = 1;

impl Floor {
    /// Starts the interpreter and waits until it has loaded the handler.
    pub fn start(command: &FloorCommand) -> Result<Self, FloorError> {
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .current_dir(&command.directory)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("TZ", ":UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A Ctrl-C is for us: the interpreter ends when its standard input does.
            .process_group(0)
            .spawn()
            .map_err(|source| FloorError::Start {
                program: command.program.clone(),
                source,
            })?;
        let requests = child.stdin.take();
        let answers = child.stdout.take().ok_or(FloorError::NotReady)?;
        let mut floor = Self {
            child,
            requests,
            answers,
            frame: Vec::new(),
        };
        let mut ready = [0; 5];
        match floor.answers.read_exact(&mut ready) {
            Ok(()) if &ready == b"ready" => Ok(floor),
            _ => Err(FloorError::NotReady),
        }
    }

    /// One request: microseconds, and the answer.
    pub fn call(&mut self, event: &[u8]) -> Result<(f64, Vec<u8>), FloorError> {
        self.build(ANSWER, event);
        let start = Instant::now();
        self.send()?;
        let (_, answer) = self.receive()?;
        Ok((start.elapsed().as_secs_f64() * 1e6, answer))
    }

    /// One request, and the memory of the child after it has answered.
    pub fn measure(&mut self, event: &[u8]) -> Result<(Memory, Vec<u8>), FloorError> {
        self.build(MEASURE, event);
        self.send()?;
        let (pid, answer) = self.receive()?;
        let memory = Memory::of(pid).map_err(|source| FloorError::Memory { pid, source });
        // Lets the child end, also when its memory could not be read.
        self.frame.clear();
        self.frame.push(0);
        self.send()?;
        Ok((memory?, answer))
    }

    fn build(&mut self, mode: u8, event: &[u8]) {
        let length = u32::try_from(event.len()).expect("the benchmark's events are a few bytes");
        self.frame.clear();
        self.frame.extend_from_slice(&length.to_le_bytes());
        self.frame.push(mode);
        self.frame.extend_from_slice(event);
    }

    fn send(&mut self) -> io::Result<()> {
        match &mut self.requests {
            Some(requests) => requests.write_all(&self.frame),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn receive(&mut self) -> io::Result<(u32, Vec<u8>)> {
        let mut head = [0; 8];
        self.answers.read_exact(&mut head)?;
        let [p0, p1, p2, p3, l0, l1, l2, l3] = head;
        let mut answer = vec![0; u32::from_le_bytes([l0, l1, l2, l3]) as usize];
        self.answers.read_exact(&mut answer)?;
        Ok((u32::from_le_bytes([p0, p1, p2, p3]), answer))
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // The interpreter ends at the end of its input; one that hangs is killed. Either way it is reaped.
        self.requests = None;
        let mut rest = [0; 64];
        if self.answers.read(&mut rest).unwrap_or(0) != 0 {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn python() -> PathBuf {
        PathBuf::from("/usr/bin/python3")
    }

    #[test]
    fn each_answer_comes_from_a_new_child() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(
            dir.path().join("app.py"),
            "import os\ndef handler(event, context):\n    return [event['n'] + 1, os.getpid()]\n",
        )
        .expect("write");
        let mut floor = Floor::start(&FloorCommand::python(&python(), dir.path(), "app.handler"))
            .expect("floor");
        let mut pids = std::collections::BTreeSet::new();
        for n in 0..5_u32 {
            let event = format!("{{\"n\": {n}}}");
            let answer = if n % 2 == 0 {
                floor.call(event.as_bytes()).expect("call").1
            } else {
                floor.measure(event.as_bytes()).expect("measure").1
            };
            let (next, pid): (u32, u32) = serde_json::from_slice(&answer).expect("json");
            assert_eq!(next, n + 1);
            assert!(pid != floor.child.id() && pids.insert(pid));
        }
        let (memory, _) = floor.measure(b"{\"n\": 9}").expect("measure");
        assert!(
            memory.uss_kib > 0 && memory.pss_kib >= memory.uss_kib && memory.minor_faults > 0,
            "{memory:?}"
        );
    }

    #[test]
    fn a_handler_that_does_not_load_is_said() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("app.py"), "raise SystemExit(3)\n").expect("write");
        assert!(matches!(
            Floor::start(&FloorCommand::python(&python(), dir.path(), "app.handler")),
            Err(FloorError::NotReady)
        ));
        assert!(matches!(
            Floor::start(&FloorCommand::python(
                Path::new("/nonexistent"),
                dir.path(),
                "app.handler"
            )),
            Err(FloorError::Start { .. })
        ));
    }
}
