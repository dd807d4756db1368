//! A kind of sandbox for the tests: processes of the host. A "snapshot" is a file, its copies start over and skip init's
//! requests; what the node does with them is the same as with real ones.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rouse_node::boot::{
    ApiListener, Boot, BootError, Booted, BoxFuture, Live, LoadedImage, Purpose, Snapshot,
};
use rouse_process::instance::{BootPath, ExitReason, LaunchSpec, MemoryUse, Stage};
use rouse_process::launcher::{CheckpointReport, Residency};
use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;

/// What does not work, by the test's wish.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    pub(crate) checkpoint: AtomicBool,
    pub(crate) fork: AtomicBool,
    pub(crate) restore: AtomicBool,
    /// So many forks and restores, because of something that is not theirs.
    pub(crate) outside: AtomicUsize,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct HostBoot {
    pub(crate) faults: Arc<Faults>,
    living: Arc<Mutex<BTreeSet<i32>>>,
}

impl HostBoot {
    /// Pids of the processes whose end the node has not been told.
    pub(crate) fn living(&self) -> BTreeSet<i32> {
        self.living.lock().unwrap().clone()
    }
}

struct Process {
    pid: rustix::process::Pid,
    exit: watch::Receiver<Option<ExitReason>>,
}

impl Live for Process {
    /// A process on the host has no snapshot to learn for.
    fn learn(&self) {}

    fn kill(&self) {
        // A pid that was waited for may belong to somebody else by now.
        if self.exit.borrow().is_none() {
            let _ = rustix::process::kill_process_group(self.pid, rustix::process::Signal::KILL);
        }
    }

    fn memory(&self) -> io::Result<MemoryUse> {
        Ok(MemoryUse {
            pss_kib: 1,
            ..MemoryUse::default()
        })
    }

    fn memory_peak(&self) -> u64 {
        3 << 20
    }

    fn cpu_time(&self) -> io::Result<std::time::Duration> {
        Ok(std::time::Duration::from_micros(1))
    }

    fn stages(&self) -> Vec<Stage> {
        vec![Stage {
            name: "process",
            us: 1,
        }]
    }

    fn failure(&self) -> Option<rouse_process::instance::Failure> {
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn start(boot: &HostBoot, spec: &LaunchSpec, path: BootPath) -> io::Result<Booted> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let parking = TcpListener::bind("127.0.0.1:0")?;
    let (log, log_end) = io::pipe()?;
    let mut command = Command::new("/usr/bin/python3");
    command.args([
        "-E",
        "-S",
        "-u",
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/invocations/runtime.py"),
    ]);
    command
        .env_clear()
        .envs(spec.env.iter().cloned())
        .current_dir(&spec.task_dir)
        .process_group(0);
    command.env("AWS_LAMBDA_RUNTIME_API", listener.local_addr()?.to_string());
    if path != BootPath::Cold {
        command.env("PARKED_PORT", parking.local_addr()?.port().to_string());
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(log_end.try_clone()?)
        .stderr(log_end)
        .spawn()?;
    drop(command);
    let pid = rustix::process::Pid::from_child(&child);
    // Before anybody waits for it, so that it cannot be another's.
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let (sender, exit) = watch::channel(None);
    let living = Arc::clone(&boot.living);
    let number = pid.as_raw_nonzero().get();
    living.lock().unwrap().insert(number);
    std::thread::spawn(move || {
        use std::os::unix::process::ExitStatusExt;
        let status = child.wait().unwrap();
        let reason = status.code().map_or_else(
            || ExitReason::Signal(status.signal().unwrap_or(0)),
            ExitReason::Code,
        );
        sender.send_replace(Some(reason));
        living.lock().unwrap().remove(&number);
    });
    let parked: Option<TcpStream> = match path {
        BootPath::Cold => None,
        _ => Some(accept_from(&parking, &pidfd)?),
    };
    Ok(Booted {
        live: Box::new(Process {
            pid,
            exit: exit.clone(),
        }),
        path,
        listener: Some(ApiListener::Loopback(listener)),
        parked: parked.map(Into::into),
        log: Some(log.into()),
        exit,
    })
}

/// The connection that a process makes. One that ends before makes none.
fn accept_from(parking: &TcpListener, process: &OwnedFd) -> io::Result<TcpStream> {
    let mut either = [
        PollFd::new(parking, PollFlags::IN),
        PollFd::new(process, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut either, None))?;
    match either[0].revents().is_empty() {
        false => Ok(parking.accept()?.0),
        true => Err(io::Error::other("the process ended before it was parked")),
    }
}

async fn start_blocking(
    boot: &HostBoot,
    spec: &LaunchSpec,
    path: BootPath,
) -> Result<Booted, BootError> {
    let (boot, spec) = (boot.clone(), spec.clone());
    tokio::task::spawn_blocking(move || start(&boot, &spec, path))
        .await
        .unwrap()
        .map_err(|e| BootError::new(e.to_string()))
}

fn fault(flag: &AtomicBool, text: &str) -> Result<(), BootError> {
    if flag.load(Ordering::SeqCst) {
        Err(BootError::new(text))
    } else {
        Ok(())
    }
}

fn outside(faults: &Faults) -> Result<(), BootError> {
    let one_less = |left: usize| left.checked_sub(1);
    match (faults.outside).fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
        Ok(_) => Err(BootError::from_outside("the blank process was killed")),
        Err(_) => Ok(()),
    }
}

struct HostSnapshot(HostBoot);

impl Snapshot for HostSnapshot {
    fn restore<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async {
            fault(&self.0.faults.restore, "no restore today")?;
            outside(&self.0.faults)?;
            start_blocking(&self.0, spec, BootPath::Restore).await
        })
    }

    fn fork<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async {
            fault(&self.0.faults.fork, "no fork today")?;
            outside(&self.0.faults)?;
            start_blocking(&self.0, spec, BootPath::Fork).await
        })
    }
}

impl Boot for HostBoot {
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(start_blocking(self, spec, BootPath::Cold))
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        _: Purpose,
        port: u16,
        _: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        Box::pin(async move {
            fault(&self.faults.checkpoint, "fd 7: io_uring instance")?;
            assert_ne!(port, 0);
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("manifest"), "good").unwrap();
            drop(live);
            Ok(CheckpointReport {
                pause_us: 5,
                resident_bytes: 4096,
                saved_pages: 1,
                stored_bytes: 0,
            })
        })
    }

    fn load<'a>(
        &'a self,
        dir: &'a Path,
        _: &'a [LoadedImage],
        _: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        Box::pin(async move {
            match fs::read(dir.join("manifest")) {
                Ok(text) if text == b"good" => Ok(LoadedImage {
                    inner: Arc::new(HostSnapshot(self.clone())),
                    pool_pages: 1,
                    mapped_pages: 2,
                    parent_pages: 0,
                    stays: Arc::default(),
                }),
                Ok(_) => Err(BootError::new("section 1: bad checksum")),
                Err(error) => Err(BootError::new(error.to_string())),
            }
        })
    }
}
