//! How often each page is touched: an average over observations that forgets.
//!
//! The first [`HORIZON`] observations count equally; after that each new one counts 1/HORIZON and
//! the past fades by as much. Shares are kept in 16 bits, as they are stored.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::working_set::{TouchRun, Treatment, WorkingSet, pages};

use super::costs::{ALWAYS, Costs, Now};
use super::observation::{Observation, Seen};

/// Observations after which the past begins to fade.
pub(super) const HORIZON: u32 = 16;

/// What is known of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heat {
    written: u16,
    touched: u16,
    treatment: Treatment,
    /// Its place in the order of first touches, when that was last recorded.
    place: Option<u32>,
}

/// The pages that were touched and are not forgotten yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Heats {
    pages: BTreeMap<u64, Heat>,
    /// Observations that count: at most [`HORIZON`].
    pub horizon: u32,
    /// Was there one that saw exactly what is read?
    pub exact: bool,
}

/// The kernel maps neighbours of what is read inside of so many bytes.
const AROUND: u64 = 64 * 1024;

/// Places that are counted: as many as the stored format has, and more pages than any function touches.
const MOST_PLACES: u32 = u32::MAX;

/// How the present set did in one observation, pages. What was prepared and cannot be told from
/// touched pages is counted nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Score {
    pub used: u64,
    pub wasted: u64,
    pub missed: u64,
    /// Of these, written.
    pub missed_written: u64,
}

impl Heats {
    pub fn from_runs(runs: &[TouchRun], horizon: u32) -> Self {
        let pages = runs.iter().flat_map(|run| {
            let heat = |n| Heat {
                written: run.written,
                touched: run.touched,
                treatment: run.treatment,
                place: run.order.map(|first| first + n),
            };
            let pages = run.range().step_by(PAGE_SIZE as usize);
            pages.zip(0..).map(move |(page, n)| (page, heat(n)))
        });
        Self {
            pages: pages.collect(),
            horizon: horizon.min(HORIZON),
            // What was learnt before is not doubted.
            exact: horizon > 0,
        }
    }

    /// Equal neighbours as one run, but none across a start of a mapping.
    pub fn runs(&self, starts: &[u64]) -> Vec<TouchRun> {
        let mut runs: Vec<TouchRun> = Vec::new();
        for (page, heat) in &self.pages {
            let continues = |last: &TouchRun| {
                last.range().end == *page
                    && (last.written, last.touched, last.treatment)
                        == (heat.written, heat.touched, heat.treatment)
                    && last.order.map(|first| first + last.pages) == heat.place
                    && last.pages < u32::MAX
                    && starts.binary_search(page).is_err()
            };
            match runs.last_mut().filter(|last| continues(last)) {
                Some(last) => last.pages += 1,
                None => runs.push(TouchRun {
                    address: *page,
                    pages: 1,
                    written: heat.written,
                    touched: heat.touched,
                    order: heat.place,
                    treatment: heat.treatment,
                }),
            }
        }
        runs
    }

    /// Counts an observation, and tells how the present set did in it.
    pub fn add(&mut self, seen: &Observation) -> Score {
        self.horizon = (self.horizon + 1).min(HORIZON);
        let horizon = self.horizon as u16;
        let mut score = Score::default();
        for page in addresses(&seen.touched.written).chain(addresses(&seen.touched.read)) {
            self.pages.entry(page).or_insert(Heat {
                written: 0,
                touched: 0,
                treatment: Treatment::None,
                place: None,
            });
        }
        let explained = self.explained(seen);
        let first_exact = seen.exact_reads && !self.exact;
        self.exact |= seen.exact_reads;
        self.pages.retain(|page, heat| {
            let mut of_page = seen.page(*page);
            let only_mapped = heat.treatment == Treatment::None
                && of_page.written != Some(true)
                && explained.contains(&(page / AROUND));
            if only_mapped && of_page.touched == Some(true) {
                of_page.touched = None;
            }
            if first_exact && of_page.touched == Some(false) {
                // So far it may have been but a neighbour.
                heat.touched = heat.written;
            }
            let seen = of_page;
            // In a blind boot all is known; in others the score is of what was missed alone.
            score.count(heat.treatment, seen);
            if let Some(written) = seen.written {
                heat.written = faded(heat.written, written, horizon);
            }
            if let Some(touched) = seen.touched {
                heat.touched = faded(heat.touched, touched, horizon);
            }
            // What is predicted is remembered as long as it is. Rounding may not put writes above touches.
            let least = u16::from(heat.treatment != Treatment::None);
            heat.touched = heat.touched.max(heat.written).max(least);
            heat.touched > 0
        });
        self.arrange(&seen.order);
        score
    }

    /// Takes note of the order in which pages were first touched. Of those that were not touched this time, what was known
    /// before stays: they are near the places that they had.
    fn arrange(&mut self, order: &[u64]) {
        for (address, place) in order.iter().zip(0..MOST_PLACES) {
            if let Some(heat) = self.pages.get_mut(address) {
                heat.place = Some(place);
            }
        }
    }

    /// The places of predicted pages in the order of first touches, by address; of those of which it is known.
    pub fn places(&self) -> BTreeMap<u64, u32> {
        let predicted = (self.pages.iter()).filter(|(_, h)| h.treatment != Treatment::None);
        predicted
            .filter_map(|(page, heat)| Some((*page, heat.place?)))
            .collect()
    }

    /// Places in which a page that is known to be touched has been touched. Others that are mapped there may be but its
    /// neighbours; none if touches are seen exactly.
    fn explained(&self, seen: &Observation) -> HashSet<u64> {
        if seen.exact_reads {
            return HashSet::new();
        }
        let is_known = |page: &u64| {
            (self.pages.get(page)).is_some_and(|heat| heat.treatment != Treatment::None)
        };
        let touched = addresses(&seen.touched.written).chain(addresses(&seen.touched.read));
        let known = touched.filter(is_known);
        known.map(|page| page / AROUND).collect()
    }

    /// What preparing the present set would have saved this invocation, nanoseconds.
    pub fn gain(&self, seen: &Observation, costs: &Costs) -> i64 {
        let predicted = self
            .pages
            .iter()
            .filter(|(_, h)| h.treatment != Treatment::None);
        let gains = predicted.map(|(page, heat)| {
            let seen = seen.page(*page);
            let copied = heat.treatment == Treatment::Copy;
            let is = |known: Option<bool>| known.unwrap_or(false);
            costs.gain(copied, is(seen.written), is(seen.touched))
        });
        gains.sum()
    }

    /// How many pages would be treated in another way now. `sticky`: what is at the edge stays as it is.
    pub fn changes(&self, costs: &Costs, sticky: bool) -> u64 {
        let differs = |heat: &&Heat| heat.treatment != treatment(heat, costs, sticky);
        self.pages.values().filter(differs).count() as u64
    }

    /// Predicts anew.
    pub fn select(&mut self, costs: &Costs, sticky: bool) {
        self.pages.retain(|_, heat| {
            heat.treatment = treatment(heat, costs, sticky);
            heat.touched > 1 || heat.treatment != Treatment::None
        });
    }

    /// What is predicted.
    pub fn working_set(&self, starts: &[u64]) -> WorkingSet {
        let ranges = |treatment| {
            let mut ranges: Vec<Range<u64>> = Vec::new();
            for (page, _) in self.pages.iter().filter(|(_, h)| h.treatment == treatment) {
                match ranges.last_mut() {
                    Some(last) if last.end == *page && starts.binary_search(page).is_err() => {
                        last.end += PAGE_SIZE;
                    }
                    _ => ranges.push(*page..*page + PAGE_SIZE),
                }
            }
            ranges
        };
        WorkingSet {
            written: ranges(Treatment::Copy),
            read: ranges(Treatment::Map),
        }
    }
}

impl Score {
    fn count(&mut self, treatment: Treatment, seen: Seen) {
        if treatment == Treatment::None && seen.written == Some(true) {
            self.missed_written += 1;
        }
        match (treatment, seen.touched) {
            (Treatment::None, Some(true)) => self.missed += 1,
            (Treatment::Map | Treatment::Copy, Some(true)) => self.used += 1,
            (Treatment::Map | Treatment::Copy, Some(false)) => self.wasted += 1,
            _ => {}
        }
    }
}

fn treatment(heat: &Heat, costs: &Costs, sticky: bool) -> Treatment {
    let now = |prepared| match (sticky, prepared) {
        (false, _) => Now::Undecided,
        (true, false) => Now::Bare,
        (true, true) => Now::Prepared,
    };
    if costs.copy_pays(heat.written, now(heat.treatment == Treatment::Copy)) {
        Treatment::Copy
    } else if costs.map_pays(heat.touched, now(heat.treatment != Treatment::None)) {
        Treatment::Map
    } else {
        Treatment::None
    }
}

/// The average with one more observation. Rounds away from where it was, so that it arrives at both ends.
fn faded(share: u16, hit: bool, horizon: u16) -> u16 {
    match hit {
        true => share + (ALWAYS - share).div_ceil(horizon),
        false => share - share.div_ceil(horizon),
    }
}

fn addresses(ranges: &[Range<u64>]) -> impl Iterator<Item = u64> {
    ranges
        .iter()
        .flat_map(|r| (r.start..r.end).step_by(PAGE_SIZE as usize))
}

/// Pages in both lists.
pub(super) fn predicted(set: &WorkingSet) -> u64 {
    pages(&set.written) + pages(&set.read)
}
