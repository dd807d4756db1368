//! Reading a forged manifest allocates in proportion to its length, whatever numbers are in it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sample;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rouse_snapshot::manifest::{decode, encode};

thread_local! {
    /// Bytes allocated by this thread and not freed, and the most that ever were.
    static LIVE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(change: isize) {
    LIVE.with(|cell| {
        let (live, peak) = cell.get();
        cell.set((live + change, peak.max(live + change)));
    });
}

// SAFETY: every call goes to the system's allocator with the same arguments; counting allocates
// nothing, since the thread-local needs neither initialisation nor a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promises are those that `System` asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that decoding had allocated at a time, bytes.
fn peak_of_decoding(bytes: &[u8]) -> usize {
    LIVE.with(|cell| cell.set((0, 0)));
    let _ = decode(bytes);
    LIVE.with(Cell::get).1.try_into().unwrap()
}

fn number(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Makes the checksums right again after a change in the section of this table entry.
fn sign(bytes: &mut [u8], entry: usize, table_end: usize) {
    let (start, len) = (number(bytes, entry + 16), number(bytes, entry + 24));
    let digest = blake3::hash(&bytes[start..start + len]);
    bytes[entry + 32..entry + 64].copy_from_slice(digest.as_bytes());
    let digest = blake3::hash(&bytes[192..table_end]);
    bytes[128..160].copy_from_slice(digest.as_bytes());
    let digest = blake3::hash(&bytes[..160]);
    bytes[160..192].copy_from_slice(digest.as_bytes());
}

#[test]
fn a_forged_count_allocates_no_more_than_in_proportion() {
    let good = encode(&sample::sample(2, 1));
    let count = u32::from_le_bytes(good[20..24].try_into().unwrap()) as usize;
    let table_end = 192 + 64 * count;
    // The largest element of a list has about this many times its shortest encoding.
    let bound = 64 * good.len();
    assert!(peak_of_decoding(&good) < bound);

    let mut bytes = good.clone();
    for entry in (192..table_end).step_by(64) {
        let (start, len) = (number(&good, entry + 16), number(&good, entry + 24));
        // Every place of the section in turn becomes a number, some of them the count of a list.
        for at in start..(start + len).saturating_sub(7) {
            for forged in [u64::MAX, 1 << 40, len as u64, len as u64 / 32] {
                bytes[at..at + 8].copy_from_slice(&forged.to_le_bytes());
                sign(&mut bytes, entry, table_end);
                let peak = peak_of_decoding(&bytes);
                assert!(
                    peak < bound,
                    "{forged:#x} at byte {at} made it allocate {peak} bytes"
                );
            }
            bytes[at..at + 8].copy_from_slice(&good[at..at + 8]);
        }
        sign(&mut bytes, entry, table_end);
    }
    assert_eq!(bytes, good);
}
