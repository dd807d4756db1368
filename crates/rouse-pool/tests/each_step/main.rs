//! Whatever the store does to the disk is interrupted at each of its steps: by death, or by a disk that is full. Every
//! snapshot is there as a whole or not at all, none is ever wrong, and what is left over goes.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../store_sample/mod.rs"]
mod store_sample;
mod tracer;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use rouse_pool::snapshot_store::{GcOptions, SnapshotStore, StoreError, WriteOptions};
use store_sample::*;
use tracer::{Fate, Outcome};

/// Set in the child to the directory it works in, and to what it does there.
const ROOT: &str = "ROUSE_TEST_STEPS_ROOT";
const DEED: &str = "ROUSE_TEST_STEPS_DEED";
const TEST: &str = "every_step_may_be_the_last";
const EAGER: GcOptions = GcOptions {
    min_unused_part: 0.0,
    min_unused_bytes: 1,
};
/// More than any deed has.
const MAX_STEPS: usize = 500;

/// Pages of the snapshot with this number: each shares half of them with the next.
fn seeds(number: u64) -> std::ops::Range<u64> {
    1000 + number * 30..1000 + number * 30 + 60
}

fn write(store: &SnapshotStore, number: u64) -> Result<(), StoreError> {
    let (snapshot, pool) = of_pages(seeds(number));
    let options = WriteOptions::new("default");
    store
        .write(&format!("f/{number}"), &snapshot, &pool, &options)
        .map(drop)
}

type Deed = fn(&SnapshotStore) -> Result<(), StoreError>;

const DEEDS: [(&str, Deed); 4] = [
    ("write", |store| write(store, 5)),
    ("rewrite", |store| {
        let options = WriteOptions {
            hot: &[10..30],
            ..WriteOptions::new("default")
        };
        store.rewrite("f/2", &options).map(drop)
    }),
    ("remove", |store| store.remove("f/2")),
    // Removes packs, and writes others anew without what nobody needs.
    ("gc", |store| store.gc(EAGER).map(drop)),
];

/// Four snapshots, and what two others have left.
fn prepare(root: &Path) {
    let store = store(root);
    (0..6).for_each(|number| write(&store, number).unwrap());
    store.remove("f/0").unwrap();
    store.remove("f/5").unwrap();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// Whatever has been done: all that should be there is, whole; and what should not be can be removed.
fn check(root: &Path, deed: &str, context: &str) {
    let store = store(root);
    let contents_are_right = || {
        let names = store.list().unwrap();
        for name in &names {
            let number = name.strip_prefix("f/").unwrap().parse().unwrap();
            let loaded = store.open_snapshot(name).unwrap().load().unwrap();
            let right = contents(&loaded) == contents(&pool(seeds(number)));
            assert!(right, "{context}: {name}");
        }
        for number in [1, 2, 3, 4] {
            let is_there = names.contains(&format!("f/{number}"));
            let may_be_gone = deed == "remove" && number == 2;
            assert!(is_there || may_be_gone, "{context}: {names:?}");
        }
    };
    contents_are_right();
    let report = store.fsck().unwrap();
    assert!(report.is_clean(), "{context}: {report:?}");
    store.gc(EAGER).unwrap();
    contents_are_right();
    let report = store.fsck().unwrap();
    let is_tidy = report.leftovers.is_empty() && report.orphans.is_empty();
    assert!(report.is_clean() && is_tidy, "{context}: {report:?}");
}

/// What the child does.
fn act(root: &Path, deed: &str) -> ! {
    let (_, deed) = DEEDS.iter().find(|(name, _)| *name == deed).unwrap();
    let store = store(root);
    tracer::mark();
    let done = deed(&store);
    tracer::mark();
    // Without the test's own end, which would say that it has passed.
    std::process::exit(i32::from(done.is_err()))
}

#[test]
fn every_step_may_be_the_last() {
    if let (Some(root), Ok(deed)) = (std::env::var_os(ROOT), std::env::var(DEED)) {
        act(Path::new(&root), &deed);
    }
    let place = tempfile::tempdir().unwrap();
    let prepared = place.path().join("prepared");
    fs::create_dir(&prepared).unwrap();
    prepare(&prepared);
    for (deed, _) in DEEDS {
        for fate in [Fate::Kill, Fate::Fail(libc::ENOSPC)] {
            let mut failed = 0;
            for nth in 1..MAX_STEPS {
                let context = format!("{deed}, {fate:?} at step {nth}");
                let root = place.path().join("root");
                copy(&prepared, &root);
                let mut command = Command::new(std::env::current_exe().unwrap());
                command
                    .args(["--exact", TEST, "--nocapture"])
                    .env(ROOT, &root)
                    .env(DEED, deed)
                    .stdout(Stdio::null());
                let outcome = tracer::run(command, &root, nth, fate);
                let leftovers = store(&root).fsck().unwrap().leftovers;
                check(&root, deed, &context);
                fs::remove_dir_all(&root).unwrap();
                match (outcome, fate) {
                    (Outcome::TooFew, _) => {
                        // Said only for a person who reads the output.
                        eprintln!("{deed}: {} steps, {failed} failed", nth - 1);
                        assert!(nth > 3, "{context}: hardly anything was counted");
                        break;
                    }
                    (Outcome::Killed, Fate::Kill) => {}
                    (Outcome::Ended(status @ (0 | 1)), Fate::Fail(_)) => {
                        failed += status;
                        // Whoever can say that it failed can clean up.
                        let is_clean = leftovers.is_empty() || status == 0 || deed != "write";
                        assert!(is_clean, "{context}: {leftovers:?}");
                    }
                    (outcome, _) => panic!("{context}: {outcome:?}"),
                }
                assert!(nth + 1 < MAX_STEPS, "{context}: there is no end");
            }
            assert!(fate == Fate::Kill || failed > 0, "{deed}: nothing failed");
        }
    }
}
