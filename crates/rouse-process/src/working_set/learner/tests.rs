//! The learner against functions that are made up: which pages they touch, invocation by invocation.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
#![allow(
    clippy::single_range_in_vec_init,
    reason = "what is touched is a list of ranges, often of one"
)]

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::working_set::{TouchRun, Treatment, pages};

use super::*;

/// A function whose instances are prepared by what is learnt about it.
struct Bed {
    learner: Learner,
    schedule: Schedule,
    /// Can boots be blind (a restore), or not (a clone of a template)?
    restores: bool,
    compiled: WorkingSet,
    compilations: usize,
}

impl Bed {
    fn new(restores: bool) -> Self {
        Self {
            learner: Learner::new(Vec::new(), Costs::default()),
            schedule: Schedule::default(),
            restores,
            compiled: WorkingSet::default(),
            compilations: 0,
        }
    }

    /// One invocation that writes and reads these pages.
    fn invoke(&mut self, written: &[Range<u64>], read: &[Range<u64>]) {
        let blind = self.restores && self.schedule.take_blind();
        let prepared = match blind {
            true => WorkingSet::default(),
            false => self.compiled.clone(),
        };
        if !self.schedule.answer(prepared.is_empty()) {
            return;
        }
        // What was prepared looks like what was touched.
        let all = |own: &[Range<u64>], ready: &[Range<u64>]| -> BTreeSet<u64> {
            let ready = ready
                .iter()
                .flat_map(|r| r.start / PAGE_SIZE..r.end / PAGE_SIZE);
            own.iter().cloned().flatten().chain(ready).collect()
        };
        let written = all(written, &prepared.written);
        let read = all(read, &prepared.read);
        let seen = Observation {
            touched: WorkingSet {
                written: ranges(written.iter().copied()),
                read: ranges(read.difference(&written).copied()),
            },
            prepared: Arc::new(prepared),
            exact_reads: true,
            order: Vec::new(),
            minor_faults: 0,
        };
        if self.learner.add(&seen, &self.schedule) {
            self.compiled = self.learner.working_set();
            self.compilations += 1;
        }
        assert_eq!(self.compiled, self.learner.working_set());
    }

    fn repeat(&mut self, times: usize, written: &[Range<u64>], read: &[Range<u64>]) {
        for _ in 0..times {
            self.invoke(written, read);
        }
    }

    fn report(&self) -> WorkingSetReport {
        self.learner.report(&self.schedule)
    }
}

/// Addresses of pages by number.
fn ranges(numbers: impl IntoIterator<Item = u64>) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::new();
    for number in numbers {
        let at = number * PAGE_SIZE;
        match out.last_mut() {
            Some(last) if last.end == at => last.end += PAGE_SIZE,
            _ => out.push(at..at + PAGE_SIZE),
        }
    }
    out
}

#[test]
fn a_steady_function_is_learnt_at_once_and_left_alone() {
    for restores in [true, false] {
        let mut bed = Bed::new(restores);
        bed.invoke(&[10..90], &[200..400]);
        assert_eq!(bed.compiled.written, ranges(10..90));
        assert_eq!(bed.compiled.read, ranges(200..400));
        bed.repeat(700, &[10..90], &[200..400]);
        let report = bed.report();
        assert_eq!(
            (bed.compilations, report.version, report.recordings),
            (1, 1, 0)
        );
        assert!(report.on);
        if restores {
            let all = Outcome {
                predicted: 280,
                used: 280,
                wasted: 0,
                missed: 0,
            };
            assert_eq!(report.last_blind, Some(all));
            assert!(report.gain_us > 0.0);
        } else {
            assert_eq!(report.last_blind, None, "nobody could know");
        }
    }
}

#[test]
fn pages_that_most_invocations_touch_make_the_set() {
    let mut bed = Bed::new(true);
    bed.invoke(&[1..4], &[7..9]);
    bed.invoke(&[1..3, 9..10], &[7..8]);
    bed.invoke(&[2..4], &[7..8]);
    bed.invoke(&[1..4], &[7..9]);
    let set = bed.learner.predicted_set();
    assert_eq!(set.written, ranges(1..4));
    assert_eq!(
        set.read,
        ranges([7, 8, 9]),
        "9 was written once: a mapping is cheap"
    );
}

#[test]
fn a_new_pattern_is_recorded_and_the_old_one_forgotten() {
    let mut bed = Bed::new(true);
    bed.repeat(20, &[0..100], &[1000..1100]);
    bed.repeat(40, &[300..420], &[1000..1050]);
    let report = bed.report();
    assert_eq!(report.recordings, 1);
    assert_eq!(bed.compiled.written, ranges(300..420));
    bed.repeat(200, &[300..420], &[1000..1050]);
    assert_eq!(bed.report().recordings, 1, "it was right");
    assert_eq!(bed.report().last_blind.unwrap().wasted, 0);
}

#[test]
fn clones_learn_what_is_new_and_cannot_know_what_is_not_needed_any_more() {
    let mut bed = Bed::new(false);
    bed.repeat(20, &[0..100], &[]);
    bed.repeat(40, &[300..420], &[]);
    assert_eq!(bed.report().recordings, 1);
    assert_eq!(bed.compiled.written, ranges((0..100).chain(300..420)));
}

#[test]
fn what_is_not_touched_any_more_fades() {
    let mut bed = Bed::new(true);
    bed.repeat(20, &[0..100], &[]);
    bed.repeat(60_000, &[0..50], &[]);
    assert_eq!(bed.compiled.written, ranges(0..50));
}

#[test]
fn a_function_without_a_pattern_is_not_recorded_all_the_time() {
    let mut bed = Bed::new(true);
    for call in 0..5000u64 {
        let half = 1000 * (call % 2);
        bed.invoke(&[0..20, 5000 + half..5500 + half], &[]);
    }
    let report = bed.report();
    assert!(
        report.recordings <= 9,
        "recorded {} times",
        report.recordings
    );
    assert!(
        bed.compilations <= 12,
        "compiled {} times",
        bed.compilations
    );
    assert_eq!(
        bed.compiled.written,
        ranges(0..20),
        "what both halves need stays"
    );
}

/// Pages are used for a while and then never again, faster than they can be learnt.
#[test]
fn a_set_that_costs_more_than_it_saves_is_switched_off_and_on_again() {
    let mut learner = Learner::new(Vec::new(), Costs::default());
    let schedule = Schedule::default();
    let blind = |pages: Range<u64>| Observation {
        touched: WorkingSet {
            written: ranges(pages),
            read: Vec::new(),
        },
        ..Observation::default()
    };
    learner.add(&blind(0..1000), &schedule);
    assert!(learner.on && !learner.working_set().is_empty());
    let mut changed = false;
    for call in 1..=4 {
        let start = 10_000 * call;
        changed |= learner.add(&blind(start..start + 10), &schedule);
    }
    assert!(changed && !learner.on, "{:?}", learner.report(&schedule));
    assert!(learner.working_set().is_empty());
    assert!(!schedule.wants_blind(), "every boot is blind now");
    for _ in 0..40 {
        learner.add(&blind(0..1000), &schedule);
    }
    assert!(learner.on, "{:?}", learner.report(&schedule));
    assert_eq!(learner.working_set().written, ranges(0..1000));
}

#[test]
fn learning_goes_on_after_a_restart() {
    let mut bed = Bed::new(true);
    bed.repeat(30, &[0..100], &[200..300]);
    let binding = SnapshotBinding::from([7; 32]);
    let record = bed.learner.record(binding, &bed.schedule);
    let bytes = record.encode();
    let record = Record::decode_unbound(&bytes).unwrap();
    let mut again = Bed::new(true);
    again.learner = Learner::resume(&record, Vec::new(), Costs::default());
    again.schedule = Schedule::after(record.invocations);
    again.compiled = again.learner.working_set();
    assert_eq!(again.compiled, bed.compiled);
    assert_eq!(again.report().version, bed.report().version);
    again.repeat(100, &[0..100], &[200..300]);
    assert_eq!((again.compilations, again.report().recordings), (0, 0));
}

#[test]
fn ranges_end_where_mappings_begin() {
    let mut learner = Learner::new(vec![5 * PAGE_SIZE], Costs::default());
    let seen = Observation {
        touched: WorkingSet {
            written: ranges(3..8),
            read: Vec::new(),
        },
        ..Observation::default()
    };
    learner.add(&seen, &Schedule::default());
    let halves = [ranges(3..5), ranges(5..8)].concat();
    assert_eq!(learner.working_set().written, halves);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 48, ..ProptestConfig::default() })]

    /// Whatever a function does: sets stay sorted and disjoint, a page is in one list, what is
    /// stored comes back, and the numbers add up.
    #[test]
    fn the_set_is_always_sound(
        calls in prop::collection::vec((0u64..40, 1u64..60, 0u64..80, 0u64..60), 1..120),
        restores: bool,
    ) {
        let mut bed = Bed::new(restores);
        for (written, count, read, reads) in calls {
            bed.invoke(&[written..written + count], &[read..read + reads]);
            let set = bed.learner.predicted_set();
            for ranges in [&set.written, &set.read] {
                prop_assert!(ranges.windows(2).all(|w| w[0].end < w[1].start));
            }
            let both = set.written.iter().any(|w| set.read.iter().any(|r| w.start < r.end && r.start < w.end));
            prop_assert!(!both);
            let report = bed.report();
            prop_assert_eq!(report.predicted_written, pages(&set.written));
            if let Some(outcome) = report.last_blind {
                prop_assert_eq!(outcome.used + outcome.wasted, outcome.predicted);
            }
        }
        let record = bed.learner.record(SnapshotBinding::from([7; 32]), &bed.schedule);
        let read = Record::decode_unbound(&record.encode());
        prop_assert_eq!(read.as_ref(), Ok(&record));
        let again = Learner::resume(&record, Vec::new(), Costs::default());
        prop_assert_eq!(again.predicted_set(), bed.learner.predicted_set());
    }
}

/// What is seen of a function that reads these pages, or of which the kernel maps the neighbours too.
fn reading(pages: Range<u64>, exact_reads: bool) -> Observation {
    Observation {
        touched: WorkingSet {
            written: Vec::new(),
            read: ranges(pages),
        },
        exact_reads,
        ..Observation::default()
    }
}

#[test]
fn neighbours_of_known_pages_do_not_get_in() {
    let schedule = Schedule::default();
    let mut learner = Learner::new(Vec::new(), Costs::default());
    learner.add(&reading(20..22, true), &schedule);
    assert_eq!(learner.working_set().read, ranges(20..22));
    for _ in 0..20 {
        learner.add(&reading(16..32, false), &schedule);
    }
    assert_eq!(learner.working_set().read, ranges(20..22));
    assert_eq!(learner.missed, Some(0));
    // Nothing explains these.
    for _ in 0..20 {
        learner.add(&reading(16..64, false), &schedule);
    }
    let set = learner.working_set().read;
    assert_eq!(set, [ranges(20..22), ranges(32..64)].concat());
}

#[test]
fn the_first_exact_observation_takes_neighbours_out() {
    let schedule = Schedule::default();
    let mut learner = Learner::new(Vec::new(), Costs::default());
    for _ in 0..3 {
        learner.add(&reading(16..32, false), &schedule);
    }
    assert_eq!(learner.working_set().read, ranges(16..32));
    learner.add(&reading(20..22, true), &schedule);
    assert_eq!(learner.working_set().read, ranges(20..22));
}

#[test]
fn the_order_of_first_touches_is_kept_with_the_set() {
    let schedule = Schedule::default();
    let mut learner = Learner::new(Vec::new(), Costs::default());
    let order = [12, 3, 4, 11, 5].map(|page| page * PAGE_SIZE);
    let seen = Observation {
        order: order.to_vec(),
        ..reading(3..13, true)
    };
    learner.add(&seen, &schedule);
    let by_place = |learner: &Learner| {
        let mut places: Vec<_> = learner.places().into_iter().collect();
        places.sort_by_key(|(_, place)| *place);
        places.into_iter().map(|(page, _)| page).collect::<Vec<_>>()
    };
    assert_eq!(by_place(&learner), order);
    assert_eq!(learner.report(&schedule).ordered, 5);
    // Stored and read again.
    let record = learner.record(SnapshotBinding::from([7; 32]), &schedule);
    let consecutive = record.runs.iter().find(|run| run.address == 3 * PAGE_SIZE);
    assert_eq!(
        consecutive.map(|run| (run.pages, run.order)),
        Some((2, Some(1)))
    );
    let again = Record::decode_unbound(&record.encode()).unwrap();
    assert_eq!(again, record);
    let mut again = Learner::resume(&again, Vec::new(), Costs::default());
    assert_eq!(by_place(&again), order);
    // Others do not know the order: it stays. A later recording counts more.
    again.add(&reading(3..13, true), &schedule);
    assert_eq!(by_place(&again), order);
    let later = [5, 4, 3, 12, 11].map(|page| page * PAGE_SIZE);
    let seen = Observation {
        order: later.to_vec(),
        ..reading(3..13, true)
    };
    again.add(&seen, &schedule);
    assert_eq!(by_place(&again), later);
}

#[test]
fn a_rehearsal_is_outweighed_by_the_first_invocation() {
    let schedule = Schedule::default();
    let mut learner = Learner::new(Vec::new(), Costs::default());
    assert!(learner.rehearse(&reading(0..40, true), &schedule));
    assert_eq!(learner.working_set().read, ranges(0..40));
    let report = learner.report(&schedule);
    let counts = (report.version, report.observations, report.invocations);
    assert_eq!(counts, (1, 0, 0));
    assert!(schedule.wants_exact() && schedule.answered() == 0);
    // Stored, and read by the next node.
    let record = learner.record(SnapshotBinding::from([7; 32]), &schedule);
    let record = Record::decode_unbound(&record.encode()).unwrap();
    let mut learner = Learner::resume(&record, Vec::new(), Costs::default());
    assert_eq!(learner.working_set().read, ranges(0..40));
    assert!(!learner.rehearse(&reading(0..40, true), &schedule));
    // A restore maps nothing ahead, so that an invocation shows all that it reads.
    assert!(learner.add(&reading(20..60, true), &schedule));
    assert_eq!(learner.working_set().read, ranges(20..60));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever order a file names that can be read: it is taken page by page, and written again as it was.
    #[test]
    fn any_order_that_can_be_stored_is_kept(
        runs in prop::collection::vec((1u64..4, 1u32..40, any::<Option<u32>>(), 0u8..3), 0..20),
    ) {
        let mut at = 0;
        let runs = runs.into_iter().map(|(gap, pages, order, treatment)| {
            let address = (at + gap) * PAGE_SIZE;
            at += gap + u64::from(pages);
            TouchRun {
                address,
                pages,
                written: 7,
                touched: 9,
                order: order.map(|order| order.min(u32::MAX - pages)),
                treatment: [Treatment::None, Treatment::Map, Treatment::Copy][treatment as usize],
            }
        });
        let record = Record {
            snapshot: SnapshotBinding::from([7; 32]),
            version: 1,
            on: true,
            invocations: 3,
            horizon: 3,
            residual: 0,
            gain_ns: 0,
            runs: runs.collect(),
        };
        let record = Record::decode_unbound(&record.encode()).unwrap();
        let learner = Learner::resume(&record, Vec::new(), Costs::default());
        let again = learner.record(record.snapshot, &Schedule::after(3));
        let read = Record::decode_unbound(&again.encode());
        prop_assert_eq!(read.as_ref(), Ok(&again));
        let by_page = |record: &Record| -> Vec<_> {
            let pages = record.runs.iter().flat_map(|run| {
                let pages = run.range().step_by(PAGE_SIZE as usize).zip(0..);
                let place = |n| run.order.map(|first| first + n);
                pages.map(move |(page, n)| (page, place(n), run.treatment))
            });
            pages.collect()
        };
        prop_assert_eq!(by_page(&again), by_page(&record));
        let predicted = by_page(&record).into_iter();
        let placed = predicted.filter(|(_, _, treatment)| *treatment != Treatment::None);
        let placed: Vec<_> = placed.filter_map(|(page, place, _)| Some((page, place?))).collect();
        prop_assert_eq!(learner.places().into_iter().collect::<Vec<_>>(), placed);
    }
}
