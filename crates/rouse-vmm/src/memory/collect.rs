//! From the memory of a paused guest to a pool.
//!
//! - What the guest has not changed since it was made stays where it is: zeros, or pages of the pools that it was made of.
//!   What was written is compared with these: much is written and put back.
//! - What are blocks of its disks lies there ([`images`](super::images)).
//! - What it has written else goes to a new pool, in the order of its addresses; but for pages of zeros, which cost nothing. They
//!   are given back to the host, too: a guest empties its free memory before it is written down, and may go on afterwards.
//! - Each run is a mapping in every machine that is restored, and a line in the pager's books. So small gaps between runs
//!   are filled with what lies there, the smallest first, until there are few enough.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use rouse_pool::{Pool, PoolBuilder};
use rouse_snapshot::model::{PAGE_SIZE, PageRun, ParentPool, pool_page};
use rustix::mm::Advice;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::images::read_exact_at;
use super::{Layer, Memory, Source};

/// Runs of its own that a snapshot has at most.
const MOST_RUNS: usize = 512;
/// Gaps of so many pages are always filled: a mapping more costs about as much as copying them once.
const SMALL_GAP: u64 = 4;

/// Memory cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The kernel does not tell what was written.
    #[error("cannot find out what the guest has written")]
    Pagemap(#[source] io::Error),
    /// The pages cannot be read.
    #[error("cannot read the guest's memory")]
    Read(#[from] GuestMemoryError),
    /// A page of a pool that the guest was made of cannot be read.
    #[error("cannot read a pool that the guest's memory lies in")]
    Parent(#[source] io::Error),
    /// An image of a disk cannot be read.
    #[error("cannot read the image of a disk")]
    Image(#[source] io::Error),
    /// No pool can be made.
    #[error("cannot fill a pool")]
    Pool(#[source] io::Error),
    /// It lies in a pool that a child could not name.
    #[error("the guest's memory lies in a pool that no snapshot on disk has")]
    Nameless,
}

/// A guest's memory, written down.
#[derive(Debug)]
pub struct Collected {
    /// Where its pages are.
    pub runs: Vec<PageRun>,
    /// Pages that are new.
    pub pool: Pool,
    /// Pools that the others are in.
    pub parents: Vec<ParentPool>,
    /// The same, for whoever maps them here.
    pub layers: Vec<Layer>,
}

impl Memory {
    /// Writes the memory down. The guest must not run. `images` are those of its disks; each has a name, by which the snapshot refers to
    /// it as to a parent's pool.
    ///
    /// # Errors
    /// See [`CollectError`].
    pub fn collect(&self, name: &str, images: &[Layer]) -> Result<Collected, CollectError> {
        let written = self.written().map_err(CollectError::Pagemap)?;
        let written = self.changed(&written)?;
        let (new, zeros) = self.sorted_out(&written)?;
        let (of_images, new) = self.image_runs(new, images)?;
        let new = join(new);
        self.give_back(&zeros);
        let mut builder = PoolBuilder::new(name).map_err(CollectError::Pool)?;
        let mut own = Vec::with_capacity(new.len());
        for range in &new {
            let first = self.append(&mut builder, range)?;
            own.push(PageRun {
                address: range.start,
                pages: (range.end - range.start) / PAGE_SIZE,
                pool_page: pool_page(0, first),
            });
        }
        // A snapshot has a pool, even if nothing is in it.
        if builder.pages() == 0 {
            builder.append_zeros(1).map_err(CollectError::Pool)?;
        }
        let (mut runs, mut parents, mut layers) = self.inherited(&written, &new)?;
        for run in &of_images {
            let image = &images[run.image];
            let name = image.name.as_ref().ok_or(CollectError::Nameless)?;
            let number = match parents.iter().position(|parent| parent == name) {
                Some(known) => known,
                None => {
                    parents.push(name.clone());
                    layers.push(image.clone());
                    parents.len() - 1
                }
            };
            let number = u32::try_from(number + 1).expect("layers are few");
            let run = PageRun {
                address: run.address,
                pages: run.pages,
                pool_page: pool_page(number, run.block),
            };
            // Some may lie in a gap between other pages that was filled.
            runs.extend(parts_outside(&run, &[], &new));
        }
        runs.extend(own);
        runs.sort_by_key(|run| run.address);
        Ok(Collected {
            runs,
            pool: builder.finish().map_err(CollectError::Pool)?,
            parents,
            layers,
        })
    }

    /// What of these ranges is not what lies in its pool at the same place.
    fn changed(&self, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, CollectError> {
        let mut changed: Vec<Range<u64>> = Vec::new();
        let (mut page, mut before) = ([0_u8; PAGE_SIZE as usize], [0_u8; PAGE_SIZE as usize]);
        for address in (ranges.iter()).flat_map(|range| range.clone().step_by(PAGE_SIZE as usize)) {
            if let Some((source, at)) = self.pool_page_at(address) {
                self.guest.read_slice(&mut page, GuestAddress(address))?;
                read_exact_at(source.as_fd(), &mut before, at * PAGE_SIZE)
                    .map_err(CollectError::Parent)?;
                if page == before {
                    continue;
                }
            }
            match changed.last_mut() {
                Some(last) if last.end == address => last.end += PAGE_SIZE,
                _ => changed.push(address..address + PAGE_SIZE),
            }
        }
        Ok(changed)
    }

    /// The pool that a guest address lies in, and its page there, if that can be read: an absent page would read as zeros.
    fn pool_page_at(&self, address: u64) -> Option<(&Source, u64)> {
        let behind = self.runs.partition_point(|run| run.address <= address);
        let run = &self.runs[behind.checked_sub(1)?];
        let page = (address - run.address) / PAGE_SIZE;
        let source = &self.layers[run.pool()].source;
        let is_there = page < run.pages && source.absent().is_none();
        is_there.then(|| (source, run.page_in_pool() + page))
    }

    /// Runs of pools that the guest has not written to, renumbered: 0 is to be the new pool's number.
    #[expect(clippy::type_complexity, reason = "three lists that belong together")]
    fn inherited(
        &self,
        written: &[Range<u64>],
        new: &[Range<u64>],
    ) -> Result<(Vec<PageRun>, Vec<ParentPool>, Vec<Layer>), CollectError> {
        let (mut runs, mut parents, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        let mut numbers = vec![None; self.layers.len()];
        for run in &self.runs {
            for part in parts_outside(run, written, new) {
                let number = match numbers[run.pool()] {
                    Some(number) => number,
                    None => {
                        let layer = &self.layers[run.pool()];
                        parents.push(layer.name.clone().ok_or(CollectError::Nameless)?);
                        layers.push(layer.clone());
                        let number = u32::try_from(parents.len()).expect("layers are few");
                        numbers[run.pool()] = Some(number);
                        number
                    }
                };
                runs.push(PageRun {
                    pool_page: pool_page(number, part.page_in_pool()),
                    ..part
                });
            }
        }
        Ok((runs, parents, layers))
    }

    /// What of these ranges is not zeros, and what is.
    #[expect(clippy::type_complexity, reason = "two lists of the same kind")]
    fn sorted_out(
        &self,
        ranges: &[Range<u64>],
    ) -> Result<(Vec<Range<u64>>, Vec<Range<u64>>), CollectError> {
        let (mut new, mut zeros) = (Vec::new(), Vec::new());
        let mut page = [0_u8; PAGE_SIZE as usize];
        for range in ranges {
            for address in range.clone().step_by(PAGE_SIZE as usize) {
                self.guest.read_slice(&mut page, GuestAddress(address))?;
                let found: &mut Vec<Range<u64>> = match page.iter().all(|byte| *byte == 0) {
                    true => &mut zeros,
                    false => &mut new,
                };
                match found.last_mut() {
                    Some(last) if last.end == address => last.end += PAGE_SIZE,
                    _ => found.push(address..address + PAGE_SIZE),
                }
            }
        }
        Ok((new, zeros))
    }

    /// Gives pages of zeros back to the host. Not those that lie over a pool, whose pages would show up.
    fn give_back(&self, zeros: &[Range<u64>]) {
        for range in zeros {
            if self.touches_pool(range) {
                continue;
            }
            let start = self.reservation.start + range.start as usize;
            let len = (range.end - range.start) as usize;
            // SAFETY: the range lies in the reservation, where there is no pool: it is zeros before and after.
            let result =
                unsafe { rustix::mm::madvise(start as *mut _, len, Advice::LinuxDontNeed) };
            // Memory that stays in use costs no more than before.
            if let Err(error) = result {
                tracing::debug!(%error, address = range.start, "pages of zeros stay in memory");
            }
        }
    }

    fn touches_pool(&self, range: &Range<u64>) -> bool {
        let behind = self.runs.partition_point(|run| run.address < range.end);
        behind > 0 && {
            let run = &self.runs[behind - 1];
            range.start < run.address + run.pages * PAGE_SIZE
        }
    }

    /// Appends a range, and returns the number of its first page in the pool.
    fn append(&self, builder: &mut PoolBuilder, range: &Range<u64>) -> Result<u64, CollectError> {
        const PIECE: u64 = 64 * PAGE_SIZE;
        let first = builder.pages();
        let mut buffer = vec![0; PIECE as usize];
        for start in range.clone().step_by(PIECE as usize) {
            let piece = &mut buffer[..(range.end - start).min(PIECE) as usize];
            self.guest.read_slice(piece, GuestAddress(start))?;
            let appended = match piece.iter().all(|byte| *byte == 0) {
                true => builder.append_zeros(piece.len() as u64 / PAGE_SIZE),
                false => builder.append(piece),
            };
            appended.map_err(CollectError::Pool)?;
        }
        Ok(first)
    }
}

/// Fills gaps, the smallest first, until there are few enough.
fn join(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let fill = |ranges: &mut Vec<Range<u64>>, gap: u64| {
        ranges.dedup_by(|next, last| {
            let joins = next.start - last.end <= gap;
            if joins {
                last.end = next.end;
            }
            joins
        });
    };
    fill(&mut ranges, SMALL_GAP * PAGE_SIZE);
    if let Some(surplus) = ranges.len().checked_sub(MOST_RUNS + 1) {
        let pairs = ranges.iter().zip(&ranges[1..]);
        let mut gaps: Vec<u64> = pairs.map(|(one, next)| next.start - one.end).collect();
        gaps.sort_unstable();
        fill(&mut ranges, gaps[surplus]);
    }
    ranges
}

/// The parts of a run of which nothing was written, and that were not taken along to fill a gap.
fn parts_outside(run: &PageRun, written: &[Range<u64>], new: &[Range<u64>]) -> Vec<PageRun> {
    let end = run.address + run.pages * PAGE_SIZE;
    let mut taken: Vec<&Range<u64>> = written
        .iter()
        .chain(new)
        .filter(|range| range.start < end && range.end > run.address)
        .collect();
    taken.sort_by_key(|range| range.start);
    let (mut parts, mut from) = (Vec::new(), run.address);
    let mut push = |from: u64, to: u64| {
        if from < to {
            parts.push(PageRun {
                address: from,
                pages: (to - from) / PAGE_SIZE,
                pool_page: run.pool_page + (from - run.address) / PAGE_SIZE,
            });
        }
    };
    for range in taken {
        push(from, range.start.min(end));
        from = from.max(range.end);
    }
    push(from, end);
    parts
}
