//! Pages of a guest that are blocks of its disks: files that it has read, and programs that it runs.
//!
//! They need not be in a snapshot's pool. In restored machines the image itself is mapped there, which all machines with that disk
//! share, and the host's page cache with them.
//!
//! ```text
//!  guest     | kernel | libpython, as on disk | changed | ...
//!  becomes   | pool   | image, from block 812 | pool    |
//! ```

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rouse_snapshot::model::{PAGE_SIZE, ParentPool};
use vm_memory::{Bytes, GuestAddress};

use super::{CollectError, Layer, Memory, Source};

const PAGE: usize = PAGE_SIZE as usize;
/// Each run is a mapping more in every machine that is restored: one is worth it from so many pages on.
const LEAST: u64 = 8;
/// And there are so many at most: the longest.
const MOST: usize = 512;
/// Blocks that begin alike are compared, so many of them.
const ALIKE: usize = 4;
/// Bytes that are read at a time.
const PIECE: usize = 64 * PAGE;

impl Layer {
    /// The image of a disk, which snapshots know as `identity`. What is left of a block at its end does not count.
    ///
    /// # Errors
    /// If its length cannot be read.
    pub fn of_image(image: File, identity: [u8; 32]) -> io::Result<Self> {
        let pages = image.metadata()?.len() / PAGE_SIZE;
        Ok(Self {
            source: Source::Given {
                view: Arc::new(image.into()),
                pages,
                absent: None,
            },
            name: Some(ParentPool {
                pool: identity,
                pages,
            }),
        })
    }
}

/// Pages of the guest that are blocks of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRun {
    /// The first one's guest-physical address.
    pub address: u64,
    /// How many.
    pub pages: u64,
    /// Number of the image.
    pub image: usize,
    /// The first one's block.
    pub block: u64,
}

impl ImageRun {
    fn end(&self) -> u64 {
        self.address + self.pages * PAGE_SIZE
    }
}

/// All blocks of some images, by a few of their words.
struct Blocks<'a> {
    images: &'a [Layer],
    by_key: HashMap<u64, Vec<(usize, u64)>>,
}

/// A few words of a page, mixed. Pages that differ may have the same.
fn key(page: &[u8; PAGE]) -> u64 {
    let word = |at: usize| {
        let bytes = page[at..].first_chunk().expect("a page is longer");
        u64::from_le_bytes(*bytes)
    };
    [8, 1032, 2056, 3080, PAGE - 8]
        .into_iter()
        .fold(0, |key: u64, at| {
            (key.rotate_left(23) ^ word(at)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
}

pub(super) fn read_exact_at(
    file: BorrowedFd<'_>,
    mut buffer: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl<'a> Blocks<'a> {
    fn of(images: &'a [Layer]) -> io::Result<Self> {
        let mut by_key: HashMap<u64, Vec<(usize, u64)>> = HashMap::new();
        let mut buffer = vec![0; PIECE];
        for (number, image) in images.iter().enumerate() {
            let mut block = 0;
            while block < image.source.pages() {
                let blocks = (image.source.pages() - block).min((PIECE / PAGE) as u64);
                let piece = &mut buffer[..blocks as usize * PAGE];
                read_exact_at(image.source.as_fd(), piece, block * PAGE_SIZE)?;
                let (pages, _) = piece.as_chunks::<PAGE>();
                for (at, page) in pages.iter().enumerate() {
                    let alike = by_key.entry(key(page)).or_default();
                    if alike.len() < ALIKE {
                        alike.push((number, block + at as u64));
                    }
                }
                block += blocks;
            }
        }
        Ok(Self { images, by_key })
    }

    /// Is that block this page?
    fn is(&self, image: usize, block: u64, page: &[u8; PAGE]) -> io::Result<bool> {
        let source = &self.images[image].source;
        if block >= source.pages() {
            return Ok(false);
        }
        let mut found = [0; PAGE];
        read_exact_at(source.as_fd(), &mut found, block * PAGE_SIZE)?;
        Ok(found == *page)
    }

    fn find(&self, page: &[u8; PAGE]) -> io::Result<Option<(usize, u64)>> {
        for (image, block) in self.by_key.get(&key(page)).into_iter().flatten() {
            if self.is(*image, *block, page)? {
                return Ok(Some((*image, *block)));
            }
        }
        Ok(None)
    }
}

impl Memory {
    /// Which pages of `ranges` are blocks of `images`, in the order of their addresses; and the rest of them.
    pub(super) fn image_runs(
        &self,
        ranges: Vec<Range<u64>>,
        images: &[Layer],
    ) -> Result<(Vec<ImageRun>, Vec<Range<u64>>), CollectError> {
        if images.is_empty() {
            return Ok((Vec::new(), ranges));
        }
        let blocks = Blocks::of(images).map_err(CollectError::Image)?;
        let mut runs: Vec<ImageRun> = Vec::new();
        let mut page = [0; PAGE];
        for address in ranges.iter().flat_map(|range| range.clone().step_by(PAGE)) {
            self.guest.read_slice(&mut page, GuestAddress(address))?;
            // A file goes on in the next block more often than not.
            if let Some(last) = runs.last_mut().filter(|last| last.end() == address)
                && blocks
                    .is(last.image, last.block + last.pages, &page)
                    .map_err(CollectError::Image)?
            {
                last.pages += 1;
                continue;
            }
            if let Some((image, block)) = blocks.find(&page).map_err(CollectError::Image)? {
                runs.push(ImageRun {
                    address,
                    pages: 1,
                    image,
                    block,
                });
            }
        }
        Ok(worth_it(runs, ranges))
    }
}

/// The runs that are long enough, and what of `ranges` is in none of these.
fn worth_it(mut runs: Vec<ImageRun>, ranges: Vec<Range<u64>>) -> (Vec<ImageRun>, Vec<Range<u64>>) {
    runs.retain(|run| run.pages >= LEAST);
    runs.sort_by_key(|run| std::cmp::Reverse(run.pages));
    runs.truncate(MOST);
    runs.sort_by_key(|run| run.address);
    let mut left = Vec::new();
    let mut taken = runs.iter().peekable();
    for range in ranges {
        let mut start = range.start;
        while let Some(run) = taken.next_if(|run| run.address < range.end) {
            if start < run.address {
                left.push(start..run.address);
            }
            start = run.end();
        }
        if start < range.end {
            left.push(start..range.end);
        }
    }
    (runs, left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u64, pages: u64, block: u64) -> ImageRun {
        ImageRun {
            address: page * PAGE_SIZE,
            pages,
            image: 0,
            block,
        }
    }

    #[test]
    fn short_runs_stay_in_the_pool() {
        let ranges = |pages: &[(u64, u64)]| -> Vec<Range<u64>> {
            (pages.iter())
                .map(|(start, end)| start * PAGE_SIZE..end * PAGE_SIZE)
                .collect()
        };
        let found = vec![run(2, 3, 0), run(10, LEAST, 70), run(30, 20, 7)];
        let (runs, left) = worth_it(found, ranges(&[(0, 20), (30, 60)]));
        assert_eq!(runs, [run(10, LEAST, 70), run(30, 20, 7)]);
        assert_eq!(left, ranges(&[(0, 10), (10 + LEAST, 20), (50, 60)]));
    }

    #[test]
    fn pages_that_differ_may_have_one_key() {
        let mut one = [7; PAGE];
        let first = key(&one);
        one[100] = 8;
        assert_eq!(key(&one), first);
        one[PAGE - 1] = 8;
        assert_ne!(key(&one), first);
    }
}
