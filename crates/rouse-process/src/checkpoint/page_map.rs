//! What the kernel knows about the pages of a process that is being read.

use std::io;
use std::ops::Range;

use rouse_pool::pagemap::Pagemap;

use super::error::CheckpointError;

/// [`Pagemap`], with errors that name the file.
#[derive(Debug)]
pub(crate) struct PageMap {
    pages: Pagemap,
    pid: i32,
}

impl PageMap {
    pub(crate) fn open(pid: i32) -> Result<Self, CheckpointError> {
        match Pagemap::open(pid) {
            Ok(pages) => Ok(Self { pages, pid }),
            Err(source) => Err(cannot_read(pid, source)),
        }
    }

    pub(crate) fn private_pages(
        &self,
        range: &Range<u64>,
    ) -> Result<Vec<Range<u64>>, CheckpointError> {
        (self.pages.private_pages(range)).map_err(|source| cannot_read(self.pid, source))
    }

    pub(crate) fn file_pages(
        &self,
        range: &Range<u64>,
    ) -> Result<Vec<Range<u64>>, CheckpointError> {
        (self.pages.file_pages(range)).map_err(|source| cannot_read(self.pid, source))
    }

    pub(crate) fn guard_pages(
        &self,
        range: &Range<u64>,
    ) -> Result<Vec<Range<u64>>, CheckpointError> {
        (self.pages.guard_pages(range)).map_err(|source| cannot_read(self.pid, source))
    }
}

fn cannot_read(pid: i32, source: io::Error) -> CheckpointError {
    let path = format!("/proc/{pid}/pagemap");
    CheckpointError::Read { path, source }
}
