//! Decides what is prepared: when the set changes, when it is recorded anew, whether it pays at all.
//!
//! ```text
//!             first observations           residual faults over the bound
//!  Learning ----------------------> Living -------------------------------> Recording
//!                                     ^ |  each 16th, each blind one:           | blind boots, the past
//!                                     | `- predict again if much would change   | counts no more
//!                                     `-----------------------------------------'
//! ```
//! Pure: it is told what was observed and says what to do, so that it can be tested without a process.

use std::collections::BTreeMap;

use serde::Serialize;

use rouse_snapshot::working_set::{Record, SnapshotBinding, WorkingSet};

use super::Observation;
use super::costs::Costs;
use super::heat::{Heats, predicted};
use super::schedule::Schedule;

/// Observations after which the first sets are predicted.
const FIRST_SETS: [u64; 3] = [1, 4, 16];
/// Later the set is looked at again after so many observations.
const REVIEW_EVERY: u64 = 16;
/// Programs are compiled again, and templates made again, only when at least so many pages change.
const WORTH_A_CHANGE: u64 = 16;
/// What missed pages may cost an invocation on average before the set is recorded anew, nanoseconds, however small it is.
const LOSS_FLOOR_NS: f64 = 50_000.0;
/// The same as a share of what the set saves when it is right.
const LOSS_SHARE: f64 = 0.125;
/// Observations of a recording; all are of blind boots where the boot path allows it.
const RECORDED: u32 = 4;
/// Invocations between recordings: doubled by each one that follows soon, so that a function without a pattern is not
/// recorded all the time.
const RECORDING_GAP: u64 = 16;
const LONGEST_GAP: u64 = 4096;
/// Blind observations before it is believed whether the set pays.
const JUDGED_AFTER: u32 = 3;
/// What it must cost to be switched off, and save to be switched on again, nanoseconds an invocation.
const MARGIN_NS: f64 = 5_000.0;

/// How the set did in one invocation, pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Prepared, or to be prepared were it switched on.
    pub predicted: u64,
    /// Of these, touched.
    pub used: u64,
    /// Of these, not touched.
    pub wasted: u64,
    /// Touched without being predicted.
    pub missed: u64,
}

/// What is known of a function's working set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WorkingSetReport {
    /// Counts the sets that were predicted; 0 before the first one.
    pub version: u64,
    /// Are boots prepared with it?
    pub on: bool,
    /// Pages that are predicted to be written.
    pub predicted_written: u64,
    /// Pages that are predicted to be read only.
    pub predicted_read: u64,
    /// Of the predicted pages, those of which it is known in which order they are first touched.
    pub ordered: u64,
    /// How it did in the last blind boot. Only those tell used pages from wasted ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_blind: Option<Outcome>,
    /// Pages that were touched though not predicted, in the last observation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// The same, on average over the last observations.
    pub residual: f64,
    /// Minor faults of the last instance that was observed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Microseconds that the set saves an invocation on average, as far as blind boots tell; negative when it costs more.
    pub gain_us: f64,
    /// Invocations that answered.
    pub invocations: u64,
    /// Of these, observed since the node started.
    pub observations: u64,
    /// Times that the set was recorded anew since the node started, because too much was missed.
    pub recordings: u64,
    /// Was a recording going on?
    pub recording: bool,
    /// Why what was stored could not be used, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Learns the working set of one snapshot.
#[derive(Debug)]
pub struct Learner {
    costs: Costs,
    /// Starts of the mappings, sorted: no range crosses one.
    starts: Vec<u64>,
    heats: Heats,
    version: u64,
    on: bool,
    observations: u64,
    residual: f64,
    /// Observations since the set last changed.
    settled: u32,
    /// What preparing the missed pages would have saved an invocation on average, nanoseconds.
    loss_ns: f64,
    /// The same right after a recording: a function that always touches other pages.
    accepted_ns: f64,
    gain_ns: f64,
    blind: u32,
    /// Observations that the recording still needs.
    recording: Option<u32>,
    recordings: u64,
    next_recording: u64,
    gap: u64,
    last_blind: Option<Outcome>,
    missed: Option<u64>,
    minor_faults: Option<u64>,
    problem: Option<String>,
}

impl Learner {
    /// Knows nothing. `starts` are the starts of the snapshot's mappings.
    pub fn new(starts: Vec<u64>, costs: Costs) -> Self {
        Self {
            costs,
            starts,
            heats: Heats::default(),
            version: 0,
            on: true,
            observations: 0,
            residual: 0.0,
            settled: 0,
            loss_ns: 0.0,
            accepted_ns: 0.0,
            gain_ns: 0.0,
            blind: 0,
            recording: None,
            recordings: 0,
            next_recording: 0,
            gap: RECORDING_GAP,
            last_blind: None,
            missed: None,
            minor_faults: None,
            problem: None,
        }
    }

    /// Goes on where a record ends.
    pub fn resume(record: &Record, starts: Vec<u64>, costs: Costs) -> Self {
        Self {
            heats: Heats::from_runs(&record.runs, record.horizon),
            version: record.version,
            on: record.on,
            // What was learnt at the first observations is not to be learnt again.
            observations: u64::from(record.horizon),
            residual: f64::from(record.residual),
            gain_ns: record.gain_ns as f64,
            ..Self::new(starts, costs)
        }
    }

    /// Begins anew because what was stored cannot be used.
    pub(crate) fn with_problem(mut self, problem: String) -> Self {
        self.problem = Some(problem);
        self
    }

    /// What boots are to be prepared with now.
    pub fn working_set(&self) -> WorkingSet {
        match self.on {
            true => self.heats.working_set(&self.starts),
            false => WorkingSet::default(),
        }
    }

    /// What is predicted, whether boots are prepared with it or not.
    pub fn predicted_set(&self) -> WorkingSet {
        self.heats.working_set(&self.starts)
    }

    /// Places of predicted pages in the order of first touches, by address, as far as it was recorded.
    pub fn places(&self) -> BTreeMap<u64, u32> {
        self.heats.places()
    }

    /// Counts an observation. Returns whether the [`working_set`](Self::working_set) is another one now.
    pub(crate) fn add(&mut self, seen: &Observation, schedule: &Schedule) -> bool {
        self.observations += 1;
        self.settled = self.settled.saturating_add(1);
        self.minor_faults = Some(seen.minor_faults);
        let exact = seen.is_exact() && self.version > 0;
        if exact {
            self.judge(seen);
        }
        let score = self.heats.add(seen);
        if exact {
            self.last_blind = Some(Outcome {
                predicted: score.used + score.wasted,
                used: score.used,
                wasted: score.wasted,
                missed: score.missed,
            });
        }
        if self.version > 0 {
            self.missed = Some(score.missed);
            self.residual = average(self.residual, score.missed as f64, self.settled);
            let read = score.missed - score.missed_written;
            let loss = self.costs.value(score.missed_written, read);
            self.loss_ns = average(self.loss_ns, loss, self.settled);
        }
        let was = (self.version, self.on);
        self.switch();
        self.review(exact, schedule);
        let prepared = self.on && self.version > 0;
        schedule.set_prepared(prepared);
        was != (self.version, self.on) && (was.1 || self.on)
    }

    /// Predicts the first set by what a rehearsal has touched. That is no observation of an invocation: the first one of
    /// those outweighs it. Returns false, and changes nothing, if something is known already.
    pub(crate) fn rehearse(&mut self, seen: &Observation, schedule: &Schedule) -> bool {
        if self.version > 0 || self.observations > 0 {
            return false;
        }
        self.heats.add(seen);
        self.select(false);
        self.heats.horizon = 0;
        schedule.set_prepared(true);
        true
    }

    /// What the present set saved in a boot in which everything could be seen.
    fn judge(&mut self, seen: &Observation) {
        let gain = self.heats.gain(seen, &self.costs) as f64;
        self.blind = self.blind.saturating_add(1);
        self.gain_ns = average(self.gain_ns, gain, self.blind);
    }

    /// On or off, by what it saves.
    fn switch(&mut self) {
        if self.blind < JUDGED_AFTER {
            return;
        }
        let limit = if self.on { -MARGIN_NS } else { MARGIN_NS };
        let on = self.gain_ns > limit;
        if on != self.on {
            self.on = on;
            // The next change needs as many blind boots of its own.
            self.blind = 0;
        }
    }

    fn review(&mut self, exact: bool, schedule: &Schedule) {
        if let Some(left) = self.recording {
            self.recording = left.checked_sub(1).filter(|left| *left > 0);
            if self.recording.is_none() {
                // What was at the edge before says nothing about the new pattern.
                self.select(false);
                self.settled = 0;
            }
            return;
        }
        if FIRST_SETS.contains(&self.observations) {
            return self.select(false);
        }
        if self.misses_too_much() && schedule.answered() >= self.next_recording {
            return self.record_anew(schedule);
        }
        if exact || self.observations.is_multiple_of(REVIEW_EVERY) {
            let changes = self.heats.changes(&self.costs, true);
            if changes > WORTH_A_CHANGE.max(predicted(&self.predicted_set()) / 8) {
                self.select(true);
            }
        }
    }

    fn misses_too_much(&mut self) -> bool {
        // Two observations of the present set: one may be an exception.
        if self.version == 0 || self.settled < 2 {
            return false;
        }
        if self.recordings > 0 && self.settled == RECORDED {
            self.accepted_ns = self.loss_ns;
        }
        let set = self.predicted_set();
        let value = self.costs.value(set.written_pages(), set.read_pages());
        let bound = LOSS_FLOOR_NS
            .max(LOSS_SHARE * value)
            .max(2.0 * self.accepted_ns);
        self.loss_ns > bound
    }

    fn record_anew(&mut self, schedule: &Schedule) {
        let now = schedule.answered();
        let soon = self.recordings > 0 && now < self.next_recording.saturating_add(4 * self.gap);
        self.gap = match soon {
            true => (2 * self.gap).min(LONGEST_GAP),
            false => RECORDING_GAP,
        };
        self.next_recording = now + self.gap;
        self.recordings += 1;
        self.recording = Some(RECORDED);
        // The past counts no more: the first recorded observation outweighs all of it.
        self.heats.horizon = 0;
        schedule.record(RECORDED);
    }

    /// Predicts anew; that is a new version if anything changes.
    fn select(&mut self, sticky: bool) {
        if self.version > 0 && self.heats.changes(&self.costs, sticky) == 0 {
            return;
        }
        self.heats.select(&self.costs, sticky);
        self.version += 1;
        self.settled = 0;
    }

    /// What is to be stored.
    pub(crate) fn record(&self, snapshot: SnapshotBinding, schedule: &Schedule) -> Record {
        Record {
            snapshot,
            version: self.version,
            on: self.on,
            invocations: schedule.answered(),
            horizon: self.heats.horizon,
            residual: self.residual as u32,
            gain_ns: self.gain_ns as i64,
            runs: self.heats.runs(&self.starts),
        }
    }

    pub(crate) fn report(&self, schedule: &Schedule) -> WorkingSetReport {
        let set = self.predicted_set();
        WorkingSetReport {
            version: self.version,
            on: self.on,
            predicted_written: set.written_pages(),
            predicted_read: set.read_pages(),
            ordered: self.heats.places().len() as u64,
            last_blind: self.last_blind,
            missed: self.missed,
            residual: (self.residual * 10.0).round() / 10.0,
            minor_faults: self.minor_faults,
            gain_us: (self.gain_ns / 100.0).round() / 10.0,
            invocations: schedule.answered(),
            observations: self.observations,
            recordings: self.recordings,
            recording: self.recording.is_some(),
            problem: self.problem.clone(),
        }
    }
}

/// An average over about four values; the first one counts whole.
fn average(before: f64, value: f64, count: u32) -> f64 {
    before + (value - before) / f64::from(count.clamp(1, 4))
}

#[cfg(test)]
mod tests;
