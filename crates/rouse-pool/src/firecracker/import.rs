//! From the memory file of another VMM to a snapshot in the store.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rouse_snapshot::model::{MemoryImage, PAGE_SIZE, PageRun, pool_page};

use super::{Contents, FileContents};
use crate::{Pool, PoolBuilder};

/// Bytes that are read at a time. Zeros are told apart in such pieces: a run for each single page would be many.
const PIECE: u64 = 16 * PAGE_SIZE;

/// Reads a memory file. What is zeros is not stored.
///
/// # Errors
/// If the file cannot be read, or is not of whole pages.
pub fn import(file: File) -> io::Result<(MemoryImage, Pool)> {
    let contents = FileContents::new(file.try_clone()?)?;
    let mut builder = PoolBuilder::new("memory-file")?;
    let mut memory: Vec<PageRun> = Vec::new();
    let mut buffer = vec![0; PIECE as usize];
    let end = contents.pages() * PAGE_SIZE;
    for offset in (0..end).step_by(PIECE as usize) {
        let piece = &mut buffer[..(end - offset).min(PIECE) as usize];
        file.read_exact_at(piece, offset)?;
        if piece.iter().all(|byte| *byte == 0) {
            continue;
        }
        let pages = piece.len() as u64 / PAGE_SIZE;
        let first = builder.append(piece)?;
        match memory.last_mut() {
            Some(run) if run.address + run.pages * PAGE_SIZE == offset => run.pages += pages,
            _ => memory.push(PageRun {
                address: offset,
                pages,
                pool_page: pool_page(0, first),
            }),
        }
    }
    // A snapshot has a pool, even if nothing is in it.
    if builder.pages() == 0 {
        builder.append_zeros(1)?;
    }
    let image = MemoryImage {
        pages: contents.pages(),
        memory,
        pool_pages: builder.pages(),
    };
    Ok((image, builder.finish()?))
}
