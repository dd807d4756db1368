//! A Python program to take checkpoints of.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use rouse_process::checkpoint::{Checkpoint, CheckpointError, CheckpointTarget, checkpoint};
use rouse_snapshot::model::{DescriptionKind, Thread};

/// What every program starts with. Test runners leak descriptors into their children.
const PRELUDE: &str = r#"
import os; os.closerange(3, 1 << 16)
import ctypes, mmap, select, signal, socket, struct, sys, threading, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def syscall(*args):
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
def name(text):
    libc.prctl(15, text.encode(), 0, 0, 0)
def spawn(text, work, *args):
    named = threading.Event()
    def run():
        name(text)
        named.set()
        work(*args)
    threading.Thread(target=run, daemon=True).start()
    named.wait()
def ready(*words):
    print(*words, flush=True)
def park():
    signal.pause()
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
def map_file(fd, pages, flags, prot=3, offset=0):
    return libc.mmap(None, pages * 4096, prot, flags, fd, offset)
def poke(address, value):
    ctypes.c_char.from_address(address).value = bytes([value])
"#;

/// How often to look whether something has happened that takes milliseconds, before giving up: half a minute.
const PATIENCE: u32 = 30_000;

/// A running program. Killed when dropped.
pub struct Subject {
    child: Child,
    stdout: BufReader<ChildStdout>,
    /// Process id on the host.
    pub pid: i32,
    /// First process of its pid namespace, or 0.
    init_pid: i32,
    /// Words that the program passed to `ready`.
    pub words: Vec<String>,
}

impl Subject {
    /// Starts a program in the namespaces of the test and waits until it calls `ready`.
    pub fn start(script: &str) -> Self {
        let mut command = Command::new("/usr/bin/python3");
        command
            .args(["-I", "-u", "-c"])
            .arg(format!("{PRELUDE}\n{script}"));
        let mut subject = Self::run(command);
        subject.pid = subject.child.id() as i32;
        subject
    }

    /// Starts a program as the second process of a pid namespace, with a mount and a network namespace of its own, and
    /// waits until it calls `ready`.
    pub fn start_in_sandbox(script: &str) -> Self {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "sh", "-c"])
            .arg(
                "mount -t tmpfs none /tmp && mount -t tmpfs none /dev/shm && cd / && \
                 exec unshare --pid --fork --kill-child sh -c \
                 '{ /usr/bin/python3 -I -u -c \"$0\" <&3 & wait; } 3</dev/null' \"$0\"",
            )
            .arg(format!("{PRELUDE}\n{script}"));
        let mut subject = Self::run(command);
        subject.init_pid = only_child(subject.child.id() as i32);
        subject.pid = only_child(subject.init_pid);
        subject
    }

    fn run(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut subject = Self {
            child,
            stdout,
            pid: 0,
            init_pid: 0,
            words: Vec::new(),
        };
        let mut line = String::new();
        subject.stdout.read_line(&mut line).unwrap();
        assert!(line.ends_with('\n'), "the program has failed");
        subject.words = line.split_whitespace().map(str::to_owned).collect();
        subject
    }

    /// A word passed to `ready`, as a number.
    pub fn number(&self, index: usize) -> u64 {
        self.words[index].parse().unwrap()
    }

    /// Waits until as many threads as there are numbers sleep in these system calls.
    pub fn wait_until_in(&self, calls: &[i64]) {
        for _ in 0..PATIENCE {
            let mut missing = calls.to_vec();
            for task in std::fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap() {
                let path = task.unwrap().path().join("syscall");
                let text = std::fs::read_to_string(path).unwrap_or_default();
                let call = text
                    .split_whitespace()
                    .next()
                    .and_then(|number| number.parse::<i64>().ok());
                if let Some(at) = missing.iter().position(|wanted| Some(*wanted) == call) {
                    missing.swap_remove(at);
                }
            }
            if missing.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("not all threads got into {calls:?}");
    }

    /// Waits until each thread, told by its name, sleeps in a system call that is right for it.
    pub fn wait_until_each(&self, is_right: impl Fn(&str, i64) -> bool) {
        for _ in 0..PATIENCE {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid)).unwrap();
            let is_there = |task: std::path::PathBuf| {
                let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
                let call = read("syscall");
                let call = call.split_whitespace().next().map(str::parse);
                call.is_some_and(|call| call.is_ok_and(|call| is_right(read("comm").trim(), call)))
            };
            if tasks.map(|task| task.unwrap().path()).all(is_there) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("not all threads got into their system calls");
    }

    /// Waits until the process is in a state, named by the letter of `/proc/PID/stat`.
    pub fn wait_until_state(&self, state: char) {
        for _ in 0..PATIENCE {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
            if stat.contains(&format!(") {state} ")) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("the process did not get into state {state}");
    }

    /// Takes a checkpoint.
    pub fn try_checkpoint(&self, api_client_port: u16) -> Result<Checkpoint, CheckpointError> {
        let log = std::fs::metadata(format!("/proc/{}/fd/1", self.pid)).unwrap();
        checkpoint(&CheckpointTarget {
            pid: self.pid,
            init_pid: self.init_pid,
            api_client_port,
            log_inode: log.ino(),
            host_path: &|path| Some(PathBuf::from(String::from_utf8(path.to_vec()).ok()?)),
            baseline_rlimits: &[],
            lineage: &[],
            specimen: None,
            costs: Default::default(),
            afterwards: rouse_process::checkpoint::Afterwards::Ends,
        })
    }

    /// Takes a checkpoint that succeeds and makes sense.
    pub fn checkpoint(&self) -> Checkpoint {
        self.wait_until_in(&[libc::SYS_pause]);
        let taken = self
            .try_checkpoint(0)
            .unwrap_or_else(|error| panic!("{error}: {error:?}"));
        rouse_snapshot::validate::validate(&taken.snapshot).unwrap();
        assert_eq!(taken.pool.pages(), taken.snapshot.pool_pages);
        taken
    }

    /// The obstacle that a checkpoint meets.
    pub fn obstacle(&self) -> String {
        match self.try_checkpoint(0) {
            Ok(_) => panic!("the checkpoint met no obstacle"),
            Err(CheckpointError::Obstacle(obstacle)) => obstacle.to_string(),
            Err(error) => panic!("{error}: {error:?}"),
        }
    }

    /// Reads its memory.
    pub fn memory(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        let memory = std::fs::File::open(format!("/proc/{}/mem", self.pid)).unwrap();
        memory.read_exact_at(&mut bytes, address).ok()?;
        Some(bytes)
    }

    /// Writes to its memory.
    pub fn write_memory(&self, address: u64, bytes: &[u8]) {
        let memory = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{}/mem", self.pid));
        memory.unwrap().write_all_at(bytes, address).unwrap();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain numbers; the child has not been waited for, so the id is its own.
        assert_eq!(unsafe { libc::kill(self.pid, signal) }, 0);
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if self.init_pid != 0 {
            // The end of the namespace's first process ends all that live there.
            // SAFETY: as in `signal`; its parent has not been waited for either.
            unsafe { libc::kill(self.init_pid, libc::SIGKILL) };
        } else {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// The child of a process, when it has come to be.
fn only_child(pid: i32) -> i32 {
    for _ in 0..PATIENCE {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            return child.parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("process {pid} has no child");
}

/// The thread of that name.
pub fn thread<'a>(taken: &'a Checkpoint, name: &str) -> &'a Thread {
    let named = |thread: &&Thread| thread.name == name.as_bytes();
    taken.snapshot.threads.iter().find(named).unwrap()
}

/// What a descriptor refers to.
pub fn kind(taken: &Checkpoint, fd: u64) -> &DescriptionKind {
    let snapshot = &taken.snapshot;
    let descriptor = snapshot
        .descriptors
        .iter()
        .find(|descriptor| descriptor.fd as u64 == fd)
        .unwrap();
    &snapshot.descriptions[descriptor.description.0 as usize].kind
}
