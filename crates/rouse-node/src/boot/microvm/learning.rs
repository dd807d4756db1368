//! What is learnt of the pages that a function's calls touch: from its first answers, each of a machine of its own.
//!
//! The answers are those of machines that were just restored. From then on the pages that they touched are stored in front and
//! fetched ahead. The file beside the snapshot is advice, as a working set is: without it, all is learnt anew.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use rouse_snapshot::model::PAGE_SIZE;
use rouse_snapshot::working_set::WorkingSet;

use serde::{Deserialize, Serialize};

/// Its name in the snapshot's directory.
const FILE: &str = "touched.json";
const FRESH: &str = ".touched.new";
/// A larger file is none.
const MOST: u64 = 4 << 20;
/// Answers that are looked at.
const OBSERVED: u64 = 4;
/// Pages that must be new to store a snapshot anew.
const WORTH_STORING: u64 = 64;

/// What is known. Ranges are of guest addresses, in order, without overlaps.
#[derive(Debug, Clone, Default)]
pub struct Learning {
    observations: u64,
    version: u64,
    /// What the snapshot was last stored by.
    stored_pages: u64,
    set: WorkingSet,
}

/// The file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Of the snapshot whose pool is this.
    pool: String,
    observations: u64,
    version: u64,
    written: Vec<(u64, u64)>,
    read: Vec<(u64, u64)>,
}

impl Learning {
    /// Are more answers to be looked at?
    pub fn is_curious(&self) -> bool {
        self.observations < OBSERVED
    }

    /// One more answer has touched these. Is the snapshot to be stored anew?
    pub fn add(&mut self, seen: WorkingSet) -> bool {
        self.observations += 1;
        let set = std::mem::take(&mut self.set);
        let written = union(set.written, seen.written);
        let read = without(union(set.read, seen.read), &written);
        self.set = WorkingSet { written, read };
        let pages = self.pages();
        let is_worth_it = pages >= self.stored_pages + WORTH_STORING;
        if is_worth_it {
            self.version += 1;
            self.stored_pages = pages;
        }
        is_worth_it
    }

    /// All that was touched.
    pub fn set(&self) -> &WorkingSet {
        &self.set
    }

    /// Answers that were looked at.
    pub fn observations(&self) -> u64 {
        self.observations
    }

    /// How often the snapshot was stored by what was learnt.
    pub fn version(&self) -> u64 {
        self.version
    }

    fn pages(&self) -> u64 {
        let all = self.set.written.iter().chain(&self.set.read);
        all.map(|range| (range.end - range.start) / PAGE_SIZE).sum()
    }
}

/// Ranges in order, without overlaps.
fn union(mut one: Vec<Range<u64>>, other: Vec<Range<u64>>) -> Vec<Range<u64>> {
    one.extend(other);
    one.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(one.len());
    for range in one {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What of `ranges` lies in none of `others`; both in order.
fn without(ranges: Vec<Range<u64>>, others: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut left = Vec::with_capacity(ranges.len());
    for range in ranges {
        let mut start = range.start;
        let first = others.partition_point(|other| other.end <= range.start);
        for other in others[first..]
            .iter()
            .take_while(|other| other.start < range.end)
        {
            if start < other.start {
                left.push(start..other.start);
            }
            start = start.max(other.end);
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    left
}

fn hexadecimal(pool: &[u8; 32]) -> String {
    pool.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes what is known beside the snapshot whose pool is `pool`.
pub fn write(directory: &Path, pool: &[u8; 32], learning: &Learning) -> io::Result<()> {
    let pairs = |ranges: &[Range<u64>]| ranges.iter().map(|r| (r.start, r.end)).collect();
    let stored = Stored {
        pool: hexadecimal(pool),
        observations: learning.observations,
        version: learning.version,
        written: pairs(&learning.set.written),
        read: pairs(&learning.set.read),
    };
    let fresh = directory.join(FRESH);
    let written = fs::write(&fresh, serde_json::to_vec(&stored)?)
        .and_then(|()| fs::rename(&fresh, directory.join(FILE)));
    if written.is_err() {
        // It may not be there at all.
        drop(fs::remove_file(&fresh));
    }
    written
}

/// What is known of that snapshot, if the file is there and makes sense.
pub fn read(directory: &Path, pool: &[u8; 32]) -> Option<Learning> {
    let path = directory.join(FILE);
    if fs::metadata(&path).ok()?.len() > MOST {
        return None;
    }
    let stored: Stored = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    let ranges = |pairs: &[(u64, u64)]| -> Option<Vec<Range<u64>>> {
        let mut end = 0;
        let range = |(start, next): &(u64, u64)| {
            let is_one = end <= *start && start < next && (start | next).is_multiple_of(PAGE_SIZE);
            end = *next;
            is_one.then_some(*start..*next)
        };
        pairs.iter().map(range).collect()
    };
    let set = WorkingSet {
        written: ranges(&stored.written)?,
        read: ranges(&stored.read)?,
    };
    let mut learning = Learning {
        observations: stored.observations,
        version: stored.version,
        stored_pages: 0,
        set,
    };
    learning.stored_pages = learning.pages();
    (stored.pool == hexadecimal(pool)).then_some(learning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(written: &[(u64, u64)], read: &[(u64, u64)]) -> WorkingSet {
        let pages = |ranges: &[(u64, u64)]| {
            let range = |(start, end): &(u64, u64)| start * PAGE_SIZE..end * PAGE_SIZE;
            ranges.iter().map(range).collect()
        };
        WorkingSet {
            written: pages(written),
            read: pages(read),
        }
    }

    #[test]
    fn what_answers_touch_adds_up() {
        let mut learning = Learning::default();
        assert!(learning.add(set(&[(0, 10), (20, 30)], &[(100, 200)])));
        // Little that is new.
        assert!(!learning.add(set(&[(10, 12), (120, 130)], &[])));
        assert_eq!(
            learning.set(),
            &set(&[(0, 12), (20, 30), (120, 130)], &[(100, 120), (130, 200)])
        );
        assert!(learning.is_curious());
        assert!(learning.add(set(&[], &[(300, 400)])));
        assert!(!learning.add(set(&[], &[])));
        assert!(!learning.is_curious());
        assert_eq!((learning.version(), learning.observations()), (2, 4));
    }

    #[test]
    fn what_is_known_is_kept_beside_its_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let (pool, other) = ([1; 32], [2; 32]);
        let mut learning = Learning::default();
        learning.add(set(&[(0, 10), (20, 30)], &[(100, 200)]));
        write(directory.path(), &pool, &learning).unwrap();
        let found = read(directory.path(), &pool).unwrap();
        assert_eq!(found.set(), learning.set());
        assert_eq!(found.observations(), 1);
        assert!(read(directory.path(), &other).is_none());
        let path = directory.path().join(FILE);
        let good = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("[0,40960]", "[40960,0]"),
            ("[0,40960]", "[0,40961]"),
            ("}", ""),
        ] {
            let damaged = good.replace(from, to);
            assert_ne!(damaged, good);
            fs::write(&path, damaged).unwrap();
            assert!(read(directory.path(), &pool).is_none(), "{from} -> {to}");
        }
    }
}
