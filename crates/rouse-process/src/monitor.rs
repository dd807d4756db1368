//! Follows an instance from its first message to its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rouse_pool::TouchRecord;
use rouse_pool::keeper::{PagerHandle, PoolMapping};
use rouse_restorer::op::FAILURE_TAG;
use rouse_restorer::program::Program;
use rouse_sandbox::SandboxHandle;
use rouse_sandbox::exec::CANNOT_RUN;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::credentials::{self, Message};
use crate::instance::{ExitReason, Failure, Stage};
use crate::plan::{RESTORE_STAGES, RESUMED_LEN, WATCH_ME};
use crate::reaper::Reaper;

/// What is known of an instance's boot.
#[derive(Debug, Clone)]
pub struct Monitor {
    state: Arc<Mutex<State>>,
    /// Wakes whoever waits until it has told all.
    heard: Arc<Notify>,
    rewinds: mpsc::UnboundedSender<Rewound>,
}

/// An instance that has been put back to its snapshot: it is followed once more.
#[derive(Debug)]
struct Rewound {
    control: OwnedFd,
    started: Instant,
    program: Arc<Program>,
}

#[derive(Debug)]
struct State {
    pid: Option<i32>,
    stages: Vec<Stage>,
    failure: Option<Failure>,
    /// Hears when it is up.
    up: Option<oneshot::Sender<()>>,
    /// When an instance that was parked was told to go on.
    resumed: Option<Instant>,
    /// It has said that it goes on.
    went_on: bool,
    /// It has said how its boot went, or will not.
    reported: bool,
    /// How often it was rewound.
    rewinds: u64,
    /// By which the pager knows it, if its memory is watched.
    token: Option<u64>,
    /// It says nothing more since it was rewound so often.
    silent: Option<u64>,
}

impl State {
    fn has_told_all(&self) -> bool {
        let goes_on = self.resumed.is_none() || self.went_on;
        self.silent == Some(self.rewinds) || self.failure.is_some() || (self.reported && goes_on)
    }
}

/// Memory of which pages may be absent.
pub struct Watch {
    /// Who fills it.
    pub pager: PagerHandle,
    /// What is to be watched.
    pub mappings: Vec<PoolMapping>,
    /// Whether the working set is brought in before the instance goes on.
    pub prefetch: bool,
    /// What is to be seen of its touches.
    pub sight: Sight,
}

/// What is to be seen of what an instance touches.
#[derive(Debug)]
pub enum Sight {
    /// What its page tables happen to say.
    Blurred,
    /// Its page tables are to say exactly what it touches.
    Exact,
    /// The same, and in which order.
    Ordered(Arc<TouchRecord>),
}

impl Watch {
    /// Has the pager watch the instance's memory, and lets it go on.
    async fn begin(
        self,
        control: &AsyncFd<OwnedFd>,
        uffd: OwnedFd,
        sandbox: &SandboxHandle,
    ) -> Result<u64, String> {
        let Self {
            pager,
            mappings,
            prefetch,
            sight,
        } = self;
        let task = tokio::task::spawn_blocking(move || match sight {
            Sight::Blurred => pager.register(uffd, &mappings, prefetch),
            Sight::Exact => pager.register_exactly(uffd, &mappings, prefetch),
            Sight::Ordered(record) => pager.register_recorded(uffd, &mappings, prefetch, &record),
        });
        let registration = task
            .await
            .map_err(|_| "its memory cannot be watched: the task was cancelled".to_owned())?
            .map_err(|error| format!("its memory cannot be watched: {error}"))?;
        let token = registration.token();
        sandbox.keep_until_gone(registration);
        rustix::io::write(control.get_ref(), &[1])
            .map(|_| token)
            .map_err(|error| format!("it cannot be told to go on: {error}"))
    }
}

/// What to follow.
pub struct Subject {
    /// Known for all but clones, whose first message tells it.
    pub pid: Option<i32>,
    /// Stages that are over.
    pub stages: Vec<Stage>,
    /// The node's end of its control socket.
    pub control: OwnedFd,
    /// When the order went out.
    pub started: Instant,
    /// What it runs, to explain failures.
    pub program: Option<Arc<Program>>,
    /// Hears when it is up; is dropped when it has ended.
    pub up: Option<oneshot::Sender<()>>,
    /// Where it lives.
    pub sandbox: Arc<SandboxHandle>,
    /// If pages of its memory may be absent.
    pub watch: Option<Watch>,
}

impl Monitor {
    /// Follows in a task of its own.
    pub fn start(
        mut subject: Subject,
        reaper: &Reaper,
    ) -> (Self, watch::Receiver<Option<ExitReason>>) {
        let state = State {
            pid: subject.pid,
            stages: subject.stages.clone(),
            failure: None,
            up: subject.up.take(),
            resumed: None,
            went_on: false,
            reported: subject.program.is_none(),
            rewinds: 0,
            token: None,
            silent: None,
        };
        let (rewinds, again) = mpsc::unbounded_channel();
        let monitor = Self {
            state: Arc::new(Mutex::new(state)),
            heard: Arc::default(),
            rewinds,
        };
        let (ended, exit) = watch::channel(None);
        let follower = monitor.clone();
        tokio::spawn(follower.follow(subject, reaper.clone(), ended, again));
        (monitor, exit)
    }

    pub fn pid(&self) -> Option<i32> {
        self.lock().pid
    }

    /// By which the pager knows it, if its memory is watched.
    pub fn token(&self) -> Option<u64> {
        self.lock().token
    }

    pub fn stages(&self) -> Vec<Stage> {
        self.lock().stages.clone()
    }

    /// Waits until it has told all that it tells before its own code runs. What an instance answers may be known before
    /// that has been read.
    pub async fn told(&self) {
        loop {
            let heard = self.heard.notified();
            if self.lock().has_told_all() {
                return;
            }
            heard.await;
        }
    }

    /// An instance that was made ahead is taken: its stages begin with these.
    pub fn begin_again(&self, stages: Vec<Stage>) {
        self.lock().stages = stages;
    }

    /// Has an instance that was parked gone on? Certain once its end is known: what it said before was read by then.
    pub fn went_on(&self) -> bool {
        self.lock().went_on
    }

    /// It is about to be told to go on.
    pub fn resuming(&self) {
        self.lock().resumed = Some(Instant::now());
    }

    /// The instance has been put back to its snapshot and waits, with another control socket.
    pub fn rewound(&self, control: OwnedFd, started: Instant, program: Arc<Program>) {
        {
            let mut state = self.lock();
            state.stages = Vec::new();
            state.resumed = None;
            state.went_on = false;
            state.reported = false;
            state.rewinds += 1;
        }
        // Nobody listens any more when the instance has ended.
        let _ = self.rewinds.send(Rewound {
            control,
            started,
            program,
        });
    }

    pub fn failure(&self) -> Option<Failure> {
        self.lock().failure.clone()
    }

    async fn follow(
        self,
        subject: Subject,
        reaper: Reaper,
        ended: watch::Sender<Option<ExitReason>>,
        mut again: mpsc::UnboundedReceiver<Rewound>,
    ) {
        let Subject {
            pid,
            control,
            started,
            program,
            sandbox,
            mut watch,
            ..
        } = subject;
        // A process with a known pid may end without a word.
        let mut end = pid.map(|pid| reaper.end_of(pid, started));
        self.attend(
            control,
            started,
            program.as_deref(),
            &sandbox,
            &mut watch,
            0,
        )
        .await;
        if end.is_none() {
            end = self.pid().map(|pid| reaper.end_of(pid, started));
        }
        let mut round = 0;
        let status = match end {
            Some(mut end) => loop {
                // What is said on a new control socket is heard before the end is told.
                let rewound = tokio::select! {
                    biased;
                    Some(rewound) = again.recv() => rewound,
                    status = &mut end => break status.ok(),
                };
                let Rewound {
                    control,
                    started,
                    program,
                } = rewound;
                round += 1;
                self.attend(control, started, Some(&program), &sandbox, &mut None, round)
                    .await;
            },
            // It ended before it could say who it is.
            None => None,
        };
        self.lock().up = None;
        let reason = match status {
            Some(status) if libc::WIFEXITED(status) => ExitReason::Code(libc::WEXITSTATUS(status)),
            Some(status) if libc::WTERMSIG(status) == libc::SIGKILL && sandbox.oom_kills() > 0 => {
                ExitReason::OutOfMemory
            }
            Some(status) => ExitReason::Signal(libc::WTERMSIG(status)),
            None => ExitReason::Signal(libc::SIGKILL),
        };
        ended.send_replace(Some(reason));
    }

    /// Listens to a control socket to its end; an instance whose memory is not watched then is ended.
    async fn attend(
        &self,
        control: OwnedFd,
        started: Instant,
        program: Option<&Program>,
        sandbox: &SandboxHandle,
        watch: &mut Option<Watch>,
        round: u64,
    ) {
        // SAFETY: `OwnedFd` owns its descriptor and always names the same one.
        let outcome = match unsafe { AsyncFd::register(control) } {
            Ok(control) => {
                let heard = self.listen(&control, started, program, sandbox, watch);
                heard.await.inspect_err(|_| sandbox.kill())
            }
            Err(error) => Err(format!("its control socket cannot be watched: {error}")),
        };
        {
            let mut state = self.lock();
            if let Err(failure) = outcome {
                // It lives no more, or the pager does not, or is full.
                state.failure = Some(Failure::Lost(failure));
            }
            state.silent = Some(round);
        }
        self.heard.notify_waiters();
    }

    /// Reads messages until the other end is closed, which is when the function's own code runs.
    ///
    /// # Errors
    /// Why the instance's memory is not watched: it waits, and must be ended.
    async fn listen(
        &self,
        control: &AsyncFd<OwnedFd>,
        started: Instant,
        program: Option<&Program>,
        sandbox: &SandboxHandle,
        watch: &mut Option<Watch>,
    ) -> Result<(), String> {
        loop {
            let Ok(mut ready) = control.readable().await else {
                return Ok(());
            };
            let message =
                ready.try_io(|fd| credentials::receive(fd.as_fd()).map_err(io::Error::from));
            match message {
                Ok(Ok(message)) if message.bytes.is_empty() => return Ok(()),
                Ok(Ok(Message {
                    bytes,
                    descriptor: Some(uffd),
                    ..
                })) if bytes == WATCH_ME.to_le_bytes() => {
                    if let Some(watch) = watch.take() {
                        let token = watch.begin(control, uffd, sandbox).await?;
                        self.lock().token = Some(token);
                    }
                }
                Ok(Ok(message)) => {
                    self.take(&message.bytes, message.pid, started, program);
                    self.heard.notify_waiters();
                }
                Ok(Err(_)) => return Ok(()),
                Err(_would_block) => {}
            }
        }
    }

    fn take(&self, bytes: &[u8], pid: Option<i32>, started: Instant, program: Option<&Program>) {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .filter_map(|w| w.first_chunk())
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        let mut state = self.lock();
        state.pid = state.pid.or(pid);
        if let [FAILURE_TAG, op, result] = words[..] {
            let what = program.map_or_else(String::new, |program| program.describe(op));
            let error = io::Error::from_raw_os_error(-(result as i64) as i32);
            state.failure = Some(Failure::Platform(format!("{what}: {error}")));
        } else if program.is_some() && words.len() == 2 * (RESTORE_STAGES.len() + 1) {
            // struct timespec: seconds, nanoseconds.
            let stamps: Vec<u64> = words
                .chunks_exact(2)
                .map(|t| t[0] * 1_000_000 + t[1] / 1000)
                .collect();
            let ordered = monotonic_us(started);
            state.stages.push(Stage {
                name: "wake",
                us: stamps[0].saturating_sub(ordered),
            });
            for (name, pair) in RESTORE_STAGES.iter().zip(stamps.windows(2)) {
                state.stages.push(Stage {
                    name,
                    us: pair[1].saturating_sub(pair[0]),
                });
            }
            state.reported = true;
            if let Some(up) = state.up.take() {
                // Whoever waited may have given up.
                let _ = up.send(());
            }
        } else if let ([seconds, nanoseconds], RESUMED_LEN, Some(resumed)) =
            (&words[..], bytes.len(), state.resumed)
        {
            let stamp = seconds * 1_000_000 + nanoseconds / 1000;
            let us = stamp.saturating_sub(monotonic_us(resumed));
            state.stages.push(Stage { name: "wake", us });
            state.went_on = true;
        } else if let Ok(text) = std::str::from_utf8(bytes) {
            state.failure = Some(match text.strip_prefix(CANNOT_RUN) {
                Some(reason) => Failure::Program(reason.to_owned()),
                None => Failure::Platform(text.to_owned()),
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `CLOCK_MONOTONIC` at `instant`, microseconds.
fn monotonic_us(instant: Instant) -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now_us = now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000;
    now_us.saturating_sub(instant.elapsed().as_micros() as u64)
}
