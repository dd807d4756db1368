//! What each page of a snapshot is, and what follows from it.
//!
//! ```text
//!  mapping   |<------------------------------------------------------->|
//!  saved          [#########]          [################]                 pages in the pool
//!  touched     ww     wwrr                     rrr   ww                    working set
//!  class     z|w|zzz|cc|w|r|c|zzzzzzzzz|ccccccc|r|cc|w|cc|zzzzzzzzzzzzz    exactly one each
//! ```
//! | class | contents | treatment |
//! |---|---|---|
//! | zero | none | nothing |
//! | file | a file on the host, or the kernel's own pages | the file is mapped |
//! | parent | the pool of the snapshot that this one is a delta of | the parent's pool is mapped |
//! | read | any of these | mapped, and its page-table entries made ahead |
//! | written | any of these | copied ahead |
//! | cold | the snapshot's own pool | filled when touched, stored densely |
//!
//! The working set comes first, because it decides what a boot does with a page; where the contents
//! lie is told beside it ([`Contents`]).

use std::collections::BTreeMap;
use std::ops::Range;

use crate::model::{
    Backing, DescriptionKind, Mapping, PAGE_SIZE, POOL_PAGE_BITS, PageRun, ProcessSnapshot, TmpKind,
};
use crate::working_set::{WorkingSet, preparable};

/// What a page of a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PageClass {
    /// Nothing is there: zeros.
    Zero,
    /// What a file on the host holds, or the kernel itself (`[vdso]`).
    File,
    /// What the parent's pool holds.
    Parent,
    /// In the working set, read.
    Read,
    /// In the working set, written; or copied into every instance whatever it does, like the live part of the stack.
    Written,
    /// In the snapshot's own pool, and not in the working set.
    Cold,
}

impl PageClass {
    /// All, in the order in which they are shown.
    pub const ALL: [Self; 6] = [
        Self::Written,
        Self::Read,
        Self::Cold,
        Self::Parent,
        Self::File,
        Self::Zero,
    ];

    /// Name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::File => "file",
            Self::Parent => "parent",
            Self::Read => "read",
            Self::Written => "written",
            Self::Cold => "cold",
        }
    }
}

/// Where the contents of a page come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Contents {
    /// Nowhere: zeros.
    Nothing,
    /// A file on the host, or the kernel.
    Host,
    /// A pool, its own or a parent's: where the run's first page lies ([`PageRun::pool_page`]).
    Pool(u64),
}

/// Consecutive pages of one class, whose contents lie side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassRun {
    /// Addresses, page aligned.
    pub range: Range<u64>,
    /// What the pages are.
    pub class: PageClass,
    /// Where their contents come from.
    pub contents: Contents,
}

impl ClassRun {
    /// Number of pages.
    pub fn pages(&self) -> u64 {
        (self.range.end - self.range.start) / PAGE_SIZE
    }
}

/// The classes of all pages: for each mapping of the snapshot, in order, runs that cover it
/// without gap or overlap.
pub fn classify(snapshot: &ProcessSnapshot, working_set: &WorkingSet) -> Vec<Vec<ClassRun>> {
    let live_stack = live_stack(snapshot);
    let classify = |mapping: &Mapping| {
        let mut runs = Vec::new();
        let mut at = mapping.range.start;
        for saved in &mapping.saved {
            push_backing(&mut runs, mapping, at..saved.address, working_set);
            push_saved(&mut runs, mapping, saved, live_stack, working_set);
            at = saved.address + saved.pages * PAGE_SIZE;
        }
        push_backing(&mut runs, mapping, at..mapping.range.end, working_set);
        runs
    };
    snapshot.mappings.iter().map(classify).collect()
}

/// The lowest address of the main stack that is copied into instances: the red zone under the
/// leader's stack pointer. What lies below it is dead, however deep the program once was. Zero when
/// the leader runs on another stack, of which nothing is known.
pub fn live_stack(snapshot: &ProcessSnapshot) -> u64 {
    const RED_ZONE: u64 = 128;
    let pointer = snapshot.threads.first().map_or(0, |t| t.regs.rsp);
    let on_it = |m: &Mapping| m.backing == Backing::Stack && m.range.contains(&pointer);
    match snapshot.mappings.iter().any(on_it) {
        true => pointer.saturating_sub(RED_ZONE) / PAGE_SIZE * PAGE_SIZE,
        false => 0,
    }
}

/// Pages of the pool that every boot needs, in the order in which it needs them: what is copied whatever happens (the
/// stack, shared memory, files); then those that have a place in the order of first touches, by address, in that order; then
/// others that are written, or read. Each page comes once. The rest of the pool is cold.
pub fn hot_pool_pages(
    snapshot: &ProcessSnapshot,
    working_set: &WorkingSet,
    places: &BTreeMap<u64, u32>,
) -> Vec<Range<u64>> {
    let range = |run: &PageRun| run.pool_page..run.pool_page + run.pages;
    let mut ranges = Vec::new();
    for entry in &snapshot.tmp {
        if let TmpKind::File { saved, .. } = &entry.kind {
            ranges.extend(saved.iter().map(range));
        }
    }
    for description in &snapshot.descriptions {
        if let DescriptionKind::MemFd { saved, .. } = &description.kind {
            ranges.extend(saved.iter().map(range));
        }
    }
    let classes = classify(snapshot, working_set);
    let (mut placed, mut others) = (BTreeMap::new(), Vec::new());
    for class in [PageClass::Written, PageClass::Read] {
        for (mapping, runs) in snapshot.mappings.iter().zip(&classes) {
            for run in runs.iter().filter(|run| run.class == class) {
                let Contents::Pool(first) = run.contents else {
                    continue;
                };
                if first >> POOL_PAGE_BITS != 0 {
                    continue;
                }
                if !preparable(mapping) {
                    ranges.push(first..first + run.pages());
                    continue;
                }
                for n in 0..run.pages() {
                    let (address, page) = (run.range.start + n * PAGE_SIZE, first + n);
                    match places.get(&address) {
                        // Two recordings may have given the same place to two pages.
                        Some(place) => {
                            placed.insert((*place, address), page..page + 1);
                        }
                        None => others.push(page..page + 1),
                    }
                }
            }
        }
    }
    ranges.extend(placed.into_values());
    ranges.extend(others);
    merged(ranges)
}

fn merged(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

/// Pages that no run saves.
fn push_backing(
    runs: &mut Vec<ClassRun>,
    mapping: &Mapping,
    part: Range<u64>,
    working_set: &WorkingSet,
) {
    let (class, contents) = match mapping.backing {
        Backing::Anonymous | Backing::Stack | Backing::SharedMemory { .. } => {
            (PageClass::Zero, Contents::Nothing)
        }
        Backing::PrivateFile { .. }
        | Backing::SharedFile { .. }
        | Backing::Vdso
        | Backing::Vvar { .. } => (PageClass::File, Contents::Host),
    };
    push_touched(runs, mapping, part, class, contents, working_set);
}

fn push_saved(
    runs: &mut Vec<ClassRun>,
    mapping: &Mapping,
    saved: &PageRun,
    live_stack: u64,
    working_set: &WorkingSet,
) {
    let part = saved.address..saved.address + saved.pages * PAGE_SIZE;
    let contents = Contents::Pool(saved.pool_page);
    match mapping.backing {
        // A fresh object for each instance, filled from the pool.
        Backing::SharedMemory { .. } => push(runs, part, PageClass::Written, contents),
        Backing::Stack => {
            let live = live_stack.clamp(part.start, part.end);
            let above = Contents::Pool(saved.pool_page + (live - part.start) / PAGE_SIZE);
            push(runs, part.start..live, PageClass::Cold, contents);
            push(runs, live..part.end, PageClass::Written, above);
        }
        _ => {
            let otherwise = match saved.pool() {
                0 => PageClass::Cold,
                _ => PageClass::Parent,
            };
            push_touched(runs, mapping, part, otherwise, contents, working_set);
        }
    }
}

/// Splits `part` by the working set; what is not in it has class `otherwise`.
fn push_touched(
    runs: &mut Vec<ClassRun>,
    mapping: &Mapping,
    part: Range<u64>,
    otherwise: PageClass,
    contents: Contents,
    working_set: &WorkingSet,
) {
    if !preparable(mapping) {
        return push(runs, part, otherwise, contents);
    }
    let mut at = part.start;
    while at < part.end {
        let (in_written, written_until) = segment(&working_set.written, at);
        let (in_read, read_until) = segment(&working_set.read, at);
        let class = match (in_written, in_read) {
            (true, _) => PageClass::Written,
            (false, true) => PageClass::Read,
            (false, false) => otherwise,
        };
        // A page that is both is written: how far the reads go does not matter there.
        let until = match in_written {
            true => written_until,
            false => written_until.min(read_until),
        };
        let end = until.min(part.end);
        let here = match contents {
            Contents::Pool(first) => Contents::Pool(first + (at - part.start) / PAGE_SIZE),
            other => other,
        };
        push(runs, at..end, class, here);
        at = end;
    }
}

/// Is `address` in one of the ranges, and up to where is the answer the same?
fn segment(ranges: &[Range<u64>], address: u64) -> (bool, u64) {
    let after = ranges.partition_point(|r| r.end <= address);
    match ranges.get(after) {
        Some(range) if range.start <= address => (true, range.end),
        Some(range) => (false, range.start),
        None => (false, u64::MAX),
    }
}

fn push(runs: &mut Vec<ClassRun>, range: Range<u64>, class: PageClass, contents: Contents) {
    if range.is_empty() {
        return;
    }
    if let Some(last) = runs.last_mut().filter(|last| last.class == class) {
        let continues = match (last.contents, contents) {
            (Contents::Pool(first), Contents::Pool(next)) => first + last.pages() == next,
            (before, now) => before == now,
        };
        if continues {
            last.range.end = range.end;
            return;
        }
    }
    runs.push(ClassRun {
        range,
        class,
        contents,
    });
}
