//! What a call about memory returns, and what is done to that memory first.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use rouse_sandbox::{Answer, WaitingCall};
use rouse_snapshot::model::PAGE_SIZE;

use super::areas::{self, Area};
use super::pools::PoolIndex;
use crate::checkpoint::page_map::PageMap;
use crate::image::{Behind, Image};

/// How often pages are brought in that are taken out again before they can be written.
const ATTEMPTS: usize = 8;

/// Bytes written at a time.
const PIECE: usize = 64 * 1024;

/// Why there is no answer but the kernel's.
enum Failure {
    /// The thread has ended, or another has its number now.
    Gone,
    /// It cannot be looked at, or be written.
    Memory(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Memory(error)
    }
}

/// Finds the answer to `call`. `still_waits` tells whether its thread is still the one that asked.
pub(super) fn find(
    call: &WaitingCall,
    pools: &PoolIndex,
    still_waits: impl Fn() -> bool,
) -> Answer {
    let [address, len, third, fourth, ..] = call.arguments;
    let answer = match call.number {
        libc::SYS_madvise => advise(call.tid, address, len, third as i32, pools, still_waits),
        libc::SYS_mremap => remap(call.tid, address, len, third, fourth, pools, still_waits),
        _ => Ok(Answer::MakeIt),
    };
    match answer {
        Ok(answer) => answer,
        // Nobody will read it.
        Err(Failure::Gone) => Answer::Done,
        Err(Failure::Memory(error)) => {
            tracing::debug!(tid = call.tid, %error, "a memory call could not be answered");
            Answer::Fails(libc::ENOMEM)
        }
    }
}

fn advise(
    tid: i32,
    address: u64,
    len: u64,
    advice: i32,
    pools: &PoolIndex,
    still_waits: impl Fn() -> bool,
) -> Result<Answer, Failure> {
    // What the kernel refuses is for the kernel to refuse.
    let Some(range) = page_range(address, len) else {
        return Ok(Answer::MakeIt);
    };
    let found = areas::overlapping(tid, &range)?;
    if !still_waits() {
        return Err(Failure::Gone);
    }
    if !found.iter().any(|area| image_of(area, pools).is_some()) {
        return Ok(Answer::MakeIt);
    }
    if advice != libc::MADV_FREE {
        let memory = OpenOptions::new()
            .write(true)
            .open(format!("/proc/{tid}/mem"))?;
        let pages = PageMap::open(tid).map_err(io::Error::other)?;
        if !still_waits() {
            return Err(Failure::Gone);
        }
        for area in &found {
            let part = area.range.start.max(range.start)..area.range.end.min(range.end);
            discard(&memory, &pages, area, part, pools)?;
        }
    }
    let mut end = range.start;
    let gapless = found.iter().all(|area| {
        let follows = area.range.start <= end;
        end = area.range.end;
        follows
    });
    // As the kernel does: everything that is mapped is treated, then the gap is reported.
    Ok(match gapless && end >= range.end {
        true => Answer::Done,
        false => Answer::Fails(libc::ENOMEM),
    })
}

/// Whole pages, or nothing where the kernel will find fault with the arguments or has nothing to do.
fn page_range(address: u64, len: u64) -> Option<Range<u64>> {
    let end = address
        .checked_add(len)?
        .checked_next_multiple_of(PAGE_SIZE)?;
    (address.is_multiple_of(PAGE_SIZE) && address < end).then_some(address..end)
}

fn image_of(area: &Area, pools: &PoolIndex) -> Option<(std::sync::Arc<Image>, u64)> {
    let (key, offset) = area.file.as_ref()?;
    // What is mapped shared is not a function's memory.
    (!area.shared)
        .then(|| pools.find(key))
        .flatten()
        .map(|image| (image, *offset))
}

/// Makes `part` of an area look as memory does after `MADV_DONTNEED`.
fn discard(
    memory: &File,
    pages: &PageMap,
    area: &Area,
    part: Range<u64>,
    pools: &PoolIndex,
) -> Result<(), Failure> {
    if let Some((image, offset)) = image_of(area, pools) {
        let first = (offset + (part.start - area.range.start)) / PAGE_SIZE;
        let count = (part.end - part.start) / PAGE_SIZE;
        for (run, source) in image.behind(first..first + count) {
            let start = part.start + (run.start - first) * PAGE_SIZE;
            let len = (run.end - run.start) * PAGE_SIZE;
            let mut attempts = ATTEMPTS;
            loop {
                // Whoever writes to another process's memory does not wait for a page that is absent.
                let here = image.memory().bring_in(run.clone());
                match here
                    .map_err(io::Error::other)
                    .map_err(Failure::Memory)
                    .and_then(|()| put(memory, start, len, &source))
                {
                    Err(Failure::Memory(_)) if attempts > 1 => attempts -= 1,
                    other => break other?,
                }
            }
        }
        return Ok(());
    }
    if area.shared {
        // Its pages stay with the object; only page-table entries would go.
        return Ok(());
    }
    let own = pages.private_pages(&part).map_err(io::Error::other)?;
    match &area.file {
        None => own
            .into_iter()
            .try_for_each(|run| write(memory, run.start, run.end - run.start, |_, _| Ok(()))),
        // One call about the pool's memory and a file's: nobody is known to make it.
        Some(_) if !own.is_empty() => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        Some(_) => Ok(()),
    }
}

/// Puts what lies behind pages of the pool in their place.
fn put(memory: &File, start: u64, len: u64, behind: &Behind<'_>) -> Result<(), Failure> {
    match behind {
        Behind::Zeros => write(memory, start, len, |_, _| Ok(())),
        Behind::File { open, offset, .. } => write(memory, start, len, |at, buffer| {
            read_as_mapped(open, offset + at, buffer)
        }),
    }
}

/// Writes `len` bytes. `fill` is given the distance from the start and a buffer of zeros.
fn write(
    memory: &File,
    start: u64,
    len: u64,
    fill: impl Fn(u64, &mut [u8]) -> io::Result<()>,
) -> Result<(), Failure> {
    let mut buffer = vec![0; PIECE.min(len as usize)];
    for at in (0..len).step_by(PIECE) {
        let piece = &mut buffer[..PIECE.min((len - at) as usize)];
        fill(at, piece)?;
        // Writing to another process through its `mem` file ignores the protection of private
        // mappings, as `madvise` does.
        memory.write_all_at(piece, start + at)?;
    }
    Ok(())
}

/// Reads as a mapping shows a file: behind its end are zeros.
fn read_as_mapped(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    buffer.fill(0);
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remap(
    tid: i32,
    address: u64,
    old_len: u64,
    new_len: u64,
    flags: u64,
    pools: &PoolIndex,
    still_waits: impl Fn() -> bool,
) -> Result<Answer, Failure> {
    let (Some(range), Some(grown)) = (page_range(address, old_len), page_range(address, new_len))
    else {
        return Ok(Answer::MakeIt);
    };
    let found = areas::overlapping(tid, &range)?;
    if !still_waits() {
        return Err(Failure::Gone);
    }
    if !found.iter().any(|area| image_of(area, pools).is_some()) {
        return Ok(Answer::MakeIt);
    }
    let grows = grown.end > range.end;
    // What was one mapping before the snapshot may be several now, which the kernel does not move together.
    let moves = flags & libc::MREMAP_MAYMOVE as u64 != 0 && grown.end == range.end;
    // The old place would show the pool again.
    let leaves_behind = flags & libc::MREMAP_DONTUNMAP as u64 != 0;
    Ok(match grows || leaves_behind || (moves && found.len() > 1) {
        true => Answer::Fails(libc::ENOMEM),
        false => Answer::MakeIt,
    })
}
