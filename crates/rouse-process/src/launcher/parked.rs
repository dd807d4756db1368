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

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rouse_pool::memory::{Hold, ImageMemory, hold_all};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::oneshot;

use super::copies::{Copies, Waits};
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

/// The instances of one function that wait for requests.
#[derive(Debug)]
pub(crate) struct Parked {
    launcher: Launcher,
    /// Weak, because it is the image that has this.
    image: Weak<Image>,
    spec: LaunchSpec,
    copies: Copies<Waiting>,
}

/// An instance that waits. It does not own its image yet, which owns it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(super) instance: Instance,
    pub(super) programs: Arc<Programs>,
    /// The pools that it maps.
    pub(super) memories: Vec<Arc<ImageMemory>>,
    pub(super) pidfd: OwnedFd,
}

impl Waits for Waiting {
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
            copies: Copies::default(),
        })
    }

    /// Those that wait.
    pub(crate) fn copies(&self) -> &Copies<Waiting> {
        &self.copies
    }

    /// From now on this many are to wait.
    fn set_target(self: &Arc<Self>, target: usize) {
        self.copies.set_target(target);
        self.fill(Duration::ZERO);
    }

    /// Keeps one that was rewound for `keep`, beside at most `most - 1` others.
    pub(super) fn put_rewound(self: &Arc<Self>, waiting: Waiting, most: usize, keep: Duration) {
        let mut exit = waiting.instance.exit.clone();
        let id = self.copies.put_rewound(waiting, most);
        let parked = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = exit.wait_for(Option::is_some);
            // Ended or not used: it goes in both cases.
            let _ = tokio::time::timeout(keep, ended).await;
            if let Some(parked) = parked.upgrade() {
                parked.copies.end_rewound(id);
            }
        });
    }

    /// Makes what is missing, in the background, after `rest`.
    pub fn fill(self: &Arc<Self>, rest: Duration) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let Some(image) = self.image.upgrade() else {
            return;
        };
        if !self.copies.begin(knows(&image.programs())) {
            return;
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
        if !self.copies.goes_on(knows(&image.programs())) {
            return false;
        }
        // One at a time on the whole node: requests come first. The semaphore is never closed.
        let _turn = self.launcher.inner.parking.acquire().await;
        match self.launcher.park(&image, &self.spec).await {
            Ok(waiting) => self.put(waiting, &image.programs()),
            Err(LaunchError::NotResident) => {
                // Its pages have been let go of: whoever wants instances again says so.
                self.copies.give_up();
                return false;
            }
            Err(error) => {
                tracing::warn!(
                    error = crate::image::chain(&error),
                    "no instance could be parked"
                );
                self.copies.failed();
            }
        }
        true
    }

    fn put(self: &Arc<Self>, waiting: Waiting, current: &Arc<Programs>) {
        let mut exit = waiting.instance.exit.clone();
        let id = self.copies.put(waiting, knows(current));
        let parked = Arc::downgrade(self);
        tokio::spawn(async move {
            let ended = exit.wait_for(Option::is_some).await.is_ok();
            let Some(parked) = parked.upgrade().filter(|_| ended) else {
                return;
            };
            // If it still waited, another one takes its place.
            if parked.copies.ended(id) {
                tracing::warn!("an instance ended while it was parked");
                parked.fill(REST);
            }
        });
    }
}

/// Does one that waits know all that is known of the function now?
fn knows(current: &Arc<Programs>) -> impl Fn(&Waiting) -> bool {
    |one| Arc::ptr_eq(&one.programs, current)
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
        let taken = parked.as_ref().and_then(|parked| parked.copies.take());
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
