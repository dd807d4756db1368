use proptest::prelude::*;

use super::*;

fn figures(p50_us: u64, stored_bytes: u64) -> Figures {
    Figures {
        p50_us,
        stored_bytes,
        working_set_bytes: 1000,
    }
}

fn comparison(current: Figures, candidate: Figures) -> Comparison {
    let faster = if candidate.p50_us < current.p50_us {
        9
    } else {
        0
    };
    Comparison {
        current,
        candidate,
        pairs: 9,
        faster,
    }
}

#[test]
fn a_much_faster_snapshot_may_be_larger() {
    // A lazy import of 200 ms, and three times the size.
    let found = comparison(figures(210_000, 4 << 20), figures(8_000, 14 << 20));
    assert!(found.is_better(0.1));
    // A tenth faster is not worth twice the size.
    let found = comparison(figures(10_000, 4 << 20), figures(8_900, 8 << 20));
    assert!(!found.is_better(0.1));
}

#[test]
fn a_smaller_snapshot_must_not_be_slower() {
    let found = comparison(figures(10_000, 8 << 20), figures(10_100, 4 << 20));
    assert!(found.is_better(0.1));
    let found = comparison(figures(10_000, 8 << 20), figures(10_500, 1 << 20));
    assert!(!found.is_better(0.1));
}

#[test]
fn a_lucky_median_does_not_win() {
    let mut found = comparison(figures(10_000, 1 << 20), figures(8_000, 1 << 20));
    found.faster = 5;
    assert!(!found.is_better(0.1));
    found.faster = 6;
    assert!(found.is_better(0.1));
}

#[test]
fn the_search_ends_with_the_first_trial_that_does_not_help() {
    use Outcome::{Failed, Kept, Rejected};
    assert_eq!(next_rounds(&[]), Some(1));
    assert_eq!(next_rounds(&[(1, Kept)]), Some(4));
    assert_eq!(next_rounds(&[(1, Kept), (4, Kept)]), Some(16));
    assert_eq!(next_rounds(&[(1, Kept), (4, Rejected)]), None);
    assert_eq!(next_rounds(&[(1, Failed)]), None);
    assert_eq!(next_rounds(&[(64, Kept)]), None);
}

fn any_figures() -> impl Strategy<Value = Figures> {
    (1u64..10_000_000, 0u64..1 << 40, 0u64..1 << 40).prop_map(|(p50_us, stored, touched)| Figures {
        p50_us,
        stored_bytes: stored,
        working_set_bytes: touched,
    })
}

proptest! {
    #[test]
    fn nothing_is_better_than_itself(one in any_figures(), faster in 0usize..=9, margin in 0.001f64..0.9) {
        let found = Comparison { current: one, candidate: one, pairs: 9, faster };
        prop_assert!(!found.is_better(margin));
    }

    #[test]
    fn two_snapshots_are_not_better_than_each_other(
        one in any_figures(), other in any_figures(), faster in 0usize..=9, margin in 0.001f64..0.9,
    ) {
        let there = Comparison { current: one, candidate: other, pairs: 9, faster };
        let back = Comparison { current: other, candidate: one, pairs: 9, faster: 9 - faster };
        prop_assert!(!(there.is_better(margin) && back.is_better(margin)));
    }

    #[test]
    fn a_better_candidate_stays_better_when_it_improves(
        one in any_figures(), other in any_figures(), faster in 0usize..=9, margin in 0.001f64..0.9,
        less_time in 0u64..1000, less_room in 0u64..1 << 30,
    ) {
        let before = Comparison { current: one, candidate: other, pairs: 9, faster };
        let improved = Figures {
            p50_us: other.p50_us.saturating_sub(less_time).max(1),
            stored_bytes: other.stored_bytes.saturating_sub(less_room),
            ..other
        };
        let after = Comparison { candidate: improved, ..before };
        prop_assert!(!before.is_better(margin) || after.is_better(margin));
    }

    #[test]
    fn the_search_is_finite(outcomes in proptest::collection::vec(0u8..3, 0..20)) {
        let mut trials = Vec::new();
        for outcome in outcomes {
            let Some(rounds) = next_rounds(&trials) else { break };
            prop_assert!(trials.iter().all(|(tried, _)| *tried < rounds));
            trials.push((rounds, match outcome {
                0 => Outcome::Rejected,
                1 => Outcome::Failed,
                _ => Outcome::Kept,
            }));
        }
        prop_assert!(trials.len() <= LADDER.len());
    }
}
