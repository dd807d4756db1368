//! Copying pages of a process into the pool image.

use std::ops::Range;

use rouse_pool::cost::{MOST_HOLE_BYTES, MapOrCopy};
use rouse_pool::{Pool, PoolBuilder};
use rouse_snapshot::model::PageRun;

use super::error::CheckpointError;
use super::memory::Memory;

const PAGE: u64 = 4096;
/// Pages read at once: large enough that system calls do not count, small enough for the second-level cache.
const BATCH_PAGES: u64 = 128;

/// Appends pages to the pool image.
#[derive(Debug)]
pub(super) struct PageSaver {
    pool: PoolBuilder,
    pages: u64,
    buffer: Vec<u8>,
    /// Shorter stretches of zeros inside of saved memory are saved too: a run costs a mapping at each restore, a page
    /// of zeros in the pool is shared by all instances.
    hole: u64,
}

impl PageSaver {
    pub(super) fn new(costs: MapOrCopy) -> Result<Self, CheckpointError> {
        let pool = PoolBuilder::new("rouse-pool").map_err(CheckpointError::Pool)?;
        Ok(Self {
            pool,
            pages: 0,
            buffer: vec![0; (BATCH_PAGES * PAGE) as usize],
            hole: costs.hole_pages(),
        })
    }

    /// Joins ranges that have no more between them than is saved along with them.
    pub(super) fn join_close(&self, ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start - last.end < self.hole * PAGE => last.end = range.end,
                _ => joined.push(range),
            }
        }
        joined
    }

    /// Pages so far.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    pub(super) fn finish(self) -> Result<Pool, CheckpointError> {
        self.pool.finish().map_err(CheckpointError::Pool)
    }

    /// Saves the pages of `ranges` (sorted, disjoint) that are not zero.
    pub(super) fn save_nonzero(
        &mut self,
        memory: &Memory,
        ranges: &[Range<u64>],
    ) -> Result<Vec<PageRun>, CheckpointError> {
        self.save_nonzero_from(ranges, |address, bytes| memory.read(address, bytes))
    }

    /// Saves the pages of `ranges` that are not zero, read by `read(address, bytes)`.
    pub(super) fn save_nonzero_from(
        &mut self,
        ranges: &[Range<u64>],
        mut read: impl FnMut(u64, &mut [u8]) -> Result<(), CheckpointError>,
    ) -> Result<Vec<PageRun>, CheckpointError> {
        let mut runs = Vec::new();
        for batch in batches(ranges) {
            let mut buffer = std::mem::take(&mut self.buffer);
            let bytes = &mut buffer[..(batch.end - batch.start) as usize];
            let outcome = read(batch.start, bytes).and_then(|()| {
                for span in nonzero_spans(bytes, self.hole) {
                    self.append(
                        &mut runs,
                        batch.start + span.start * PAGE,
                        &bytes[(span.start * PAGE) as usize..(span.end * PAGE) as usize],
                    )?;
                }
                Ok(())
            });
            self.buffer = buffer;
            outcome?;
        }
        Ok(runs)
    }

    /// Saves all pages of `ranges` (sorted, disjoint), zeros too: what lies behind them is not zero.
    pub(super) fn save_all(
        &mut self,
        memory: &Memory,
        ranges: &[Range<u64>],
    ) -> Result<Vec<PageRun>, CheckpointError> {
        let mut runs: Vec<PageRun> = Vec::new();
        for batch in batches(ranges) {
            let mut buffer = std::mem::take(&mut self.buffer);
            let bytes = &mut buffer[..(batch.end - batch.start) as usize];
            let outcome = memory.read(batch.start, bytes).and_then(|()| {
                let starts_new_run = runs
                    .last()
                    .is_none_or(|run| run.address + run.pages * PAGE != batch.start);
                if starts_new_run {
                    runs.push(PageRun {
                        address: batch.start,
                        pages: 0,
                        pool_page: self.pages,
                    });
                }
                self.write(bytes)
            });
            self.buffer = buffer;
            outcome?;
            if let Some(run) = runs.last_mut() {
                run.pages += (batch.end - batch.start) / PAGE;
            }
        }
        Ok(runs)
    }

    /// Appends a span of pages, to the last run if it lies close behind that one.
    fn append(
        &mut self,
        runs: &mut Vec<PageRun>,
        address: u64,
        bytes: &[u8],
    ) -> Result<(), CheckpointError> {
        static ZEROS: [u8; MOST_HOLE_BYTES] = [0; MOST_HOLE_BYTES];
        let pages = bytes.len() as u64 / PAGE;
        if let Some(run) = runs.last_mut() {
            let hole = (address - run.address) / PAGE - run.pages;
            if hole < self.hole {
                if hole > 0 {
                    self.write(&ZEROS[..(hole * PAGE) as usize])?;
                }
                run.pages += hole + pages;
                return self.write(bytes);
            }
        }
        runs.push(PageRun {
            address,
            pages,
            pool_page: self.pages,
        });
        self.write(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), CheckpointError> {
        self.pool.append(bytes).map_err(CheckpointError::Pool)?;
        self.pages += bytes.len() as u64 / PAGE;
        Ok(())
    }
}

/// Cuts ranges into pieces that fit the buffer.
fn batches(ranges: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    ranges.iter().flat_map(|range| {
        let end = range.end;
        range
            .clone()
            .step_by((BATCH_PAGES * PAGE) as usize)
            .map(move |start| start..end.min(start + BATCH_PAGES * PAGE))
    })
}

/// Spans of pages to save, in pages: from the first page to the last that is not zero, cut at large holes.
fn nonzero_spans(bytes: &[u8], hole: u64) -> Vec<Range<u64>> {
    let mut spans: Vec<Range<u64>> = Vec::new();
    for (index, page) in (0u64..).zip(bytes.as_chunks::<4096>().0) {
        if is_zero(page) {
            continue;
        }
        match spans.last_mut() {
            Some(last) if index - last.end < hole => last.end = index + 1,
            _ => spans.push(index..index + 1),
        }
    }
    spans
}

fn is_zero(page: &[u8; 4096]) -> bool {
    page.as_chunks::<64>().0.iter().all(|line| {
        line.as_chunks::<8>()
            .0
            .iter()
            .fold(0, |or, word| or | u64::from_ne_bytes(*word))
            == 0
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    /// Memory of single-byte pages; returns the runs in pages, relative to the base address.
    fn save(pages: &[u8]) -> (Vec<(u64, u64, u64)>, u64) {
        let mut saver = PageSaver::new(MapOrCopy::default()).unwrap();
        let base = 0x10_0000;
        let range = base..base + pages.len() as u64 * PAGE;
        let runs = saver
            .save_nonzero_from(std::slice::from_ref(&range), |address, bytes| {
                for (index, page) in bytes.chunks_mut(4096).enumerate() {
                    page.fill(0);
                    page[4095] = pages[((address - base) / PAGE) as usize + index];
                }
                Ok(())
            })
            .unwrap();
        (
            runs.iter()
                .map(|run| ((run.address - base) / PAGE, run.pages, run.pool_page))
                .collect(),
            saver.pages(),
        )
    }

    #[test]
    fn small_holes_are_kept_and_large_ones_cut() {
        let mut pages = vec![0; 400];
        assert_eq!(save(&pages), (vec![], 0));
        pages[3] = 1;
        pages[3 + 16] = 1; // 15 pages between: one run
        pages[3 + 16 + 17] = 1; // 16 pages between: another
        assert_eq!(save(&pages), (vec![(3, 17, 0), (36, 1, 17)], 18));
        // Across the border of a batch, 127 | 128.
        pages[126] = 1;
        pages[130] = 1;
        assert_eq!(
            save(&pages),
            (vec![(3, 17, 0), (36, 1, 17), (126, 5, 18)], 23)
        );
        let full = vec![1; 300];
        assert_eq!(save(&full), (vec![(0, 300, 0)], 300));
    }

    #[test]
    fn close_ranges_are_joined() {
        let saver = PageSaver::new(MapOrCopy::default()).unwrap();
        let page = |from: u64, to: u64| from * PAGE..to * PAGE;
        assert_eq!(
            saver.join_close(vec![page(0, 1), page(16, 17), page(33, 34)]),
            vec![page(0, 17), page(33, 34)]
        );
    }
}
