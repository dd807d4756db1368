//! Log files: `logs/<function>.log`, one JSON object a line, and one older file `<function>.log.1`.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

/// Batches that may wait for the writer.
const QUEUE: usize = 4096;

/// How long the writer gathers what comes before it writes. Waking it for each line would cost a busy node more than the lines.
const GATHER: Duration = Duration::from_millis(2);

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// Milliseconds since the epoch.
    pub timestamp: u64,
    /// Request during which it was printed; empty for init.
    #[serde(serialize_with = "as_text")]
    pub request_id: Arc<str>,
    /// The line, without its end.
    pub message: String,
}

fn as_text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

enum Command {
    Write {
        function: Arc<str>,
        lines: Vec<LogLine>,
    },
    Remove {
        function: Arc<str>,
    },
    Flush {
        done: Sender<()>,
    },
}

/// Owns the writing thread. Dropping it writes what is waiting.
#[derive(Debug)]
pub struct LogFiles {
    directory: PathBuf,
    rate: u64,
    sender: Option<SyncSender<Command>>,
    thread: Option<JoinHandle<()>>,
}

/// Where one function's lines go. Cheap to share.
#[derive(Debug)]
pub struct FunctionLog {
    function: Arc<str>,
    sender: SyncSender<Command>,
    allowance: Mutex<Allowance>,
    dropped: AtomicU64,
}

/// A token bucket that holds four seconds' worth. What is allowed may take more than is left: the debt is paid before the next.
#[derive(Debug)]
struct Allowance {
    rate: u64,
    left: i128,
    filled: Instant,
}

impl Allowance {
    fn new(rate: u64, now: Instant) -> Self {
        Self {
            rate,
            left: i128::from(rate) * 4,
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_micros();
        let earned = passed.saturating_mul(u128::from(self.rate)) / 1_000_000;
        if earned > 0 {
            let full = i128::from(self.rate) * 4;
            let earned = i128::try_from(earned).unwrap_or(full);
            self.left = self.left.saturating_add(earned).min(full);
            self.filled = now;
        }
    }

    fn take(&mut self, bytes: u64, now: Instant) -> bool {
        self.fill(now);
        let is_allowed = self.left > 0;
        if is_allowed {
            self.left -= i128::from(bytes);
        }
        is_allowed
    }

    /// How long until something is allowed again.
    fn debt(&mut self, now: Instant) -> Duration {
        self.fill(now);
        let missing = u64::try_from(1 - self.left).unwrap_or(0);
        Duration::from_micros(missing.saturating_mul(1_000_000) / self.rate.max(1))
    }
}

impl FunctionLog {
    /// Hands lines to the writer, or drops and counts them.
    pub fn write(&self, mut lines: Vec<LogLine>) {
        if lines.is_empty() {
            return;
        }
        let bytes: u64 = lines
            .iter()
            .map(|line| line.message.len() as u64 + 64)
            .sum();
        let allowed = self
            .allowance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(bytes, Instant::now());
        let count = lines.len() as u64;
        if !allowed {
            self.dropped.fetch_add(count, Ordering::Relaxed);
            return;
        }
        let lost = self.dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let first = &lines[0];
            let note = LogLine {
                timestamp: first.timestamp,
                request_id: Arc::clone(&first.request_id),
                message: format!(
                    "[rouse] {lost} lines were dropped here: the function logs faster than it may"
                ),
            };
            lines.insert(0, note);
        }
        match self.sender.try_send(Command::Write {
            function: Arc::clone(&self.function),
            lines,
        }) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped.fetch_add(lost + count, Ordering::Relaxed);
            }
        }
    }

    /// How long to wait before more is read of what the function prints, so that it prints no faster than it may log.
    pub fn debt(&self) -> Duration {
        let mut allowance = (self.allowance.lock()).unwrap_or_else(PoisonError::into_inner);
        allowance.debt(Instant::now())
    }

    /// Lines that were dropped and not yet reported in the log.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl LogFiles {
    /// Starts the writer. `max_bytes` is the size at which a file is rotated, `rate` what a function may log in a second.
    pub fn start(directory: PathBuf, max_bytes: u64, rate: u64) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let writer = Writer {
            directory: directory.clone(),
            max_bytes,
            open: HashMap::new(),
            gathered: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("rouse-logs".into())
            .spawn(move || writer.run(&receiver))?;
        Ok(LogFiles {
            directory,
            rate,
            sender: Some(sender),
            thread: Some(thread),
        })
    }

    /// The log of one function.
    pub fn function(&self, name: &str) -> FunctionLog {
        FunctionLog {
            function: name.into(),
            sender: self.sender().clone(),
            allowance: Mutex::new(Allowance::new(self.rate, Instant::now())),
            dropped: AtomicU64::new(0),
        }
    }

    /// Removes a function's files.
    pub fn remove(&self, name: &str) {
        // A full queue must not leave files behind; deleting a function may wait a moment.
        let _ = self.sender().send(Command::Remove {
            function: name.into(),
        });
    }

    /// The last `lines` lines of a function's log as they lie in the files, after all that was written before has arrived.
    pub async fn tail(&self, name: &str, lines: usize) -> io::Result<Vec<u8>> {
        let paths = [
            rotated(&self.directory, name),
            self.directory.join(format!("{name}.log")),
        ];
        self.written().await?;
        tokio::task::spawn_blocking(move || tail_of(&paths, lines))
            .await
            .map_err(io::Error::other)?
    }

    /// Waits until all lines that were given before are in their files.
    pub async fn written(&self) -> io::Result<()> {
        let (done, arrived) = channel();
        let sender = self.sender().clone();
        let wait = move || {
            let _ = sender.send(Command::Flush { done });
            let _ = arrived.recv();
        };
        tokio::task::spawn_blocking(wait)
            .await
            .map_err(io::Error::other)
    }

    fn sender(&self) -> &SyncSender<Command> {
        self.sender
            .as_ref()
            .expect("the sender is taken only when the log files are dropped")
    }
}

impl Drop for LogFiles {
    fn drop(&mut self) {
        // The thread goes on as long as a function's log lives, so it is not joined: the flush is what is waited for.
        if let Some(sender) = self.sender.take() {
            let (done, arrived) = channel();
            if sender.send(Command::Flush { done }).is_ok() {
                let _ = arrived.recv();
            }
        }
        drop(self.thread.take());
    }
}

struct Writer {
    directory: PathBuf,
    max_bytes: u64,
    open: HashMap<Arc<str>, (File, u64)>,
    /// What is to be written next, by function.
    gathered: HashMap<Arc<str>, Vec<u8>>,
}

/// Files kept open at a time.
const MAX_OPEN: usize = 128;

impl Writer {
    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(first) = commands.recv() {
            if matches!(first, Command::Write { .. }) {
                std::thread::sleep(GATHER);
            }
            for command in std::iter::once(first).chain(commands.try_iter().take(QUEUE)) {
                match command {
                    Command::Write { function, lines } => self.gather(&function, &lines),
                    // What came before them is written before them.
                    Command::Remove { function } => {
                        self.write_all();
                        self.remove(&function);
                    }
                    Command::Flush { done } => {
                        self.write_all();
                        let _ = done.send(());
                    }
                }
            }
            self.write_all();
        }
    }

    /// Adds lines to what is to be written. A file that would become too large with them gets what was gathered first.
    fn gather(&mut self, function: &Arc<str>, lines: &[LogLine]) {
        let mut bytes = Vec::new();
        for line in lines {
            // Text and numbers: there is nothing that could fail.
            if serde_json::to_writer(&mut bytes, line).is_ok() {
                bytes.push(b'\n');
            }
        }
        let size = self.open.get(function).map_or(0, |(_, size)| *size);
        let before = self.gathered.get(function).map_or(0, Vec::len);
        if size + (before + bytes.len()) as u64 > self.max_bytes {
            self.write_of(function);
        }
        let gathered = self.gathered.entry(Arc::clone(function)).or_default();
        gathered.extend_from_slice(&bytes);
    }

    fn write_all(&mut self) {
        let functions: Vec<Arc<str>> = self.gathered.keys().map(Arc::clone).collect();
        for function in functions {
            self.write_of(&function);
        }
    }

    fn write_of(&mut self, function: &Arc<str>) {
        let Some(bytes) = self.gathered.remove(function) else {
            return;
        };
        if let Err(error) = self.write(function, &bytes) {
            tracing::warn!(function = &**function, %error, "cannot write a log file");
            self.open.remove(function);
        }
    }

    fn remove(&mut self, function: &str) {
        self.open.remove(function);
        for path in [self.path(function), rotated(&self.directory, function)] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove a log file");
                }
                _ => {}
            }
        }
    }

    fn path(&self, function: &str) -> PathBuf {
        self.directory.join(format!("{function}.log"))
    }

    fn write(&mut self, function: &Arc<str>, bytes: &[u8]) -> io::Result<()> {
        if self
            .open
            .get(function)
            .is_some_and(|(_, size)| size + bytes.len() as u64 > self.max_bytes && *size > 0)
        {
            self.open.remove(function);
            fs::rename(self.path(function), rotated(&self.directory, function))?;
        }
        if !self.open.contains_key(function) {
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path(function))?;
            let size = file.metadata()?.len();
            self.open.insert(Arc::clone(function), (file, size));
        }
        if let Some((file, size)) = self.open.get_mut(function) {
            file.write_all(bytes)?;
            *size += bytes.len() as u64;
        }
        Ok(())
    }
}

fn rotated(directory: &Path, function: &str) -> PathBuf {
    directory.join(format!("{function}.log.1"))
}

/// The last lines of files, read from the back.
fn tail_of(oldest_first: &[PathBuf], lines: usize) -> io::Result<Vec<u8>> {
    let mut result: Vec<u8> = Vec::new();
    let mut missing = lines;
    for path in oldest_first.iter().rev() {
        if missing == 0 {
            break;
        }
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let (part, found) = last_lines(&mut file, missing)?;
        missing -= found;
        let mut whole = part;
        whole.append(&mut result);
        result = whole;
    }
    Ok(result)
}

fn last_lines(file: &mut File, lines: usize) -> io::Result<(Vec<u8>, usize)> {
    let mut position = file.seek(SeekFrom::End(0))?;
    let mut bytes: Vec<u8> = Vec::new();
    while position > 0 {
        let step = position.min(64 << 10);
        position -= step;
        file.seek(SeekFrom::Start(position))?;
        let mut chunk = vec![0; step as usize];
        file.read_exact(&mut chunk)?;
        chunk.append(&mut bytes);
        bytes = chunk;
        if bytes.iter().filter(|b| **b == b'\n').count() > lines {
            break;
        }
    }
    let ends: Vec<usize> = bytes
        .iter()
        .enumerate()
        .filter(|(_, b)| **b == b'\n')
        .map(|(at, _)| at + 1)
        .collect();
    let found = ends.len().min(lines);
    let start = if ends.len() > lines {
        ends[ends.len() - lines - 1]
    } else {
        0
    };
    let end = ends.last().copied().unwrap_or(0);
    Ok((bytes[start..end].to_vec(), found))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> LogLine {
        LogLine {
            timestamp: 1,
            request_id: "r".into(),
            message: text.into(),
        }
    }

    fn messages(bytes: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(bytes).unwrap();
        text.lines()
            .map(|l| {
                serde_json::from_str::<serde_json::Value>(l).unwrap()["message"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    }

    #[tokio::test]
    async fn the_last_lines_are_found_across_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let logs = LogFiles::start(dir.path().to_owned(), 300, 1 << 20).unwrap();
        let log = logs.function("f");
        for n in 0..6 {
            log.write(vec![line(&format!("line {n}"))]);
        }
        assert_eq!(
            messages(&logs.tail("f", 3).await.unwrap()),
            ["line 3", "line 4", "line 5"]
        );
        assert!(rotated(dir.path(), "f").exists());
        assert_eq!(
            messages(&logs.tail("other", 3).await.unwrap()),
            Vec::<String>::new()
        );
        logs.remove("f");
        assert_eq!(
            messages(&logs.tail("f", 3).await.unwrap()),
            Vec::<String>::new()
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_too_much_is_dropped_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let logs = LogFiles::start(dir.path().to_owned(), 1 << 20, 100).unwrap();
        let log = logs.function("f");
        let large = "x".repeat(1_000_000);
        log.write(vec![line(&large)]);
        assert_eq!(log.dropped(), 0);
        // It would be hours until then.
        assert!(log.debt() > Duration::from_secs(3600));
        log.write(vec![line("too much")]);
        assert_eq!(log.dropped(), 1);
        log.allowance.lock().unwrap().left = 1;
        assert_eq!(log.debt(), Duration::ZERO);
        log.write(vec![line("small")]);
        let seen = messages(&logs.tail("f", 10).await.unwrap());
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[0], large);
        assert!(seen[1].starts_with("[rouse] 1 lines were dropped"));
        assert_eq!(seen[2], "small");
    }

    #[test]
    fn a_debt_is_paid_by_the_time_that_it_says() {
        let start = Instant::now();
        let mut allowance = Allowance::new(1000, start);
        assert_eq!(allowance.debt(start), Duration::ZERO);
        assert!(allowance.take(9000, start));
        assert!(!allowance.take(1, start));
        let wait = allowance.debt(start);
        assert_eq!(wait, Duration::from_millis(5001));
        let before = start + wait - Duration::from_millis(1);
        assert!(!allowance.take(1, before));
        assert!(allowance.take(1, start + wait));
        // However long it was quiet, no more than four seconds' worth is saved up.
        let later = start + Duration::from_secs(1000);
        assert!(allowance.take(3999, later));
        assert!(allowance.take(1, later));
        assert!(!allowance.take(1, later));
    }

    proptest::proptest! {
        #[test]
        fn tails_are_those_of_a_simple_reader(texts in proptest::collection::vec("[a-z]{0,50}", 0..40), lines in 0usize..50) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            fs::write(&path, texts.iter().map(|t| format!("{t}\n")).collect::<String>()).unwrap();
            let expected: String = texts.iter().skip(texts.len().saturating_sub(lines)).map(|t| format!("{t}\n")).collect();
            proptest::prop_assert_eq!(String::from_utf8(tail_of(&[path], lines).unwrap()).unwrap(), expected);
        }
    }
}
