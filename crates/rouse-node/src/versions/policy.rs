//! Which later snapshot is worth a trial, and which of two snapshots is better. Pure functions of what was measured.
//!
//! The search is Pronghorn's question in its simplest form: a snapshot may be taken after more and more requests, and at
//! some point more of them do not help any more. Rounds grow by four, and the search ends with the first that is not better.

use serde::{Deserialize, Serialize};

/// Rounds of warm-up events that are tried, one after the other. The first makes up for lazy imports and connections,
/// the last for interpreters that compile what is called often.
const LADDER: [u32; 4] = [1, 4, 16, 64];

/// How much a snapshot's size counts against its latency: the exponent of the ratio of sizes. A function's latency is paid
/// by every call, its size once on a node.
const SIZE_WEIGHT: f64 = 0.5;

/// A snapshot may be slower than this only by what measurements differ anyway.
const SLOWER_AT_MOST: f64 = 1.03;

/// Of the pairs that were measured, so many (of three) must have been won by the snapshot that is to be better.
const WON_OF_THREE: usize = 2;

/// What was measured of one snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Median time from the start of a restore to the answer, microseconds.
    pub p50_us: u64,
    /// Bytes on disk.
    pub stored_bytes: u64,
    /// Bytes of pages that a call touches.
    pub working_set_bytes: u64,
}

impl Figures {
    fn bytes(self) -> u64 {
        self.stored_bytes.saturating_add(self.working_set_bytes)
    }
}

/// Two snapshots, measured alternately with the same events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// The one in use.
    pub current: Figures,
    /// The one that may replace it.
    pub candidate: Figures,
    /// Times that both were measured.
    pub pairs: usize,
    /// Of these, times that the candidate was faster.
    pub faster: usize,
}

impl Comparison {
    /// The ratio of latencies times the ratio of sizes, as far as size counts: below 1 the candidate is better.
    pub fn score(&self) -> f64 {
        let ratio = |new: u64, old: u64| (new.max(1) as f64) / (old.max(1) as f64);
        let size = ratio(self.candidate.bytes(), self.current.bytes());
        ratio(self.candidate.p50_us, self.current.p50_us) * size.powf(SIZE_WEIGHT)
    }

    /// Is the candidate better by at least `margin` (0.1 for 10 %)?
    ///
    /// It must not be slower in any case. If it is faster, most pairs must show it: a median alone can be luck.
    pub fn is_better(&self, margin: f64) -> bool {
        let latency = self.candidate.p50_us as f64 / self.current.p50_us.max(1) as f64;
        let is_smaller = self.candidate.bytes() < self.current.bytes();
        let is_won = self.faster * 3 >= self.pairs * WON_OF_THREE;
        self.pairs > 0
            && latency <= SLOWER_AT_MOST
            && (is_won || is_smaller)
            && self.score() <= 1.0 - margin
    }
}

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The new snapshot is used.
    Kept,
    /// It was not better.
    Rejected,
    /// It could not be taken or measured.
    Failed,
}

/// How many rounds the next trial should have, after what trials came to. `None` when the search is over.
pub fn next_rounds(trials: &[(u32, Outcome)]) -> Option<u32> {
    if trials.iter().any(|(_, outcome)| *outcome != Outcome::Kept) {
        return None;
    }
    let tried = trials.iter().map(|(rounds, _)| *rounds).max().unwrap_or(0);
    LADDER.into_iter().find(|rounds| *rounds > tried)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
