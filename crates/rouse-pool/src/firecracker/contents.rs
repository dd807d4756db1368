//! Where the pages of a memory file come from.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use rouse_snapshot::manifest::Subject;
use rouse_snapshot::model::{MachineSnapshot, MemoryImage, PAGE_SIZE, PageRun};

use crate::snapshot_store::StoredSnapshot;

/// A memory file. Used by one thread for each VMM.
pub trait Contents: Send + Sync {
    /// Its length.
    fn pages(&self) -> u64;

    /// Pages that are read together with `page`, itself among them: they cost no more.
    fn around(&self, page: u64) -> Range<u64>;

    /// Reads pages; `out` has room for just these.
    ///
    /// # Errors
    /// If one of them cannot be read or is not what was stored. `out` must not be used then.
    fn read(&self, pages: Range<u64>, out: &mut [u8]) -> io::Result<()>;

    /// Pages that are filled before anybody asks for them, the most urgent first.
    fn hot(&self) -> Vec<Range<u64>>;
}

/// A file, as another VMM has written it. It must not change.
#[derive(Debug)]
pub struct FileContents {
    file: File,
    pages: u64,
}

impl FileContents {
    /// The pages of a file.
    ///
    /// # Errors
    /// If it cannot be asked for its length, or is not of whole pages.
    pub fn new(file: File) -> io::Result<Self> {
        let len = file.metadata()?.len();
        if len == 0 || !len.is_multiple_of(PAGE_SIZE) {
            let why = format!("a memory file is of whole pages, this one has {len} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let pages = len / PAGE_SIZE;
        Ok(Self { file, pages })
    }
}

impl Contents for FileContents {
    fn pages(&self) -> u64 {
        self.pages
    }

    fn around(&self, page: u64) -> Range<u64> {
        page..page + 1
    }

    fn read(&self, pages: Range<u64>, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, pages.start * PAGE_SIZE)
    }

    fn hot(&self) -> Vec<Range<u64>> {
        Vec::new()
    }
}

/// What a stored snapshot says of memory.
pub trait HasMemory: Subject {
    /// Length of the memory file in pages.
    fn memory_pages(&self) -> u64;
    /// Which of them lie in the pool.
    fn memory_runs(&self) -> &[PageRun];
}

impl HasMemory for MemoryImage {
    fn memory_pages(&self) -> u64 {
        self.pages
    }

    fn memory_runs(&self) -> &[PageRun] {
        &self.memory
    }
}

impl HasMemory for MachineSnapshot {
    fn memory_pages(&self) -> u64 {
        self.hardware.memory_pages
    }

    fn memory_runs(&self) -> &[PageRun] {
        &self.memory
    }
}

/// The memory of a stored snapshot: compressed, and verified when it is read.
///
/// As long as no working set is stored with it, each page is filled by itself, so that who asks for which is seen exactly.
#[derive(Debug)]
pub struct SnapshotContents<S = MemoryImage> {
    stored: StoredSnapshot<S>,
    /// The piece that was decoded last: faults come in clusters.
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl<S: HasMemory> SnapshotContents<S> {
    /// The memory of `stored`, which must not lie in pools of other snapshots.
    ///
    /// # Errors
    /// If it does.
    pub fn new(stored: StoredSnapshot<S>) -> io::Result<Self> {
        let own = stored
            .snapshot
            .memory_runs()
            .iter()
            .all(|run| run.pool() == 0);
        match own {
            true => Ok(Self {
                stored,
                last: Mutex::new(None),
            }),
            false => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the snapshot is a child of another one: store its memory as a whole",
            )),
        }
    }

    /// The run in which a page lies, and the first page behind it or, outside of all, the first of the next.
    fn run_of(&self, page: u64) -> Result<&PageRun, u64> {
        let runs = self.stored.snapshot.memory_runs();
        let behind = runs.partition_point(|run| run.address / PAGE_SIZE <= page);
        if let Some(run) = behind.checked_sub(1).map(|index| &runs[index])
            && page < run.address / PAGE_SIZE + run.pages
        {
            return Ok(run);
        }
        let end = self.pages_of_file();
        Err(runs.get(behind).map_or(end, |run| run.address / PAGE_SIZE))
    }

    fn pages_of_file(&self) -> u64 {
        self.stored.snapshot.memory_pages()
    }

    /// The part of a run that lies in the same piece as `page`, as pages of the file.
    fn piece_part(&self, run: &PageRun, page: u64) -> Range<u64> {
        let first = run.address / PAGE_SIZE;
        let in_pool = run.page_in_pool() + (page - first);
        let (_, piece) = self.stored.map.piece_of(in_pool);
        let piece = piece.range();
        let start = page - (in_pool - piece.start).min(page - first);
        let end = (page + (piece.end - in_pool)).min(first + run.pages);
        start..end
    }
}

impl<S: HasMemory + Send + Sync> Contents for SnapshotContents<S> {
    fn pages(&self) -> u64 {
        self.pages_of_file()
    }

    fn around(&self, page: u64) -> Range<u64> {
        match self.run_of(page) {
            Ok(run) if self.stored.map.hot_extent().is_some() => self.piece_part(run, page),
            _ => page..page + 1,
        }
    }

    fn read(&self, pages: Range<u64>, out: &mut [u8]) -> io::Result<()> {
        let mut page = pages.start;
        while page < pages.end {
            let at = ((page - pages.start) * PAGE_SIZE) as usize;
            let end = match self.run_of(page) {
                Err(next) => {
                    let end = next.min(pages.end);
                    out[at..((end - pages.start) * PAGE_SIZE) as usize].fill(0);
                    end
                }
                Ok(run) => {
                    let part = self.piece_part(run, page);
                    let in_pool = run.page_in_pool() + (page - run.address / PAGE_SIZE);
                    let (index, piece) = self.stored.map.piece_of(in_pool);
                    let from = ((in_pool - piece.range().start) * PAGE_SIZE) as usize;
                    let end = part.end.min(pages.end);
                    let len = ((end - page) * PAGE_SIZE) as usize;
                    let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                    if last.as_ref().is_none_or(|(of, _)| *of != index) {
                        let plain = self.stored.read_piece(index).map_err(io::Error::other)?;
                        *last = Some((index, plain));
                    }
                    if let Some((_, plain)) = &*last {
                        out[at..at + len].copy_from_slice(&plain[from..from + len]);
                    }
                    end
                }
            };
            page = end;
        }
        Ok(())
    }

    /// What was stored as the working set, in the order of the file.
    fn hot(&self) -> Vec<Range<u64>> {
        let mut hot: Vec<Range<u64>> = Vec::new();
        for run in self.stored.snapshot.memory_runs() {
            let first = run.address / PAGE_SIZE;
            let mut page = first;
            while page < first + run.pages {
                let part = self.piece_part(run, page);
                let (_, piece) = self
                    .stored
                    .map
                    .piece_of(run.page_in_pool() + (page - first));
                if piece.class == rouse_snapshot::page_map::Class::Hot {
                    match hot.last_mut() {
                        Some(last) if last.end == page => last.end = part.end,
                        _ => hot.push(page..part.end),
                    }
                }
                page = part.end;
            }
        }
        hot
    }
}
