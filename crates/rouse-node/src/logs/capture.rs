//! The pipe that is an instance's standard output and error.
//!
//! It is read no faster than the function may log: who prints more than that waits in `write`, at the cost of its own time and
//! not of the node's. Only up to a point, so that one that prints a lot still comes to its end; what is read beyond the allowance
//! is dropped and counted.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::unix::pipe;

use super::files::{FunctionLog, LogLine};
use crate::function::record::now_ms;

/// Bytes of the log that `LogType=Tail` gives back.
pub const TAIL: usize = 4096;

/// Longest line; longer ones are cut. The limit of a log event in Lambda.
const MAX_LINE: usize = 256 << 10;

/// Read at a time: what others have to wait for who share the thread, and what is in memory at most.
const PORTION: usize = 64 << 10;

/// Longest pause after a portion: a function gets rid of some 3 MB a second however little it may log.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Read after an invocation at most, if more comes all the time: the most that a pipe of an ordinary process can hold.
const LAST: usize = 1 << 20;

/// What reading has found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing more at the moment.
    Empty,
    /// There may be more.
    More,
    /// The end: nobody can write any more.
    Closed,
}

/// Reads one instance's pipe. The reading task and the end of an invocation both drain it.
#[derive(Debug)]
pub struct Capture {
    pipe: Option<pipe::Receiver>,
    state: Mutex<State>,
    log: Arc<FunctionLog>,
}

#[derive(Debug)]
struct State {
    request_id: Arc<str>,
    partial: Vec<u8>,
    lines: Vec<LogLine>,
    /// Everything of the current invocation, or its last part.
    tail: Vec<u8>,
}

impl Capture {
    /// Takes the pipe. Must be called inside the async runtime.
    pub fn new(pipe: Option<OwnedFd>, log: Arc<FunctionLog>) -> io::Result<Self> {
        let pipe = pipe.map(pipe::Receiver::from_owned_fd).transpose()?;
        let state = State {
            request_id: "".into(),
            partial: Vec::new(),
            lines: Vec::new(),
            tail: Vec::new(),
        };
        Ok(Capture {
            pipe,
            state: Mutex::new(state),
            log,
        })
    }

    /// Reads until the pipe is closed.
    pub async fn run(&self) {
        let Some(pipe) = &self.pipe else { return };
        // `try_read` and not a plain read: it is what tells the runtime that the pipe is empty again.
        while pipe.readable().await.is_ok() {
            match self.read(PORTION, |buffer| pipe.try_read(buffer)) {
                Found::Closed => return,
                Found::Empty => {}
                Found::More => match self.log.debt().min(LONGEST_PAUSE) {
                    Duration::ZERO => tokio::task::yield_now().await,
                    pause => tokio::time::sleep(pause).await,
                },
            }
        }
    }

    /// Reads what is in the pipe now, and not what a process that goes on adds for ever. `false` when it is closed.
    ///
    /// A plain read: the runtime may not have heard yet of what a function wrote right before its answer.
    pub fn drain(&self) -> bool {
        match &self.pipe {
            Some(pipe) => {
                let found = self.read(LAST, |buffer| Ok(rustix::io::read(pipe, buffer)?));
                found != Found::Closed
            }
            None => false,
        }
    }

    fn read(&self, most: usize, mut read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> Found {
        let mut state = self.lock();
        let mut buffer = [0u8; 16 << 10];
        let mut taken = 0;
        let found = loop {
            if taken >= most {
                break Found::More;
            }
            match read(&mut buffer) {
                Ok(0) => break Found::Closed,
                Ok(n) => {
                    state.take(&buffer[..n]);
                    taken += n;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Found::Empty,
                Err(_) => break Found::Closed,
            }
        };
        let lines = std::mem::take(&mut state.lines);
        drop(state);
        self.log.write(lines);
        found
    }

    /// An invocation begins: what comes now belongs to it.
    pub fn begin(&self, request_id: &str, version: &str) {
        self.drain();
        let mut state = self.lock();
        state.end_partial();
        state.tail.clear();
        state.request_id = request_id.into();
        state.platform_line(&format!("START RequestId: {request_id} Version: {version}"));
    }

    /// The invocation is over: reads what is left of its output and adds the lines of the platform.
    pub fn end(&self, platform_lines: &[String]) {
        self.drain();
        let mut state = self.lock();
        state.end_partial();
        for line in platform_lines {
            state.platform_line(line);
        }
        let lines = std::mem::take(&mut state.lines);
        state.request_id = "".into();
        drop(state);
        self.log.write(lines);
    }

    /// The last 4 KiB of the invocation's log.
    pub fn tail(&self) -> Vec<u8> {
        let state = self.lock();
        state.tail[state.tail.len().saturating_sub(TAIL)..].to_vec()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, bytes: &[u8]) {
        self.keep(bytes);
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial.extend_from_slice(part);
            if part.ends_with(b"\n") || self.partial.len() >= MAX_LINE {
                self.end_partial();
            }
        }
    }

    fn end_partial(&mut self) {
        if self.partial.is_empty() {
            return;
        }
        let bytes = std::mem::take(&mut self.partial);
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        self.lines.push(LogLine {
            timestamp: now_ms(),
            request_id: Arc::clone(&self.request_id),
            message: String::from_utf8_lossy(text).into_owned(),
        });
    }

    fn platform_line(&mut self, text: &str) {
        if !self.tail.is_empty() && !self.tail.ends_with(b"\n") {
            self.tail.push(b'\n');
        }
        self.keep(text.as_bytes());
        self.keep(b"\n");
        self.lines.push(LogLine {
            timestamp: now_ms(),
            request_id: Arc::clone(&self.request_id),
            message: text.trim_end_matches(['\t', '\n']).to_owned(),
        });
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        // Cut rarely, so that a chatty function does not move 4 KiB for each line.
        if self.tail.len() > 8 * TAIL {
            self.tail.drain(..self.tail.len() - TAIL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::files::LogFiles;
    use super::*;

    #[tokio::test]
    async fn lines_and_tail_of_an_invocation() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::start(dir.path().to_owned(), 1 << 20, 1 << 20).unwrap();
        let (reader, writer) = io::pipe().unwrap();
        let mut writer = writer;
        let capture = Capture::new(Some(reader.into()), Arc::new(files.function("f"))).unwrap();
        writer.write_all(b"init\n").unwrap();
        capture.begin("id-1", "$LATEST");
        writer.write_all(b"hello\r\nno end").unwrap();
        capture.end(&[
            "END RequestId: id-1".into(),
            "REPORT RequestId: id-1\tDuration: 1 ms\t".into(),
        ]);
        let tail = String::from_utf8(capture.tail()).unwrap();
        assert_eq!(
            tail,
            "START RequestId: id-1 Version: $LATEST\nhello\r\nno end\nEND RequestId: id-1\nREPORT RequestId: id-1\tDuration: 1 ms\t\n"
        );
        let lines = String::from_utf8(files.tail("f", 10).await.unwrap()).unwrap();
        let lines: Vec<serde_json::Value> = lines
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(lines[0]["message"], "init");
        assert_eq!(lines[0]["request_id"], "");
        assert_eq!(lines[2]["message"], "hello");
        assert_eq!(lines[3]["request_id"], "id-1");
        drop(writer);
        assert!(!capture.drain());
        capture.run().await;
    }

    #[tokio::test]
    async fn the_tail_is_bounded_and_endless_lines_are_cut() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::start(dir.path().to_owned(), 10 << 20, 10 << 20).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let capture =
            Arc::new(Capture::new(Some(reader.into()), Arc::new(files.function("f"))).unwrap());
        let reading = tokio::spawn({
            let capture = Arc::clone(&capture);
            async move { capture.run().await }
        });
        tokio::task::spawn_blocking(move || writer.write_all(&vec![b'x'; 600 << 10]).unwrap())
            .await
            .unwrap();
        reading.await.unwrap();
        capture.end(&[]);
        assert_eq!(capture.tail().len(), TAIL);
        let lines = String::from_utf8(files.tail("f", 10).await.unwrap()).unwrap();
        assert_eq!(lines.lines().count(), 3);
    }

    /// Who prints for ever is read a portion at a time, gets on, and does not keep `end` from ending.
    #[tokio::test]
    async fn endless_output_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        // Next to nothing may be logged.
        let files = LogFiles::start(dir.path().to_owned(), 1 << 20, 1).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let capture =
            Arc::new(Capture::new(Some(reader.into()), Arc::new(files.function("f"))).unwrap());
        let printed = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let printing = std::thread::spawn({
            let printed = Arc::clone(&printed);
            move || {
                // Until nobody can read it any more.
                while writer.write_all(&[b'\n'; 4096]).is_ok() {
                    printed.fetch_add(4096, std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
        // One thread for all tasks: this one only gets on if the reading task makes room.
        let reading = tokio::spawn({
            let capture = Arc::clone(&capture);
            async move { capture.run().await }
        });
        while printed.load(std::sync::atomic::Ordering::Relaxed) < 1 << 20 {
            tokio::task::yield_now().await;
        }
        capture.end(&[]);
        assert!(capture.drain(), "the function still has it open");
        assert!(capture.log.dropped() > 0);
        reading.abort();
        assert!(reading.await.unwrap_err().is_cancelled());
        drop(capture);
        printing.join().unwrap();
    }
}
