//! Shared memory that belongs to the process alone: anonymous shared mappings and memfds.
//!
//! An object may be mapped several times and be open as a descriptor. Its pages are saved once: at the first
//! descriptor if there is one (that reaches all of it), else at the mappings, each page at the first that shows it.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use rouse_snapshot::model::PageRun;

use super::error::CheckpointError;
use super::pages::PageSaver;

const PAGE: u64 = 4096;

/// One object.
#[derive(Debug)]
struct Object {
    number: u32,
    /// What has been saved of it, bytes.
    saved: Vec<Range<u64>>,
}

/// All objects, by device and inode.
#[derive(Debug, Default)]
pub(super) struct SharedObjects {
    objects: HashMap<(u64, u64), Object>,
}

/// What a mapping or a descriptor refers to.
#[derive(Debug)]
pub(super) struct SharedPart {
    /// Number of the object.
    pub(super) object: u32,
    /// Size of the object, bytes.
    pub(super) size: u64,
    /// Saved pages; addresses are offsets in the object.
    pub(super) runs: Vec<PageRun>,
}

impl SharedObjects {
    /// Saves what lies in `range` (bytes) of the object that `link` leads to, but for what is saved already.
    pub(super) fn save(
        &mut self,
        pages: &mut PageSaver,
        link: &str,
        range: Range<u64>,
    ) -> Result<SharedPart, CheckpointError> {
        let failed = |source| CheckpointError::Read {
            path: link.to_owned(),
            source,
        };
        let file = File::open(link).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        let number = self.objects.len() as u32;
        let object = self
            .objects
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| Object {
                number,
                saved: Vec::new(),
            });
        let size = metadata.size();
        let wanted = range.start..range.end.min(size.next_multiple_of(PAGE));
        let mut runs = Vec::new();
        for missing in without(wanted, &object.saved) {
            let data = data_extents(&file, missing.clone()).map_err(failed)?;
            runs.extend(pages.save_nonzero_from(&data, |offset, bytes| {
                // The last page may reach beyond the end of the object.
                let len = (size.saturating_sub(offset) as usize).min(bytes.len());
                bytes[len..].fill(0);
                file.read_exact_at(&mut bytes[..len], offset)
                    .map_err(failed)
            })?);
            object.saved.push(missing);
        }
        runs.sort_by_key(|run| run.address);
        Ok(SharedPart {
            object: object.number,
            size,
            runs,
        })
    }
}

/// The parts of `range` that none of `taken` covers.
fn without(range: Range<u64>, taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut rest = if range.is_empty() {
        Vec::new()
    } else {
        vec![range]
    };
    for hole in taken {
        rest = rest
            .into_iter()
            .flat_map(|part| {
                [
                    part.start..part.end.min(hole.start),
                    part.start.max(hole.end)..part.end,
                ]
            })
            .filter(|part| !part.is_empty())
            .collect();
    }
    rest
}

/// Where the file holds data inside of `range`, in whole pages.
pub(super) fn data_extents(file: impl AsFd, range: Range<u64>) -> std::io::Result<Vec<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    let mut extents = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let start = match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => start.max(range.start) & !(PAGE - 1),
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        if start >= range.end {
            break;
        }
        let end = seek(&file, SeekFrom::Hole(start))?
            .next_multiple_of(PAGE)
            .min(range.end);
        extents.push(start..end);
        at = end;
    }
    Ok(extents)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn subtracts_ranges() {
        assert_eq!(without(0..10, &[2..3, 5..20]), vec![0..2, 3..5]);
        assert_eq!(without(0..10, &[0..4, 4..10]), Vec::<Range<u64>>::new());
        assert_eq!(without(4..4, &[]), Vec::<Range<u64>>::new());
    }

    #[test]
    fn saves_each_page_once() {
        let file = rustix::fs::memfd_create("object", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 100 * PAGE + 5).unwrap();
        rustix::io::pwrite(&file, b"x", 3 * PAGE).unwrap();
        rustix::io::pwrite(&file, b"end", 100 * PAGE).unwrap();
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let mut pages = PageSaver::new(rouse_pool::cost::MapOrCopy::default()).unwrap();
        let mut objects = SharedObjects::default();
        let first = objects.save(&mut pages, &link, PAGE..10 * PAGE).unwrap();
        assert_eq!((first.object, first.size), (0, 100 * PAGE + 5));
        assert_eq!(
            first.runs,
            vec![PageRun {
                address: 3 * PAGE,
                pages: 1,
                pool_page: 0
            }]
        );
        let all = objects.save(&mut pages, &link, 0..u64::MAX).unwrap();
        assert_eq!(
            all.runs,
            vec![PageRun {
                address: 100 * PAGE,
                pages: 1,
                pool_page: 1
            }]
        );
        assert_eq!(
            objects.save(&mut pages, &link, 0..u64::MAX).unwrap().runs,
            vec![]
        );
    }
}
