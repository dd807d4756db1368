//! What the pages of a pool stand in for.

use std::fs::File;
use std::ops::Range;

use rouse_snapshot::model::{Backing, FileRef, PAGE_SIZE};

use super::Image;

/// What a page of a pool stands in for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Behind<'a> {
    /// Anonymous memory.
    Zeros,
    /// A private mapping of a file.
    File {
        identity: &'a FileRef,
        open: &'a File,
        /// Offset of the first page, bytes.
        offset: u64,
    },
}

impl Image {
    /// What the pages of its own pool stand in for, in runs, sorted.
    pub(crate) fn behind(&self, pages: Range<u64>) -> Vec<(Range<u64>, Behind<'_>)> {
        let mut found = Vec::new();
        for mapping in &self.snapshot.mappings {
            for run in mapping.saved.iter().filter(|run| run.pool() == 0) {
                let start = run.pool_page.max(pages.start);
                let end = (run.pool_page + run.pages).min(pages.end);
                if start >= end {
                    continue;
                }
                let address = run.address + (start - run.pool_page) * PAGE_SIZE;
                let behind = match mapping.backing {
                    Backing::PrivateFile { file, offset } => Behind::File {
                        identity: &self.snapshot.files[file.0 as usize],
                        open: &self.files[file.0 as usize].file,
                        offset: offset + (address - mapping.range.start),
                    },
                    _ => Behind::Zeros,
                };
                found.push((start..end, behind));
            }
        }
        found.sort_by_key(|(pages, _)| pages.start);
        found
    }
}
