//! How a pool lies on disk, and when it is worth storing it anew.
//!
//! A snapshot is written before anything is known of what its function touches. Once that is known, its pages are
//! stored anew with the working set in front, in one piece: a restore then brings it in with one sequential read. It
//! costs a read and a write of the whole snapshot, so it is done when the first observations are in, and later only
//! if much of what is needed lies elsewhere, each time after at least twice as many invocations as the time before.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rouse_snapshot::page_map::{Class, PageMap};

/// Observations after which a working set is believed.
const BELIEVED: u64 = 16;
/// Pages that are too few to be worth it.
const FEW: u64 = 64;
/// What part of the pages needed may lie elsewhere: one in so many.
const ONE_OF: u64 = 8;

/// How the pool of one image lies on disk.
#[derive(Debug, Default)]
pub(crate) struct Stowage(Arc<Mutex<State>>);

/// As long as this lives, nobody else does anything with how the pool lies.
#[derive(Debug)]
#[must_use]
pub(crate) struct Claim(Arc<Mutex<State>>);

impl Drop for Claim {
    fn drop(&mut self) {
        lock(&self.0).busy = false;
    }
}

#[derive(Debug, Default)]
struct State {
    /// Pages that lie in front, sorted.
    hot: Vec<Range<u64>>,
    /// What its pieces take, bytes.
    bytes: u64,
    /// Invocations before which it is not stored again.
    not_before: u64,
    /// Somebody stores it at this moment.
    busy: bool,
}

impl Stowage {
    /// Of a pool that lies on disk as this page map says.
    pub fn of(map: &PageMap) -> Self {
        let stowage = Self::default();
        stowage.lies_as(map);
        stowage
    }

    /// The pool lies on disk as this page map says.
    pub fn lies_as(&self, map: &PageMap) {
        self.set(hot_ranges(map), bytes_on_disk(map));
    }

    fn set(&self, mut hot: Vec<Range<u64>>, bytes: u64) {
        hot.sort_by_key(|range| range.start);
        let mut state = self.state();
        (state.hot, state.bytes) = (hot, bytes);
    }

    /// What its pieces take on disk, bytes.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Should it be stored anew, now that `needed` is known from so many observations? If so, the caller does it.
    pub fn begin(
        &self,
        needed: &[Range<u64>],
        observations: u64,
        invocations: u64,
    ) -> Option<Claim> {
        let mut state = self.state();
        if state.busy || observations < BELIEVED || invocations < state.not_before {
            return None;
        }
        let all: u64 = needed.iter().map(|range| range.end - range.start).sum();
        let elsewhere = all - overlap(needed, &state.hot);
        if elsewhere < FEW || elsewhere < all / ONE_OF {
            return None;
        }
        state.not_before = invocations.saturating_mul(2);
        state.busy = true;
        Some(Claim(self.0.clone()))
    }

    /// Claims it for whoever was asked to do something with it. `None` while somebody else does.
    pub fn claim(&self) -> Option<Claim> {
        let was_busy = std::mem::replace(&mut self.state().busy, true);
        (!was_busy).then(|| Claim(self.0.clone()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes of a pool's pieces on disk.
fn bytes_on_disk(map: &PageMap) -> u64 {
    map.chunks().map(|chunk| u64::from(chunk.stored_len)).sum()
}

/// Pages that lie in front on disk.
fn hot_ranges(map: &PageMap) -> Vec<Range<u64>> {
    let pieces = map.pieces().iter();
    pieces
        .filter(|piece| piece.class == Class::Hot)
        .map(|piece| piece.range())
        .collect()
}
/// Pages that are in both. Neither overlaps itself; `sorted` is sorted.
fn overlap(ranges: &[Range<u64>], sorted: &[Range<u64>]) -> u64 {
    let mut pages = 0;
    for range in ranges {
        let first = sorted.partition_point(|other| other.end <= range.start);
        for other in &sorted[first..] {
            if other.start >= range.end {
                break;
            }
            pages += range.end.min(other.end) - range.start.max(other.start);
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_stored_anew_when_much_lies_elsewhere() {
        let stowage = Stowage::default();
        let needed = [100..300_u64, 0..50];
        assert!(stowage.begin(&needed, 15, 15).is_none(), "not believed yet");
        let claim = stowage.begin(&needed, 16, 16);
        assert!(claim.is_some());
        assert!(stowage.begin(&needed, 16, 99).is_none(), "somebody does it");
        assert!(stowage.claim().is_none());
        stowage.set(needed.to_vec(), 0);
        drop(claim);
        assert!(stowage.begin(&needed, 40, 400).is_none(), "it lies well");
        let other = [100..300_u64, 1000..1100];
        assert!(stowage.begin(&other, 40, 31).is_none(), "too soon");
        assert!(stowage.begin(&other, 40, 32).is_some());
    }

    #[test]
    fn little_is_left_where_it_is() {
        let stowage = Stowage::default();
        let few = 0..63;
        assert!(stowage.begin(std::slice::from_ref(&few), 16, 16).is_none());
        stowage.set(vec![0..500, 500..1000], 0);
        assert!(stowage.begin(&[0..1000, 2000..2100], 16, 16).is_none());
        assert!(stowage.begin(&[0..1000, 2000..2200], 16, 16).is_some());
    }

    #[test]
    fn a_claim_ends_with_a_panic_too() {
        let stowage = Stowage::default();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _claim = stowage.claim();
            panic!("in the middle");
        }));
        assert!(result.is_err());
        assert!(stowage.claim().is_some());
    }

    #[test]
    fn overlaps_are_counted_once() {
        assert_eq!(overlap(&[0..10, 20..30], &[5..25, 29..40]), 5 + 5 + 1);
        assert_eq!(overlap(&[5..6, 8..9], &[]), 0);
    }
}
