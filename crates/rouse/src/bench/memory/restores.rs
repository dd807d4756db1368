//! Restores of one function in all situations in turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use rouse_process::launcher::Image;
use serde::Serialize;

use super::situation::{Situation, arrange};
use crate::bench::caller::Caller;
use crate::bench::functions::Function;
use crate::bench::report::Row;
use crate::bench::samples::Samples;
use crate::local::Session;
use crate::output::error::{Failed, chain};
use crate::output::progress::Step;

/// A deployed function, under the name of one of its copies.
pub struct Copy<'a> {
    /// Name on the node.
    pub name: String,
    /// What it is a copy of.
    pub function: &'a Function,
    /// Its snapshot.
    pub image: Arc<Image>,
}

/// What the pager did for one request, on average.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Paged {
    /// Faults on absent pages.
    pub faults: f64,
    /// Pages that came because one of them was touched.
    pub demanded_pages: f64,
    /// Pages that came ahead.
    pub prefetched_pages: f64,
    /// Bytes read, KiB.
    pub read_kib: f64,
}

/// What was seen in one situation.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    /// Times.
    #[serde(flatten)]
    pub row: Row,
    /// The pager's part.
    pub paged: Paged,
}

#[derive(Debug, Default)]
struct Tally {
    samples: Samples,
    paged: Paged,
}

/// Sends `requests` in each situation. Situations take turns, and the order changes with each round.
pub fn measure(
    session: &Session,
    copies: &[(Situation, &Copy<'_>)],
    requests: usize,
    step: &Step,
) -> Result<BTreeMap<Situation, Seen>, Failed> {
    let mut callers = copies
        .iter()
        .map(|(_, copy)| Caller::open(&session.endpoint, &copy.name))
        .collect::<Result<Vec<_>, _>>()?;
    let mut tallies: BTreeMap<Situation, Tally> = BTreeMap::new();
    for round in 0..requests {
        for index in 0..copies.len() {
            session.go_on()?;
            let index = (index + round) % copies.len();
            let (situation, copy) = &copies[index];
            step.message(situation.name());
            arrange(session, &copy.image, *situation)?;
            let tally = tallies.entry(*situation).or_default();
            let before = paged(session);
            let n = round as u64;
            match callers[index].call("restore", &copy.function.event(n)) {
                Ok((sample, answer)) if copy.function.is_right(n, &answer) => {
                    tally.samples.add(sample)
                }
                Ok((_, answer)) => tally.samples.add_wrong(|| {
                    format!(
                        "a wrong answer to event {n}: {}",
                        String::from_utf8_lossy(&answer)
                    )
                }),
                Err(error) => tally.samples.add_wrong(|| chain(&error).join(": ")),
            }
            add_difference(&mut tally.paged, before, paged(session));
            step.advance();
        }
    }
    let seen = |tally: &Tally| Seen {
        row: Row::new(1, &tally.samples),
        paged: average(tally.paged, requests),
    };
    Ok(tallies
        .iter()
        .map(|(situation, tally)| (*situation, seen(tally)))
        .collect())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of one run are far below 2^52"
)]
fn paged(session: &Session) -> Paged {
    let mut sum = Paged::default();
    let Some(stats) = session.launcher.pager_stats() else {
        return sum;
    };
    for pool in stats.pools.values() {
        sum.faults += pool.faults as f64;
        sum.demanded_pages += pool.demanded_pages as f64;
        sum.prefetched_pages += pool.prefetched_pages as f64;
        sum.read_kib += pool.read_bytes as f64 / 1024.0;
    }
    sum
}

fn add_difference(to: &mut Paged, before: Paged, after: Paged) {
    to.faults += after.faults - before.faults;
    to.demanded_pages += after.demanded_pages - before.demanded_pages;
    to.prefetched_pages += after.prefetched_pages - before.prefetched_pages;
    to.read_kib += after.read_kib - before.read_kib;
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of one run are far below 2^52"
)]
fn average(sum: Paged, count: usize) -> Paged {
    let per = |value: f64| (value / count.max(1) as f64).round();
    Paged {
        faults: per(sum.faults),
        demanded_pages: per(sum.demanded_pages),
        prefetched_pages: per(sum.prefetched_pages),
        read_kib: per(sum.read_kib),
    }
}
