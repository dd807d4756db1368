//! Which tier the pages of each function lie in.
//!
//! Every function begins where its boots are cheapest. Where a tier is over its budget, those functions move down whose
//! move costs least for each byte that it frees: calls per second, times what a call then takes longer, over bytes. A
//! tier is looked at after those above it, so that what falls out of one is counted in the next.

use rouse_snapshot::model::PAGE_SIZE;
use serde::Serialize;

use super::CostInputs;

/// Where pages of a pool lie, from the fastest to the slowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// In the pool, on near memory.
    Dram,
    /// In the pool, on far memory.
    Far,
    /// As on disk, in memory.
    Compressed,
    /// In the snapshot's files only.
    Disk,
}

impl Tier {
    /// All, from the fastest to the slowest.
    pub const ALL: [Self; 4] = [Self::Dram, Self::Far, Self::Compressed, Self::Disk];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dram => "dram",
            Self::Far => "far",
            Self::Compressed => "compressed",
            Self::Disk => "disk",
        }
    }
}

/// A function, as far as its place is concerned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Subject {
    /// Calls per second.
    pub rate: f64,
    /// Pages that it holds when it is in memory.
    pub pages: u64,
    /// Pages that a call touches.
    pub hot_pages: u64,
    /// Bytes that it has on disk, and in the compressed tier.
    pub stored_bytes: u64,
    /// The best tier that it may be in.
    pub best: Tier,
}

impl Subject {
    /// Bytes that it takes in a tier.
    pub fn bytes_in(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Dram | Tier::Far => self.pages * PAGE_SIZE,
            Tier::Compressed => self.stored_bytes,
            Tier::Disk => 0,
        }
    }
}

/// What each tier may hold, bytes. The disk has no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budgets {
    /// Pools in near memory.
    pub dram: u64,
    /// Pools in far memory; 0 where there is none.
    pub far: u64,
    /// Stored pieces in memory.
    pub compressed: u64,
}

impl Budgets {
    fn of(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Dram => self.dram,
            Tier::Far => self.far,
            Tier::Compressed => self.compressed,
            Tier::Disk => u64::MAX,
        }
    }
}

impl CostInputs {
    /// What the memory of one boot takes, ns, when the function's pages lie in that tier.
    pub fn boot_ns(&self, tier: Tier, subject: &Subject) -> f64 {
        let hot = subject.hot_pages as f64;
        let map = hot * self.map_ahead_ns;
        // What the stored form of the pages that are touched takes of all that is stored.
        let share = hot / (subject.pages.max(1) as f64);
        let hot_bytes = subject.stored_bytes as f64 * share.min(1.0);
        // A watched instance has its userfaultfd handed over, and is told to go on.
        let bring = self.handler_fault_ns + hot * (self.hot_decode_ns() + self.fill_ns);
        match tier {
            Tier::Dram => map,
            Tier::Far => {
                let far = self.far.unwrap_or(self.disk);
                let near = PAGE_SIZE as f64 * 1e9 / self.copy_bytes_per_s.max(1.0);
                map + hot * (far.read_ns(PAGE_SIZE as f64) - near).max(0.0)
            }
            Tier::Compressed => map + bring,
            Tier::Disk => map + bring + self.disk.read_ns(hot_bytes),
        }
    }

    /// What is lost in a second by moving down, ns.
    fn loss(&self, subject: &Subject, from: Tier, to: Tier) -> f64 {
        let more = self.boot_ns(to, subject) - self.boot_ns(from, subject);
        subject.rate.max(0.0) * more.max(0.0)
    }
}

/// The tier of each subject, in their order.
///
/// Of two that differ in their rates alone, the one that is called more often is never in a slower tier.
pub fn place(inputs: &CostInputs, budgets: &Budgets, subjects: &[Subject]) -> Vec<Tier> {
    let usable = |tier: &Tier| *tier == Tier::Disk || budgets.of(*tier) > 0;
    let tiers: Vec<Tier> = Tier::ALL.into_iter().filter(usable).collect();
    let mut placed: Vec<Tier> = subjects
        .iter()
        .map(|subject| {
            let mut allowed = tiers.iter().filter(|tier| **tier >= subject.best);
            *allowed.next().unwrap_or(&Tier::Disk)
        })
        .collect();
    for pair in tiers.windows(2) {
        let (tier, below) = (pair[0], pair[1]);
        let mut here: Vec<usize> = (0..subjects.len()).filter(|i| placed[*i] == tier).collect();
        let mut used: u64 = (here.iter())
            .map(|i| subjects[*i].bytes_in(tier))
            .fold(0, u64::saturating_add);
        // What a move costs for each byte. Of equals the first stays, so that places do not flicker.
        let density = |i: &usize| {
            let subject = &subjects[*i];
            inputs.loss(subject, tier, below) / (subject.bytes_in(tier).max(1) as f64)
        };
        // Where both tiers cost the same, the one that is called less.
        let rate = |i: &usize| subjects[*i].rate;
        here.sort_by(|a, b| {
            density(a)
                .total_cmp(&density(b))
                .then(rate(a).total_cmp(&rate(b)))
                .then(b.cmp(a))
        });
        for index in here {
            if used <= budgets.of(tier) {
                break;
            }
            let freed = subjects[index].bytes_in(tier);
            if freed > 0 {
                placed[index] = below;
                used -= freed;
            }
        }
    }
    placed
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cost::Transfer;

    fn inputs() -> CostInputs {
        CostInputs {
            far: Some(Transfer {
                latency_ns: 400.0,
                bytes_per_s: 5e9,
            }),
            ..CostInputs::default()
        }
    }

    fn subject() -> impl Strategy<Value = Subject> {
        (0.0..100.0_f64, 1..100_000_u64, 0.0..1.0_f64, 1..60_u64).prop_map(
            |(rate, pages, hot, percent)| Subject {
                rate,
                pages,
                hot_pages: (pages as f64 * hot) as u64,
                stored_bytes: pages * PAGE_SIZE * percent / 100,
                best: Tier::Dram,
            },
        )
    }

    fn budgets() -> impl Strategy<Value = Budgets> {
        let bytes = || prop_oneof![Just(0), 0..2_000_000_000_u64];
        (bytes(), bytes(), bytes()).prop_map(|(dram, far, compressed)| Budgets {
            dram,
            far,
            compressed,
        })
    }

    fn used(tier: Tier, subjects: &[Subject], placed: &[Tier]) -> u64 {
        let here = subjects.iter().zip(placed).filter(|(_, t)| **t == tier);
        here.map(|(subject, _)| subject.bytes_in(tier)).sum()
    }

    proptest! {
        #[test]
        fn no_tier_is_over_its_budget(subjects in prop::collection::vec(subject(), 0..30), budgets in budgets()) {
            let placed = place(&inputs(), &budgets, &subjects);
            for tier in Tier::ALL {
                prop_assert!(used(tier, &subjects, &placed) <= budgets.of(tier), "{tier:?}");
            }
        }

        #[test]
        fn hotter_is_never_slower(
            subjects in prop::collection::vec(subject(), 1..30), budgets in budgets(), which: prop::sample::Index,
            more in 0.0..50.0_f64,
        ) {
            let cool = subjects[which.index(subjects.len())];
            let hot = Subject { rate: cool.rate + more, ..cool };
            let mut all = subjects.clone();
            all.push(hot);
            all.push(cool);
            let placed = place(&inputs(), &budgets, &all);
            prop_assert!(placed[all.len() - 2] <= placed[all.len() - 1]);
        }

        #[test]
        fn becoming_hotter_never_moves_down(
            subjects in prop::collection::vec(subject(), 1..30), dram in 0..2_000_000_000_u64, which: prop::sample::Index,
            more in 0.0..50.0_f64,
        ) {
            let budgets = Budgets { dram, far: 0, compressed: 0 };
            let index = which.index(subjects.len());
            let before = place(&inputs(), &budgets, &subjects)[index];
            let mut hotter = subjects.clone();
            hotter[index].rate += more;
            prop_assert!(place(&inputs(), &budgets, &hotter)[index] <= before);
        }

        #[test]
        fn slower_tiers_cost_more(subject in subject()) {
            let inputs = CostInputs::default();
            let cost = |tier| inputs.boot_ns(tier, &subject);
            prop_assert!(cost(Tier::Dram) <= cost(Tier::Compressed));
            prop_assert!(cost(Tier::Compressed) <= cost(Tier::Disk));
        }

        #[test]
        fn with_room_for_all_everything_is_in_memory(subjects in prop::collection::vec(subject(), 0..30)) {
            let budgets = Budgets { dram: u64::MAX, far: 0, compressed: 0 };
            prop_assert!(place(&inputs(), &budgets, &subjects).iter().all(|tier| *tier == Tier::Dram));
        }
    }

    #[test]
    fn what_is_never_called_goes_first() {
        let hot = Subject {
            rate: 1.0,
            pages: 100,
            hot_pages: 50,
            stored_bytes: 100_000,
            best: Tier::Dram,
        };
        let never = Subject { rate: 0.0, ..hot };
        let budgets = Budgets {
            dram: 150 * PAGE_SIZE,
            far: 0,
            compressed: 0,
        };
        let placed = place(&inputs(), &budgets, &[never, hot]);
        assert_eq!(placed, [Tier::Disk, Tier::Dram]);
    }
}
