//! Instances made ahead of their requests: the `parked` path.
//!
//! ```text
//!             park                  take, resume
//!  (target) ------> Making ------> Waiting ------> an ordinary instance, used once
//!                                   |   ^
//!                            dies   |   '-- made anew when what is known of the function changes
//!                                   v
//!                              (replaced)
//! ```
//! What waits is a restored instance in its own sandbox that has copied what it is known to write (see
//! `plan::parking`). It costs that memory, and is the first to go when memory is short.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rouse_pool::memory::{Hold, ImageMemory, hold_all};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;

use super::{Launcher, Parts, log_pipe, micros, unreachable_blank};
use crate::image::{Image, Programs};
use crate::instance::{BootPath, Instance, LaunchSpec, Stage};
use crate::launcher::LaunchError;
use crate::order;

/// How long an instance may take until it waits. It needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after one was taken its replacement is made: most requests have been answered by then, and should have the
/// processor to themselves.
const REST: Duration = Duration::from_millis(2);
/// Instances in a row that end before they are used, or cannot be made, until no more are made for a while.
const MOST_FAILURES: u32 = 4;
/// How long none are made then.
const PAUSE: Duration = Duration::from_secs(30);

/// The instances of one function that wait for requests.
#[derive(Debug)]
pub(crate) struct Parked {
    launcher: Launcher,
    /// Weak, because it is the image that has this.
    image: Weak<Image>,
    spec: LaunchSpec,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Those that have answered and were put back to the snapshot; the one that was used last is the first.
    rewound: VecDeque<(Instant, Waiting)>,
    target: usize,
    /// Is somebody making them?
    filling: bool,
    failures: u32,
    paused_until: Option<Instant>,
}

/// An instance that waits. It does not own its image yet, which owns it.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) instance: Instance,
    pub(super) programs: Arc<Programs>,
    /// The pools that it maps.
    pub(super) memories: Vec<Arc<ImageMemory>>,
    pub(super) pidfd: OwnedFd,
}

impl Waiting {
    fn lives(&self) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        matches!(poll(&mut polled, Some(&at_once)), Ok(0))
    }
}

impl Parked {
    fn new(launcher: &Launcher, image: &Arc<Image>, spec: &LaunchSpec) -> Arc<Self> {
        Arc::new(Self {
            launcher: launcher.clone(),
            image: Arc::downgrade(image),
            spec: spec.clone(),
            state: Mutex::default(),
        })
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// From now on this many are to wait.
    fn set_target(self: &Arc<Self>, target: usize) {
        let surplus: Vec<Waiting> = {
            let mut state = self.lock();
            state.target = target;
            let keep = target.min(state.waiting.len());
            state.waiting.drain(keep..).collect()
        };
        drop(surplus);
        self.fill(Duration::ZERO);
    }

    /// One that lives.
    fn take(self: &Arc<Self>) -> Option<Waiting> {
        loop {
            let waiting = self.lock().waiting.pop_front()?;
            if waiting.lives() {
                let mut state = self.lock();
                state.failures = 0;
                return Some(waiting);
            }
            self.failed("an instance ended while it was parked");
        }
    }

    /// How many wait that were rewound.
    pub fn rewound_len(&self) -> usize {
        self.lock().rewound.len()
    }

    /// Keeps one that was rewound for `keep`, beside at most `most - 1` others.
    pub(super) fn put_rewound(self: &Arc<Self>, waiting: Waiting, most: usize, keep: Duration) {
        let (id, mut exit) = (waiting.instance.id, waiting.instance.exit.clone());
        let since = Instant::now();
        let surplus = {
            let mut state = self.lock();
            state.rewound.push_front((since, waiting));
            let keep = most.min(state.rewound.len());
            state.rewound.split_off(keep)
        };
        drop(surplus);
        let parked = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = exit.wait_for(Option::is_some);
            // Ended or not used: it goes in both cases.
            let _ = tokio::time::timeout(keep, ended).await;
            let found = parked.upgrade().and_then(|parked| {
                let mut state = parked.lock();
                // It may have been taken, and have come back.
                let is_it =
                    |(time, one): &(Instant, Waiting)| *time == since && one.instance.id == id;
                let at = state.rewound.iter().position(is_it);
                at.and_then(|at| state.rewound.remove(at))
            });
            drop(found);
        });
    }

    /// One that was rewound and lives.
    pub(super) fn take_rewound(&self) -> Option<Waiting> {
        loop {
            let (_, waiting) = self.lock().rewound.pop_front()?;
            if waiting.lives() {
                return Some(waiting);
            }
        }
    }

    /// Ends all that were rewound.
    pub fn drop_rewound(&self) {
        let rewound = std::mem::take(&mut self.lock().rewound);
        drop(rewound);
    }

    /// Makes what is missing, in the background, after `rest`.
    pub fn fill(self: &Arc<Self>, rest: Duration) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let Some(image) = self.image.upgrade() else {
            return;
        };
        {
            let mut state = self.lock();
            if state.filling || !wants(&mut state, &image.programs()) {
                return;
            }
            state.filling = true;
        }
        let parked = Arc::downgrade(self);
        runtime.spawn(async move {
            tokio::time::sleep(rest).await;
            while let Some(parked) = parked.upgrade() {
                if !parked.fill_one().await {
                    return;
                }
            }
        });
    }

    /// Makes one if one is missing, and says whether to go on.
    async fn fill_one(self: &Arc<Self>) -> bool {
        let Some(image) = self.image.upgrade() else {
            return false;
        };
        {
            let mut state = self.lock();
            if !wants(&mut state, &image.programs()) {
                state.filling = false;
                return false;
            }
        }
        // One at a time on the whole node: requests come first. The semaphore is never closed.
        let _turn = self.launcher.inner.parking.acquire().await;
        match self.launcher.park(&image, &self.spec).await {
            Ok(waiting) => self.put(waiting, &image.programs()),
            Err(LaunchError::NotResident) => {
                // Its pages have been let go of: whoever wants instances again says so.
                let mut state = self.lock();
                state.target = 0;
                state.filling = false;
                return false;
            }
            Err(error) => self.failed(&crate::image::chain(&error)),
        }
        true
    }

    fn put(self: &Arc<Self>, waiting: Waiting, current: &Arc<Programs>) {
        let (id, mut exit) = (waiting.instance.id, waiting.instance.exit.clone());
        let mut state = self.lock();
        state.waiting.push_back(waiting);
        let mut surplus = Vec::new();
        while state.waiting.len() > state.target {
            let stale = |one: &Waiting| !Arc::ptr_eq(&one.programs, current);
            let at = state.waiting.iter().position(stale).unwrap_or(0);
            surplus.extend(state.waiting.remove(at));
        }
        drop(state);
        drop(surplus);
        let parked = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = exit.wait_for(Option::is_some).await.is_ok();
            if let Some(parked) = parked.upgrade().filter(|_| ended) {
                parked.ended(id);
            }
        });
    }

    /// An instance has ended: if it still waited, another one takes its place.
    fn ended(self: &Arc<Self>, id: u64) {
        let found = {
            let mut state = self.lock();
            let at = state.waiting.iter().position(|one| one.instance.id == id);
            at.and_then(|at| state.waiting.remove(at))
        };
        if found.is_some() {
            self.failed("an instance ended while it was parked");
            self.fill(REST);
        }
    }

    fn failed(&self, reason: &str) {
        tracing::warn!(reason, "an instance could not be kept parked");
        let mut state = self.lock();
        state.failures += 1;
        if state.failures >= MOST_FAILURES {
            state.failures = 0;
            state.paused_until = Some(Instant::now() + PAUSE);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is one to be made? Those that know less than is known now do not count, but stay until they are replaced.
fn wants(state: &mut State, current: &Arc<Programs>) -> bool {
    if state
        .paused_until
        .is_some_and(|until| Instant::now() < until)
    {
        return false;
    }
    state.paused_until = None;
    let fresh = |one: &&Waiting| Arc::ptr_eq(&one.programs, current);
    state.waiting.iter().filter(fresh).count() < state.target
}

impl Launcher {
    /// Takes an instance that was made ahead; it goes on with [`Instance::resume`]. Without one: makes it now if `make`
    /// says so, else returns `None`.
    pub async fn parked(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
        make: bool,
    ) -> Result<Option<Instance>, LaunchError> {
        let begin = Instant::now();
        image.verify_files()?;
        let verify = micros(begin);
        let taking = Instant::now();
        let parked = image.parked();
        let taken = parked.as_ref().and_then(|parked| parked.take());
        if let Some(parked) = &parked {
            parked.fill(REST);
        }
        let waiting = match taken {
            Some(waiting) => waiting,
            None if make => self.park(image, spec).await?,
            None => return Ok(None),
        };
        Ok(Some(self.awake(image, spec, waiting, verify, taking)))
    }

    /// An instance that waited, to be resumed; `verify` is in microseconds.
    pub(super) fn awake(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
        waiting: Waiting,
        verify: u64,
        taking: Instant,
    ) -> Instance {
        let Waiting {
            mut instance,
            programs,
            memories,
            ..
        } = waiting;
        let prepared = programs.prepared(instance.path);
        instance.origin = Some(self.origin(image, spec, prepared, false, memories));
        let stage = |name, us| Stage { name, us };
        let stages = vec![stage("verify", verify), stage("take", micros(taking))];
        instance.monitor.begin_again(stages);
        instance
    }

    /// The instances of an image that wait.
    pub(super) fn parked_of(&self, image: &Arc<Image>, spec: &LaunchSpec) -> Arc<Parked> {
        match image.parked() {
            Some(parked) => parked,
            None => image.set_parked(Parked::new(self, image, spec)),
        }
    }

    /// From now on keeps so many instances of a snapshot parked, as long as all its pages are in memory.
    pub fn set_parked(&self, image: &Arc<Image>, spec: &LaunchSpec, target: usize) {
        if target == 0 && image.parked().is_none() {
            return;
        }
        let parked = self.parked_of(image, spec);
        parked.set_target(if image.is_resident() { target } else { 0 });
    }

    /// Restores an instance up to its first own instruction.
    pub(super) async fn park(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Waiting, LaunchError> {
        image.verify_files()?;
        let programs = image.programs();
        let memories = image.memories();
        let holds = hold_all(&memories);
        if holds.iter().any(|hold| matches!(hold, Hold::Absent(_))) {
            return Err(LaunchError::NotResident);
        }
        let program = programs.parked(image, &self.inner.environment)?;
        let sandbox = self.sandbox(spec.limits).await?;
        let task = self.inner.lend(&spec.task_dir)?;
        let (log, log_end) = log_pipe()?;
        let (mut parts, control) = Parts::of(sandbox)?;
        let pidfd = parts.pidfd.take().ok_or(LaunchError::Cancelled)?;
        let mut fds: Vec<BorrowedFd<'_>> =
            vec![log_end.as_fd(), parts.client.as_fd(), task.as_fd()];
        fds.extend(image.descriptors(&memories));
        parts.handle.keep_until_gone(holds.clone());
        let resume = control.try_clone().map_err(unreachable_blank)?;
        let started = Instant::now();
        order::send_program(control.as_fd(), program, &fds).map_err(unreachable_blank)?;
        drop(fds);
        let (up, is_up) = oneshot::channel();
        let mut subject = parts.subject(control, started, Vec::new());
        subject.program = Some(program.program.clone());
        subject.up = Some(up);
        let mut instance = self.instance(BootPath::Parked, parts, subject, log, None);
        instance.resume = Some(resume);
        // The sender goes with whoever follows the instance, at its end.
        match tokio::time::timeout(PATIENCE, is_up).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(LaunchError::NotParked(reason(&instance))),
            Err(_) => return Err(LaunchError::NotParked("it took too long".into())),
        }
        Ok(Waiting {
            instance,
            programs: programs.clone(),
            memories,
            pidfd,
        })
    }
}

fn reason(instance: &Instance) -> String {
    let failure = instance.failure().map(|failure| failure.to_string());
    failure.unwrap_or_else(|| "it ended".into())
}
