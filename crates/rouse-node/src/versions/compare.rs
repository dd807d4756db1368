//! Measures two snapshots of one function against each other: alternately, with the same events, from the same tier.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rouse_snapshot::model::PAGE_SIZE;

use super::policy::{Comparison, Figures};
use super::warm_up;
use crate::boot::LoadedImage;
use crate::engine::build::ended_text;
use crate::engine::function::{Function, Revision};
use crate::engine::runner::{Ended, Runner};
use crate::function::record::SnapshotRecord;
use crate::node::Node;
use crate::runtime_api::session::RuntimeAnswer;

/// Restores of each before anything is measured: they record which pages a call touches, so that a new snapshot is as well
/// prepared as one that has been in use.
const UNMEASURED: usize = 3;

/// Restores of each that are measured.
const PAIRS: usize = 9;

/// A snapshot that is measured.
#[derive(Clone, Copy)]
pub struct Contender<'a> {
    /// Loaded.
    pub image: &'a LoadedImage,
    /// As it is, or will be, stored.
    pub record: &'a SnapshotRecord,
}

/// Runs the events on copies of both.
pub async fn compare(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    contenders: [Contender<'_>; 2],
    events: &[Bytes],
) -> Result<Comparison, String> {
    for one in contenders {
        // Otherwise the one whose pages lie on disk would be measured with the disk.
        let placed = one.image.make_resident(None).await;
        placed.map_err(|error| format!("its pages could not be brought into memory: {error}"))?;
    }
    let mut times = [Vec::new(), Vec::new()];
    for (index, event) in events.iter().cycle().take(UNMEASURED + PAIRS).enumerate() {
        // Who comes first changes, because the second one finds warmer caches.
        for which in [index % 2, 1 - index % 2] {
            let one = contenders[which];
            let time = sample(node, function, revision, one, event)
                .await
                .map_err(|reason| format!("version {} failed: {reason}", one.record.version))?;
            if index >= UNMEASURED {
                times[which].push(time);
            }
        }
    }
    let faster = (times[0].iter().zip(&times[1]))
        .filter(|(current, candidate)| candidate < current)
        .count();
    let figures = |one: Contender<'_>, times: &mut Vec<Duration>| Figures {
        p50_us: median(times),
        stored_bytes: one.record.disk_bytes,
        working_set_bytes: one.image.image_use().hot_pages * PAGE_SIZE,
    };
    let [current, candidate] = contenders;
    let [current_times, candidate_times] = &mut times;
    Ok(Comparison {
        current: figures(current, current_times),
        candidate: figures(candidate, candidate_times),
        pairs: PAIRS,
        faster,
    })
}

/// From the start of a restore to the answer.
async fn sample(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    one: Contender<'_>,
    payload: &Bytes,
) -> Result<Duration, String> {
    let event = warm_up::event(node, revision, payload);
    let timeout = event.timeout;
    let begin = Instant::now();
    let booted = one.image.restore(&revision.launches.snapshot);
    let booted = booted.await.map_err(|error| error.to_string())?;
    let restored = Runner::restored(
        booted,
        Arc::clone(revision),
        one.record.point,
        Some((event, &revision.record.version)),
        &function.log,
        &function.counters.instances,
    )
    .map_err(|error| format!("the copy could not be served: {error}"))?;
    let answer = restored
        .answer
        .ok_or("the copy has no connection for its parked request")?;
    let start_limit = Duration::from_secs(node.config.restore_timeout_s);
    let runner = restored.runner;
    let ended = runner.finish(answer, start_limit, timeout).await;
    let time = begin.elapsed();
    runner.capture.end(&[]);
    match ended {
        Ended::Answer(RuntimeAnswer::Response { .. }) => {}
        other => return Err(ended_text(other, timeout)),
    }
    drop(runner.observed().await);
    Ok(time)
}

fn median(times: &mut [Duration]) -> u64 {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    u64::try_from(middle.as_micros()).unwrap_or(u64::MAX)
}
