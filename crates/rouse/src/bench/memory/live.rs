//! What each of many live instances of one function costs.

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::processes::{
    available_kib, family, kernel_kib_of_sandbox, restored, rollup_kib, sandbox_of,
};
use crate::bench::caller::Caller;
use crate::bench::functions::Function;
use crate::local::Session;
use crate::output::error::Failed;

/// Instances that have done their work, and what they cost.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Crowd {
    /// Live instances.
    pub instances: usize,
    /// Proportional set sizes of all processes in their sandboxes, KiB.
    pub pss_kib: u64,
    /// Kernel memory of their sandboxes, KiB.
    pub kernel_kib: u64,
    /// Pages that the function's processes have written, KiB.
    pub private_kib: u64,
    /// What the system had left, KiB.
    pub available_kib: u64,
}

/// One instance and many.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Live {
    /// One.
    pub one: Crowd,
    /// Many.
    pub many: Crowd,
    /// What one more costs: proportional set sizes and kernel memory, KiB.
    pub added_kib: f64,
    /// What one more has written, KiB.
    pub private_kib: f64,
    /// By how much what the system has left became smaller for each, KiB: with everything, and with noise.
    pub system_kib: f64,
    /// Answers that were wrong or did not come.
    pub wrong: usize,
}

impl Live {
    /// What one more costs beyond 256 KiB, as a multiple of its private pages.
    pub fn ratio(&self) -> f64 {
        (self.added_kib - 256.0) / self.private_kib
    }
}

/// Why instances could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// They did not come up in time.
    #[error("of {asked} instances only {found} came up")]
    Few {
        /// How many were wanted.
        asked: usize,
        /// How many were there.
        found: usize,
    },
}

/// How long an instance stays after its work, seconds. All must come up and be looked at meanwhile.
const HOLD_S: u64 = 20;
/// How long they may take to come up.
const PATIENCE: Duration = Duration::from_secs(15);
/// From when the last one is there until it has surely done its work.
const SETTLE: Duration = Duration::from_secs(2);

/// Has one instance live, then `many` at the same time.
#[expect(
    clippy::cast_precision_loss,
    reason = "memory of a machine in KiB is far below 2^52"
)]
pub fn measure(
    session: &Session,
    function: &Function,
    name: &str,
    many: usize,
) -> Result<Live, Failed> {
    let (one, first_wrong) = crowd(session, function, name, 1)?;
    let (many, wrong) = crowd(session, function, name, many)?;
    let more = (many.instances - one.instances).max(1) as f64;
    let added = (many.pss_kib + many.kernel_kib) as f64 - (one.pss_kib + one.kernel_kib) as f64;
    Ok(Live {
        one,
        many,
        added_kib: (added / more).round(),
        private_kib: ((many.private_kib as f64 - one.private_kib as f64) / more).round(),
        system_kib: ((one.available_kib as f64 - many.available_kib as f64) / more).round(),
        wrong: first_wrong + wrong,
    })
}

fn crowd(
    session: &Session,
    function: &Function,
    name: &str,
    count: usize,
) -> Result<(Crowd, usize), Failed> {
    thread::scope(|scope| {
        let callers: Vec<_> = (0..count as u64)
            .map(|n| {
                scope.spawn(move || {
                    let event = format!("{{\"n\": {n}, \"hold\": {HOLD_S}}}");
                    let answer = Caller::open(&session.endpoint, name)
                        .ok()
                        .and_then(|mut caller| caller.call("restore", event.as_bytes()).ok());
                    answer.is_some_and(|(_, answer)| function.is_right(n, &answer))
                })
            })
            .collect();
        let seen = look(session, count);
        let right = callers.into_iter().map(|caller| caller.join());
        let wrong = right.filter(|right| !matches!(right, Ok(true))).count();
        Ok((seen?, wrong))
    })
}

fn look(session: &Session, count: usize) -> Result<Crowd, LiveError> {
    let spawner = session.launcher.spawner_pid().unsigned_abs();
    let begin = Instant::now();
    let mut found = restored(&family(spawner));
    while found.len() < count {
        if begin.elapsed() > PATIENCE {
            let (asked, found) = (count, found.len());
            return Err(LiveError::Few { asked, found });
        }
        thread::sleep(Duration::from_millis(50));
        found = restored(&family(spawner));
    }
    thread::sleep(SETTLE);
    // Without those that were just ending.
    found = restored(&family(spawner));
    let mut crowd = Crowd {
        instances: found.len(),
        pss_kib: 0,
        kernel_kib: 0,
        private_kib: 0,
        available_kib: available_kib().unwrap_or(0),
    };
    for pid in found {
        let sandbox = sandbox_of(pid);
        let is_alone = sandbox.is_empty();
        for member in sandbox.into_iter().chain(is_alone.then_some(pid)) {
            crowd.pss_kib += rollup_kib(member, &["Pss"]);
        }
        crowd.kernel_kib += kernel_kib_of_sandbox(pid).unwrap_or(0);
        crowd.private_kib += rollup_kib(pid, &["Anonymous"]);
    }
    Ok(crowd)
}
