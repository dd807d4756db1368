//! Memory that a process has from the snapshot it was started from.
//!
//! ```text
//!  parent's pool   |AAAAAAAAAAAAAAAAAAAAAAAA|
//!  the process     |AAAAAAwwAAAAAAAAAAAAAAAA|   ww: written since, its own copies
//!  this snapshot   |parent|ww|parent        |   only ww goes into its own pool
//! ```
//! What was not written since stays where it is, and all descendants of the parent share it.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rouse_pool::memory::Hold;
use rouse_snapshot::model::{Backing, FileId, Mapping, PAGE_SIZE, PageRun, pool_page};

use super::address_space::{AddressSpace, mapping_flags, protection};
use super::error::CheckpointError;
use super::mappings::Vma;
use super::specimen::Divided;
use crate::image::{Behind, Image};

/// A page, in bytes.
const PAGE: usize = PAGE_SIZE as usize;
/// Bytes that are compared at once.
const COMPARED_BYTES: usize = 64 * PAGE;

impl<'a> AddressSpace<'a, '_> {
    /// The image whose pool a mapping shows, and the number of that pool in the new snapshot.
    pub(super) fn pool_of(&self, vma: &Vma) -> Option<(u32, &'a Arc<Image>)> {
        if vma.shared || !vma.deleted {
            return None;
        }
        let is_same = |view: BorrowedFd<'_>| {
            rustix::fs::fstat(view)
                .is_ok_and(|stat| stat.st_ino == vma.inode && vma.is_on(stat.st_dev))
        };
        let shows = |image: &&Arc<Image>| image.memory().views().any(is_same);
        (1..).zip(self.lineage).find(|(_, image)| shows(image))
    }

    /// A file that an image of the lineage knows: what a restore has mapped shows the host's path, not the sandbox's.
    pub(super) fn known_file(&mut self, vma: &Vma, link: &str) -> Option<FileId> {
        let size = std::fs::metadata(link).ok()?.len();
        let known = self
            .lineage
            .iter()
            .find_map(|image| image.file(vma.inode, size));
        known.map(|file| self.files.adopt(file))
    }

    /// A mapping of a parent's pool: the pages written since are saved, the others stay in that pool. Several mappings
    /// of the parent that lie side by side, in the pool too, are one for the kernel.
    pub(super) fn delta(
        &mut self,
        vma: &Vma,
        pool: u32,
        image: &'a Arc<Image>,
    ) -> Result<Vec<Mapping>, CheckpointError> {
        let first = vma.offset / PAGE_SIZE;
        let mut mappings = Vec::new();
        for (pages, behind) in image.behind(first..first + vma.pages()) {
            let address = |page: u64| vma.range.start + (page - first) * PAGE_SIZE;
            let range = address(pages.start)..address(pages.end);
            let backing = match behind {
                Behind::Zeros => Backing::Anonymous,
                Behind::File {
                    identity, offset, ..
                } => Backing::PrivateFile {
                    file: self.files.adopt(identity),
                    offset,
                },
            };
            let flags = mapping_flags(vma);
            let saved = if flags.wipe_on_fork || flags.droppable {
                Vec::new()
            } else {
                let copied = self.page_map.private_pages(&range)?;
                let in_pool = |at: u64| pages.start * PAGE_SIZE + (at - range.start);
                let written = self.changed(image, copied, in_pool)?;
                let stands_for = |at: u64| match behind {
                    Behind::File {
                        identity,
                        open,
                        offset,
                    } => Behind::File {
                        identity,
                        open,
                        offset: offset + (at - range.start),
                    },
                    Behind::Zeros => Behind::Zeros,
                };
                let divided = self.divided(&written, stands_for)?;
                let mut own = divided.shared;
                for group in &divided.own {
                    own.extend(self.pages.save_all(self.memory, group)?);
                }
                own.sort_unstable_by_key(|run| run.address);
                fill_gaps(&range, own, |at| {
                    pool_page(pool, pages.start + (at - range.start) / PAGE_SIZE)
                })
            };
            mappings.push(Mapping {
                range,
                prot: protection(vma),
                backing,
                flags,
                pkey: vma.pkey,
                // The kernel names only what is anonymous.
                name: Vec::new(),
                saved,
            });
        }
        Ok(mappings)
    }

    /// Which of some pages (sorted, disjoint) lie in the pool of a specimen; none, if there is no specimen.
    pub(super) fn divided<'b>(
        &self,
        ranges: &[Range<u64>],
        behind: impl Fn(u64) -> Behind<'b>,
    ) -> Result<Divided, CheckpointError> {
        match &self.specimen {
            Some(specimen) => specimen.divide(self.memory, ranges, behind),
            None => Ok(Divided {
                own: vec![ranges.to_vec()],
                shared: Vec::new(),
            }),
        }
    }

    /// Of pages that the process has copied, those whose contents are not the parent's any more. Interpreters write
    /// much that they take back: a reference count that goes up and down again.
    fn changed(
        &self,
        image: &Image,
        copied: Vec<Range<u64>>,
        in_pool: impl Fn(u64) -> u64,
    ) -> Result<Vec<Range<u64>>, CheckpointError> {
        // As long as this is held, no page of the pool is absent; an absent one would look like zeros.
        let hold = image.memory().hold();
        if matches!(hold, Hold::Absent(_)) {
            return Ok(copied);
        }
        let mut changed: Vec<Range<u64>> = Vec::new();
        let mut ours = vec![0; COMPARED_BYTES];
        let mut theirs = vec![0; COMPARED_BYTES];
        for range in copied {
            for start in range.clone().step_by(COMPARED_BYTES) {
                let len = COMPARED_BYTES.min((range.end - start) as usize);
                let (ours, theirs) = (&mut ours[..len], &mut theirs[..len]);
                self.memory.read(start, ours)?;
                read_exact(image.memory().view(), theirs, in_pool(start))
                    .map_err(CheckpointError::ParentPool)?;
                let (ours, theirs) = (ours.as_chunks::<PAGE>().0, theirs.as_chunks::<PAGE>().0);
                for (index, _) in (0..)
                    .zip(ours.iter().zip(theirs))
                    .filter(|(_, (a, b))| a != b)
                {
                    let page = start + index * PAGE_SIZE;
                    match changed.last_mut() {
                        Some(last) if last.end == page => last.end += PAGE_SIZE,
                        _ => changed.push(page..page + PAGE_SIZE),
                    }
                }
            }
        }
        drop(hold);
        Ok(changed)
    }
}

pub(super) fn read_exact(pool: BorrowedFd<'_>, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(pool, &mut bytes[done..], offset + done as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(())
}

/// Runs that cover `range`: `own` ones, and between them what `elsewhere` says of their first address.
fn fill_gaps(
    range: &Range<u64>,
    own: Vec<PageRun>,
    elsewhere: impl Fn(u64) -> u64,
) -> Vec<PageRun> {
    let mut runs = Vec::with_capacity(2 * own.len() + 1);
    let mut at = range.start;
    let gap = |from: u64, to: u64| {
        (from < to).then(|| PageRun {
            address: from,
            pages: (to - from) / PAGE_SIZE,
            pool_page: elsewhere(from),
        })
    };
    for run in own {
        runs.extend(gap(at, run.address));
        at = run.address + run.pages * PAGE_SIZE;
        runs.push(run);
    }
    runs.extend(gap(at, range.end));
    runs
}

/// Joins mappings that were one before the last snapshot: a restore makes one of each run.
pub(super) fn merged(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut out: Vec<Mapping> = Vec::with_capacity(mappings.len());
    for next in mappings {
        match out.last_mut() {
            Some(last) if continues(last, &next) => {
                last.range.end = next.range.end;
                last.saved.extend(next.saved);
            }
            _ => out.push(next),
        }
    }
    out
}

fn continues(last: &Mapping, next: &Mapping) -> bool {
    let follows = match (&last.backing, &next.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (
            Backing::PrivateFile { file, offset },
            Backing::PrivateFile {
                file: other,
                offset: next_offset,
            },
        ) => file == other && offset + (last.range.end - last.range.start) == *next_offset,
        _ => false,
    };
    follows
        && last.range.end == next.range.start
        && (last.prot, last.flags, last.pkey, &last.name)
            == (next.prot, next.flags, next.pkey, &next.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_SIZE;

    #[test]
    fn runs_cover_the_whole_range() {
        let own = |page: u64, pages, pool_page| PageRun {
            address: page * PAGE,
            pages,
            pool_page,
        };
        let cover = |own| -> Vec<(u64, u64, u64)> {
            fill_gaps(&(10 * PAGE..20 * PAGE), own, |at| {
                pool_page(1, 100 + at / PAGE - 10)
            })
            .into_iter()
            .map(|run| (run.address / PAGE, run.pages, run.pool_page))
            .collect()
        };
        let parent = |page| pool_page(1, page);
        assert_eq!(cover(vec![]), [(10, 10, parent(100))]);
        assert_eq!(
            cover(vec![own(12, 2, 0), own(19, 1, 2)]),
            [
                (10, 2, parent(100)),
                (12, 2, 0),
                (14, 5, parent(104)),
                (19, 1, 2)
            ]
        );
        assert_eq!(cover(vec![own(10, 10, 0)]), [(10, 10, 0)]);
    }

    #[test]
    fn mappings_are_joined_where_they_were_cut() {
        let file = |page: u64, pages: u64, offset: u64| Mapping {
            range: page * PAGE..(page + pages) * PAGE,
            prot: 1,
            backing: Backing::PrivateFile {
                file: FileId(0),
                offset: offset * PAGE,
            },
            flags: Default::default(),
            pkey: 0,
            name: vec![],
            saved: vec![],
        };
        let merged = merged(vec![
            file(1, 2, 5),
            file(3, 4, 7),
            file(7, 1, 9),
            file(9, 1, 11),
        ]);
        assert_eq!(merged, [file(1, 6, 5), file(7, 1, 9), file(9, 1, 11)]);
    }
}
