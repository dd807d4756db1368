//! What the memory of a machine's snapshot is made of.

use std::collections::BTreeMap;
use std::ops::Range;

use rouse_pool::memory::ImageMemory;
use rouse_process::memory_report::{ClassTotal, MappingReport, MemoryReport, Tier};
use rouse_process::working_set::WorkingSetReport;
use rouse_snapshot::model::{PAGE_SIZE, PageRun};
use rouse_snapshot::page_class::PageClass;
use rouse_snapshot::working_set::WorkingSet;
use rouse_vmm::agent::{Owner, Owners};

use super::image::MachineImage;

/// Describes it. As many mappings as there are owners of pages: each has its pages in the order of their addresses, as if nothing
/// lay between them.
pub fn of(
    image: &MachineImage,
    owners: &Owners,
    known: &WorkingSet,
    memory: &ImageMemory,
    working_set: WorkingSetReport,
) -> MemoryReport {
    let snapshot = &image.snapshot;
    // What cannot be asked is not in memory for all that is known.
    let resident = memory.resident_ranges().unwrap_or_default();
    let tier = |page: u64| match contains(&resident, page) {
        true => Tier::Dram.name(),
        false if memory.compressed_bytes() > 0 => Tier::Compressed.name(),
        false => Tier::Disk.name(),
    };
    let mut classes: BTreeMap<PageClass, ClassTotal> = BTreeMap::new();
    let mut mappings: BTreeMap<Owner, MappingReport> = BTreeMap::new();
    let mut runs = snapshot.memory.iter().peekable();
    for page in 0..snapshot.hardware.memory_pages {
        let address = page * PAGE_SIZE;
        while runs.next_if(|run| end_of(run) <= address).is_some() {}
        let run = runs.peek().filter(|run| run.address <= address);
        let is_parent = run.is_some_and(|run| image.is_of_template(run));
        let is_file = run.is_some_and(|run| run.pool() > 0) && !is_parent;
        let in_pool = run.map(|run| run.page_in_pool() + (address - run.address) / PAGE_SIZE);
        let class = match in_pool {
            None => PageClass::Zero,
            // A block of a disk.
            Some(_) if is_file => PageClass::File,
            Some(_) if contains(&known.written, address) => PageClass::Written,
            Some(_) if contains(&known.read, address) => PageClass::Read,
            Some(_) if is_parent => PageClass::Parent,
            Some(_) => PageClass::Cold,
        };
        let total = classes.entry(class).or_insert_with(|| ClassTotal {
            class: class.name(),
            pages: 0,
            bytes: 0,
            tiers: BTreeMap::new(),
        });
        total.pages += 1;
        total.bytes += PAGE_SIZE;
        let place = match in_pool {
            Some(_) if is_file => "file",
            // Its pool is in memory as a whole, or its pages come with those of the function.
            Some(_) if is_parent => Tier::Dram.name(),
            place => place.map_or("none", tier),
        };
        *total.tiers.entry(place).or_default() += 1;
        let owner = owners.of_page(page);
        let mapping = mappings.entry(owner).or_insert_with(|| MappingReport {
            start: address,
            end: address,
            protection: String::new(),
            name: format!("[guest: {}]", owner.name()),
            runs: Vec::new(),
        });
        mapping.end = address + PAGE_SIZE;
        match mapping.runs.last_mut() {
            Some((pages, of)) if *of == class.name() => *pages += 1,
            _ => mapping.runs.push((1, class.name())),
        }
    }
    let mut tiers = BTreeMap::new();
    for page in 0..snapshot.pool_pages {
        *tiers.entry(tier(page)).or_default() += 1;
    }
    MemoryReport {
        page_size: PAGE_SIZE,
        classes: PageClass::ALL
            .iter()
            .filter_map(|class| classes.remove(class))
            .collect(),
        mappings: mappings.into_values().collect(),
        pool_pages: snapshot.pool_pages,
        tiers,
        working_set,
    }
}

fn end_of(run: &PageRun) -> u64 {
    run.address + run.pages * PAGE_SIZE
}

/// Does one of these ranges, which are in order and do not overlap, have it?
fn contains(ranges: &[Range<u64>], what: u64) -> bool {
    let behind = ranges.partition_point(|range| range.end <= what);
    ranges.get(behind).is_some_and(|range| range.start <= what)
}
