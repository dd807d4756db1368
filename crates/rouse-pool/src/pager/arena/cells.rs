//! Small shared values.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts events. Never goes back.
#[repr(transparent)]
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// For a slot that is used again.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Adds all of it to `total`. Whoever dies in between loses the count, and never doubles it.
    pub fn move_to(&self, total: &Self) {
        total.add(self.0.swap(0, Ordering::Relaxed));
    }
}

const BLOB_WORDS: usize = 256;

/// Up to 2 KiB of bytes.
#[repr(C)]
pub(crate) struct Blob {
    len: AtomicU64,
    words: [AtomicU64; BLOB_WORDS],
}

impl Blob {
    /// The most bytes.
    pub const CAPACITY: usize = BLOB_WORDS * 8;

    /// `None` when the bytes do not fit.
    pub fn store(&self, bytes: &[u8]) -> Option<()> {
        if bytes.len() > Self::CAPACITY {
            return None;
        }
        for (cell, chunk) in self.words.iter().zip(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            cell.store(u64::from_le_bytes(word), Ordering::Relaxed);
        }
        self.len.store(bytes.len() as u64, Ordering::Release);
        Some(())
    }

    pub fn load(&self) -> Vec<u8> {
        let len = (self.len.load(Ordering::Acquire) as usize).min(Self::CAPACITY);
        let mut bytes: Vec<u8> = self.words[..len.div_ceil(8)]
            .iter()
            .flat_map(|cell| cell.load(Ordering::Relaxed).to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_blob_keeps_any_bytes_that_fit() {
        let blob = Blob {
            len: AtomicU64::new(0),
            words: [const { AtomicU64::new(0) }; BLOB_WORDS],
        };
        for len in [0, 1, 7, 8, 9, Blob::CAPACITY] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8 ^ 0x5a).collect();
            blob.store(&bytes).unwrap();
            assert_eq!(blob.load(), bytes);
        }
        assert!(blob.store(&[0; Blob::CAPACITY + 1]).is_none());
    }
}
