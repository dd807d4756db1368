//! Machines that are paused, written down, restored, multiplied and rewound. They need KVM on hardware, a pager, and
//! `ROUSE_TEST_KERNEL`; the test bed has all (`cargo xtask hardware`). Runs nothing without `--ignored`.
//!
//! The pager's keeper must be forked before there are threads, so this program has no harness. It boots one guest, which
//! counts aloud, and does everything else with its snapshot: a boot is what takes long.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod forged;
mod guest;
mod jailed;

use std::process::ExitCode;
use std::sync::Arc;

use rouse_pool::keeper::{self, PagerHandle};
use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions};
use rouse_pool::uffd::Device;
use rouse_pool::{PoolId, SnapshotStore, SparsePool};
use rouse_snapshot::manifest::Subject;
use rouse_snapshot::model::{MachineSnapshot, PAGE_SIZE, ParentPool};
use rouse_vmm::memory::{Layer, MapError, Mapped, Memory, Source, hot_pages};
use rouse_vmm::snapshot::Written;
use rouse_vmm::{Machine, Outcome};

use guest::{Guest, Tick};

const VCPUS: u8 = 2;
const MEMORY_MIB: u32 = 256;

fn main() -> ExitCode {
    if let [_, role, uid, gid] = &std::env::args().collect::<Vec<_>>()[..]
        && role == "vmm"
    {
        return rouse_vmm::zygote::vmm_main(uid.parse().unwrap(), gid.parse().unwrap());
    }
    if !std::env::args().any(|argument| argument == "--ignored") {
        println!("0 passed; 1 ignored: needs KVM on hardware");
        return ExitCode::SUCCESS;
    }
    // Before the first thread.
    let keeper = keeper::start().unwrap();
    let (pager, _events) = keeper.connect().unwrap();

    let (mut first, kernel) = guest::boot(VCPUS, MEMORY_MIB);
    let before = first.run_for(5);
    let written = first.machine.snapshot("template", &[]).unwrap();
    println!(
        "snapshot: {} of {} pages in {} runs, {} registers",
        written.snapshot.pool_pages,
        written.snapshot.hardware.memory_pages,
        written.snapshot.memory.len(),
        written.snapshot.vcpus[0].msrs.len(),
    );
    assert_eq!(written.snapshot.hardware.kernel, kernel.digest().unwrap());
    assert!(written.snapshot.pool_pages < written.snapshot.hardware.memory_pages / 2);

    let went_on = first.run_for(3);
    goes_on(&before, &went_on);
    drop(first);
    println!("test a_paused_machine_goes_on ... ok");

    clones_differ(&written, &before, went_on);
    println!("test clones_go_on_and_differ ... ok");
    a_machine_is_rewound(&written, &before);
    println!("test a_machine_is_rewound ... ok");
    from_the_store(&pager, &written, &before);
    println!("test a_machine_comes_from_the_store_by_the_pager ... ok");
    jailed::from_the_store(&pager, &written, &before);
    println!("test a_jailed_vmm_restores_a_machine ... ok");
    forged::fields(&written);
    println!("test forged_snapshots_are_contained ... ok");
    // Keeper and pager end with this process, which they have watched.
    println!("6 passed; 0 failed");
    ExitCode::SUCCESS
}

/// The guest counts on, and its clock does not run backwards.
fn goes_on(before: &[Tick], after: &[Tick]) {
    let last = before.last().unwrap();
    let next = after.first().unwrap();
    assert!(
        (last.number + 1..last.number + 4).contains(&next.number),
        "{last:?}, then {next:?}"
    );
    let all: Vec<&Tick> = std::iter::once(last).chain(after).collect();
    assert!(
        all.is_sorted_by(|a, b| a.uptime <= b.uptime && a.number < b.number),
        "{all:?}"
    );
}

fn distinct(runs: &[Vec<Tick>]) {
    let mut seen = std::collections::BTreeSet::new();
    for tick in runs.iter().flatten() {
        assert!(
            seen.insert(&tick.random),
            "the same random number: {runs:?}"
        );
    }
}

fn unwatched(mapped: Mapped) -> Memory {
    mapped
        .watch(None, |_, _| -> Result<(), MapError> {
            panic!("no page can be absent")
        })
        .unwrap()
}

/// Several machines of one paused one: none repeats the random numbers of another, from the first ones on.
fn clones_differ(written: &Written, before: &[Tick], went_on: Vec<Tick>) {
    let mut runs = vec![went_on];
    for _ in 0..4 {
        let memory = unwatched(written.memory().unwrap());
        let mut clone = Guest::restore(&written.snapshot, memory);
        let ticks = clone.run_for(3);
        goes_on(before, &ticks);
        // Not by luck: its kernel was told.
        let told = |ticks: &[Tick]| ticks.last().unwrap().reseeds;
        assert_eq!(told(&ticks), told(before) + 1, "{ticks:?}");
        runs.push(ticks);
    }
    distinct(&runs);
}

fn a_machine_is_rewound(written: &Written, before: &[Tick]) {
    let mut guest = Guest::restore(&written.snapshot, unwatched(written.memory().unwrap()));
    let mut runs = vec![guest.run_for(3)];
    for _ in 0..3 {
        let wrote = guest.machine.memory().written().unwrap();
        let pages: u64 = wrote
            .iter()
            .map(|range| (range.end - range.start) / PAGE_SIZE)
            .sum();
        let rewound = guest.machine.rewind(&written.snapshot).unwrap();
        assert_eq!(rewound.pages, pages);
        guest.forget();
        let ticks = guest.run_for(3);
        // As if it had just been restored.
        goes_on(before, &ticks);
        runs.push(ticks);
    }
    distinct(&runs);
}

fn from_the_store(pager: &PagerHandle, written: &Written, before: &[Tick]) {
    let directory = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(directory.path(), NodeKey::new([7; 32])).unwrap();
    let options = WriteOptions::new("tenant");
    let report = store
        .write("machine", &written.snapshot, &written.pool, &options)
        .unwrap();
    println!("stored: {report:?}");
    let stored: StoredSnapshot<MachineSnapshot> = store.open_as("machine").unwrap();
    assert_eq!(stored.snapshot, written.snapshot);
    let error = store.open_snapshot("machine").unwrap_err();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        reason,
        "the manifest is of a virtual machine, not of a process"
    );

    // Without anything known of what it needs: by faults.
    let (faults, mut guest) = by_the_pager(pager, &store, &stored, 1, false);
    let ticks = guest.run_for(3);
    goes_on(before, &ticks);
    let faulted = pager.stats().faults - faults;
    let set = guest.machine.memory().touched().unwrap();
    let hot = hot_pages(&set, &stored.snapshot.memory);
    assert!(faulted > 0 && !hot.is_empty());
    // A child of it holds what it wrote, and no more.
    let child = guest.machine.snapshot("child", &[]).unwrap();
    assert_eq!(child.snapshot.parents.len(), 1);
    assert!(child.snapshot.pool_pages < stored.snapshot.pool_pages);
    println!("child: {} pages of its own", child.snapshot.pool_pages);
    store
        .write("child", &child.snapshot, &child.pool, &options)
        .unwrap();
    let mut grandchild = Guest::restore(&child.snapshot, unwatched_or(pager, &child));
    goes_on(&ticks, &grandchild.run_for(2));
    drop((grandchild, guest));

    // With its working set stored first and fetched ahead.
    let options = WriteOptions {
        hot: &hot,
        ..WriteOptions::new("tenant")
    };
    store.rewrite("machine", &options).unwrap();
    let stored: StoredSnapshot<MachineSnapshot> = store.open_as("machine").unwrap();
    let (faults, mut guest) = by_the_pager(pager, &store, &stored, 2, true);
    goes_on(before, &guest.run_for(3));
    let left = pager.stats().faults - faults;
    println!("faults: {faulted} without prefetching, {left} with");
    assert!(left * 5 < faulted, "{left} of {faulted} faults are left");
}

/// A restored machine whose pages the pager brings, and how many faults there had been before.
fn by_the_pager(
    pager: &PagerHandle,
    store: &SnapshotStore,
    stored: &StoredSnapshot<MachineSnapshot>,
    id: u64,
    prefetch: bool,
) -> (u64, Guest) {
    let sparse = SparsePool::new("machine", stored.snapshot.pool_pages()).unwrap();
    let source = store.source(stored).unwrap();
    let pool = pager.add_pool(PoolId(id), sparse, &source).unwrap();
    let layer = Layer {
        source: Source::Registered(pool.registered()),
        name: Some(ParentPool {
            pool: stored.binding.pool,
            pages: pool.pages(),
        }),
    };
    let pages = stored.snapshot.hardware.memory_pages;
    let mapped = Mapped::new(pages, &stored.snapshot.memory, vec![layer]).unwrap();
    let before = pager.stats().faults;
    let memory = watched(pager, mapped, prefetch);
    (before, Guest::restore(&stored.snapshot, memory))
}

fn watched(pager: &PagerHandle, mapped: Mapped, prefetch: bool) -> Memory {
    let device = Device::open().unwrap();
    mapped
        .watch(Some(&device), |uffd, mappings| -> Result<(), MapError> {
            let registration = pager.register(uffd, mappings, prefetch).unwrap();
            // Until this process ends.
            std::mem::forget(registration);
            Ok(())
        })
        .unwrap()
}

/// What a child's parents are paged from is still absent.
fn unwatched_or(pager: &PagerHandle, child: &Written) -> Memory {
    watched(pager, child.memory().unwrap(), false)
}

/// What a guest does is the test's business only until it is paused.
fn paused(machine: &mut Machine, pauser: &rouse_vmm::Pauser) {
    assert_eq!(machine.run_until(pauser).unwrap(), Outcome::Paused);
}

/// Shared by what the guest says and who waits for it.
type Shared<T> = Arc<std::sync::Mutex<T>>;
