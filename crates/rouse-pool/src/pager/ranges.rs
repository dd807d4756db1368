//! Which pool page is mapped where in one process.
//!
//! ```text
//!  addresses   0x10000    0x14000         0x20000   0x22000
//!              +----------+               +---------+
//!              | pool 3   |               | pool 1  |      sorted, never overlapping
//!              | page 40..|               | page 0..|
//!              +----------+               +---------+
//! ```

use rouse_snapshot::model::PAGE_SIZE;

/// A run of pool pages in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// Page-aligned.
    pub address: u64,
    /// Length.
    pub pages: u64,
    /// Slot of the pool.
    pub pool: u32,
    /// First page in the pool.
    pub page: u64,
}

impl Mapped {
    fn end(&self) -> u64 {
        self.address + self.pages * PAGE_SIZE
    }

    /// The part between two addresses.
    fn clip(&self, start: u64, end: u64) -> Option<Mapped> {
        let from = self.address.max(start);
        let to = self.end().min(end);
        (from < to).then(|| Mapped {
            address: from,
            pages: (to - from) / PAGE_SIZE,
            pool: self.pool,
            page: self.page + (from - self.address) / PAGE_SIZE,
        })
    }
}

/// All of one process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Mapped>);

impl Ranges {
    /// The pool slot and page at an address.
    pub fn find(&self, address: u64) -> Option<(u32, u64)> {
        let at = self.0.partition_point(|range| range.end() <= address);
        let range = self.0.get(at).filter(|range| range.address <= address)?;
        Some((
            range.pool,
            range.page + (address - range.address) / PAGE_SIZE,
        ))
    }

    /// In the order of addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Mapped> {
        self.0.iter()
    }

    /// Maps a run, in the place of whatever was there.
    pub fn insert(&mut self, range: Mapped) {
        self.remove(range.address, range.end());
        let at = self
            .0
            .partition_point(|other| other.address < range.address);
        self.0.insert(at, range);
    }

    /// Unmaps what lies between two addresses, and returns whether there was something.
    pub fn remove(&mut self, start: u64, end: u64) -> bool {
        let first = self.0.partition_point(|range| range.end() <= start);
        let behind = self.0.partition_point(|range| range.address < end);
        if first >= behind {
            return false;
        }
        let left = self.0[first].clip(0, start);
        let right = self.0[behind - 1].clip(end, u64::MAX);
        self.0
            .splice(first..behind, [left, right].into_iter().flatten());
        true
    }

    /// Moves what lies in `len` bytes from `from` on, and returns whether there was something.
    pub fn relocate(&mut self, from: u64, to: u64, len: u64) -> bool {
        let moved: Vec<Mapped> = self
            .0
            .iter()
            .filter_map(|range| range.clip(from, from.saturating_add(len)))
            .collect();
        self.remove(from, from.saturating_add(len));
        self.remove(to, to.saturating_add(len));
        for range in &moved {
            self.insert(Mapped {
                address: range.address - from + to,
                ..*range
            });
        }
        !moved.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64, u64, u32, u64),
        Remove(u64, u64),
        Relocate(u64, u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_u64, 1..12_u64, 0..3_u32, 0..100_u64)
                .prop_map(|(at, pages, pool, page)| Step::Insert(at, pages, pool, page)),
            (0..50_u64, 0..20_u64).prop_map(|(start, pages)| Step::Remove(start, pages)),
            // As the kernel has it: source and target do not overlap.
            (0..25_u64, 25..50_u64, 1..12_u64, any::<bool>()).prop_map(|(low, high, pages, up)| {
                let pages = pages.min(high - low);
                match up {
                    true => Step::Relocate(low, high, pages),
                    false => Step::Relocate(high, low, pages),
                }
            }),
        ]
    }

    proptest! {
        /// Against a table of single pages.
        #[test]
        fn runs_say_the_same_as_single_pages(steps in prop::collection::vec(step(), 1..40)) {
            let (mut ranges, mut oracle) = (Ranges::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(at, pages, pool, page) => {
                        ranges.insert(Mapped { address: at * PAGE_SIZE, pages, pool, page });
                        oracle.extend((0..pages).map(|i| (at + i, (pool, page + i))));
                    }
                    Step::Remove(start, pages) => {
                        ranges.remove(start * PAGE_SIZE, (start + pages) * PAGE_SIZE);
                        oracle.retain(|page, _| !(start..start + pages).contains(page));
                    }
                    Step::Relocate(from, to, pages) => {
                        ranges.relocate(from * PAGE_SIZE, to * PAGE_SIZE, pages * PAGE_SIZE);
                        let moved: Vec<_> = (0..pages)
                            .filter_map(|i| Some((to + i, oracle.remove(&(from + i))?)))
                            .collect();
                        oracle.retain(|page, _| !(to..to + pages).contains(page));
                        oracle.extend(moved);
                    }
                }
                for page in 0..80 {
                    let address = page * PAGE_SIZE;
                    prop_assert_eq!(ranges.find(address), oracle.get(&page).copied());
                    prop_assert_eq!(ranges.find(address + 4095), oracle.get(&page).copied());
                }
                let ends: Vec<_> = ranges.iter().flat_map(|r| [r.address, r.end()]).collect();
                prop_assert!(ends.is_sorted());
            }
        }
    }
}
