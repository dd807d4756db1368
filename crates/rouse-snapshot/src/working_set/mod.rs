//! The pages that invocations of a function touch: its working set, and what is stored of it.
//!
//! A [`WorkingSet`] is what boots are prepared with. A [`Record`] is what is known behind it: how
//! often each page was touched, what is predicted from that, and how well that went. It lies in
//! a file of its own, `working-set`, beside the manifest, because it changes while the snapshot does
//! not: a damaged one is dropped, and the snapshot is as good as before.
//!
//! ```text
//!  0         152          152 + 24 n
//!  +---------+---- ... ----+          each entry: a run of pages that were touched equally
//!  | header  | n entries   |          often, sorted by address, disjoint
//!  +---------+---- ... ----+
//!   checksums itself and the entries; names the snapshot that it belongs to
//! ```
//! `docs/working-sets.md` describes the fields.

mod error;
mod layout;
mod record;

use std::ops::Range;

use crate::model::PAGE_SIZE;

pub use error::WorkingSetError;
pub use layout::FORMAT_VERSION;
pub use record::{Record, SnapshotBinding, TouchRun, Treatment, preparable};

/// Ranges of addresses, page aligned, sorted, disjoint, each inside one mapping of the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkingSet {
    /// Pages that are written: copied ahead in each instance.
    pub written: Vec<Range<u64>>,
    /// Pages of pools and files that are only read: mapped ahead in the template, whose page tables clones copy.
    pub read: Vec<Range<u64>>,
}

impl WorkingSet {
    /// Is nothing in it?
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.read.is_empty()
    }

    /// Pages that are written.
    pub fn written_pages(&self) -> u64 {
        pages(&self.written)
    }

    /// Pages that are only read.
    pub fn read_pages(&self) -> u64 {
        pages(&self.read)
    }
}

/// Pages in `ranges`.
pub fn pages(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|r| (r.end - r.start) / PAGE_SIZE).sum()
}

/// Is `address` in one of `ranges`, which are sorted and disjoint?
pub fn contains(ranges: &[Range<u64>], address: u64) -> bool {
    let after = ranges.partition_point(|r| r.end <= address);
    ranges.get(after).is_some_and(|r| r.start <= address)
}
