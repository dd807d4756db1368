//! What the memory of a snapshot is made of: every page's class, and the tier in which its contents lie.

use std::collections::BTreeMap;
use std::ops::Range;

pub use rouse_pool::cost::Tier;
use rouse_snapshot::model::{Backing, Mapping, PAGE_SIZE, ProcessSnapshot};
use rouse_snapshot::page_class::{ClassRun, Contents, PageClass, classify};
use rouse_snapshot::working_set::WorkingSet;
use serde::Serialize;

use crate::working_set::WorkingSetReport;

/// The tier of each page of a pool: runs in the order of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    runs: Vec<(Range<u64>, Tier)>,
    /// Where the pages of no run are.
    rest: Tier,
}

impl Placement {
    /// Runs in order, which do not overlap. What is in none of them is in `rest`.
    pub fn new(runs: Vec<(Range<u64>, Tier)>, rest: Tier) -> Self {
        Self { runs, rest }
    }

    /// How many of these pages are in each tier.
    fn count(&self, pages: Range<u64>, counts: &mut BTreeMap<&'static str, u64>) {
        let mut found = 0;
        for (range, tier) in &self.runs {
            let (start, end) = (range.start.max(pages.start), range.end.min(pages.end));
            if start < end {
                *counts.entry(tier.name()).or_default() += end - start;
                found += end - start;
            }
        }
        let rest = pages.end - pages.start - found;
        if rest > 0 {
            *counts.entry(self.rest.name()).or_default() += rest;
        }
    }
}

/// The memory of a function's snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryReport {
    /// Bytes in a page.
    pub page_size: u64,
    /// Pages of each class, in the order in which they are shown. Together they are all pages that are mapped.
    pub classes: Vec<ClassTotal>,
    /// All mappings, by address.
    pub mappings: Vec<MappingReport>,
    /// Pages in the pool, among them those of no mapping: files of `/tmp`, unmapped memory files.
    pub pool_pages: u64,
    /// Pages of the pool by tier.
    pub tiers: BTreeMap<&'static str, u64>,
    /// What is predicted, and how well.
    pub working_set: WorkingSetReport,
}

/// Pages of one class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClassTotal {
    /// `written`, `read`, `cold`, `parent`, `file` or `zero`.
    pub class: &'static str,
    /// Pages.
    pub pages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Where the contents of these pages lie: in tiers of the pool (`dram`, `disk`), in files of the host (`file`), or
    /// nowhere (`none`).
    pub tiers: BTreeMap<&'static str, u64>,
}

/// One mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MappingReport {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// As in `/proc/PID/maps`.
    pub protection: String,
    /// Path in the sandbox, `[heap]`, `[stack]`, `[vdso]`, `[shared memory]`, or empty.
    pub name: String,
    /// Pages and their class, from the first address on.
    pub runs: Vec<(u64, &'static str)>,
}

impl MemoryReport {
    /// Describes a snapshot.
    pub(crate) fn of(
        snapshot: &ProcessSnapshot,
        predicted: &WorkingSet,
        placement: &Placement,
        working_set: WorkingSetReport,
    ) -> Self {
        let classes = classify(snapshot, predicted);
        let totals =
            PageClass::ALL.map(|class| total(class, &classes, snapshot.pool_pages, placement));
        let mappings = snapshot.mappings.iter().zip(&classes);
        let mut tiers = BTreeMap::new();
        placement.count(0..snapshot.pool_pages, &mut tiers);
        Self {
            page_size: PAGE_SIZE,
            classes: totals.into(),
            mappings: mappings
                .map(|(m, runs)| describe(snapshot, m, runs))
                .collect(),
            pool_pages: snapshot.pool_pages,
            tiers,
            working_set,
        }
    }
}

fn total(
    class: PageClass,
    classes: &[Vec<ClassRun>],
    pool_pages: u64,
    placement: &Placement,
) -> ClassTotal {
    let mut tiers = BTreeMap::new();
    let mut pages = 0;
    for run in classes.iter().flatten().filter(|run| run.class == class) {
        pages += run.pages();
        match run.contents {
            // A parent's pool is in memory as a whole as long as it has descendants.
            Contents::Pool(first) if first >= pool_pages => {
                *tiers.entry(Tier::Dram.name()).or_default() += run.pages();
            }
            Contents::Pool(first) => placement.count(first..first + run.pages(), &mut tiers),
            Contents::Host => *tiers.entry("file").or_default() += run.pages(),
            Contents::Nothing => *tiers.entry("none").or_default() += run.pages(),
        }
    }
    ClassTotal {
        class: class.name(),
        pages,
        bytes: pages * PAGE_SIZE,
        tiers,
    }
}

fn describe(snapshot: &ProcessSnapshot, mapping: &Mapping, runs: &[ClassRun]) -> MappingReport {
    let shared = matches!(
        mapping.backing,
        Backing::SharedFile { .. } | Backing::SharedMemory { .. }
    );
    let bit = |bit: i32, letter| match mapping.prot & bit as u32 {
        0 => '-',
        _ => letter,
    };
    MappingReport {
        start: mapping.range.start,
        end: mapping.range.end,
        protection: [
            bit(libc::PROT_READ, 'r'),
            bit(libc::PROT_WRITE, 'w'),
            bit(libc::PROT_EXEC, 'x'),
            if shared { 's' } else { 'p' },
        ]
        .iter()
        .collect(),
        name: name(snapshot, mapping),
        runs: merged(runs),
    }
}

/// Runs by class alone: where the contents lie is of no interest in a picture.
fn merged(runs: &[ClassRun]) -> Vec<(u64, &'static str)> {
    let mut out: Vec<(u64, &'static str)> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some((pages, class)) if *class == run.class.name() => *pages += run.pages(),
            _ => out.push((run.pages(), run.class.name())),
        }
    }
    out
}

fn name(snapshot: &ProcessSnapshot, mapping: &Mapping) -> String {
    let fields = &snapshot.process.mm.fields;
    match mapping.backing {
        Backing::Stack => "[stack]".into(),
        Backing::Vdso => "[vdso]".into(),
        Backing::Vvar { index: 0 } => "[vvar]".into(),
        Backing::Vvar { .. } => "[vvar_vclock]".into(),
        Backing::SharedMemory { .. } => "[shared memory]".into(),
        Backing::PrivateFile { file, .. } | Backing::SharedFile { file, .. } => {
            let path = snapshot.files.get(file.0 as usize).map(|f| &f.path[..]);
            String::from_utf8_lossy(path.unwrap_or_default()).into_owned()
        }
        Backing::Anonymous => {
            let heap = fields.start_brk..fields.brk;
            let overlaps = mapping.range.start < heap.end && heap.start < mapping.range.end;
            let mut pointers = snapshot.threads.iter().map(|t| t.regs.rsp);
            if overlaps {
                "[heap]".into()
            } else if pointers.any(|p| mapping.range.contains(&p)) {
                "[thread stack]".into()
            } else {
                String::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_in_the_tier_in_which_they_are() {
        let placement = Placement::new(
            vec![
                (0..10, Tier::Dram),
                (10..20, Tier::Disk),
                (20..30, Tier::Dram),
            ],
            Tier::Disk,
        );
        let count = |pages| {
            let mut counts = BTreeMap::new();
            placement.count(pages, &mut counts);
            (
                counts.get("dram").copied().unwrap_or(0),
                counts.get("disk").copied().unwrap_or(0),
            )
        };
        assert_eq!(count(0..30), (20, 10));
        assert_eq!(count(5..12), (5, 2));
        assert_eq!(count(25..40), (5, 10));
        assert_eq!(count(7..7), (0, 0));
    }
}
