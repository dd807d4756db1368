//! `kill -9` in the middle of writing, storing anew, removing or collecting: every snapshot is
//! there as a whole or not at all, and what is left over goes.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_sample;

use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rouse_pool::snapshot_store::{GcOptions, WriteOptions};
use store_sample::*;

/// Set in the child to the directory it works in.
const ROOT: &str = "ROUSE_TEST_KILLED_ROOT";
const STARTED: &str = "started working";
const EAGER: GcOptions = GcOptions {
    min_unused_part: 0.0,
    min_unused_bytes: 1,
};

/// Pages of the snapshot with this number: each shares half of them with the next.
fn seeds(number: u64) -> std::ops::Range<u64> {
    1000 + number * 150..1000 + number * 150 + 300
}

/// What the child does until it is killed.
fn work_for_ever(root: &Path) -> ! {
    let store = store(root);
    println!("{STARTED}");
    for number in 0.. {
        let (snapshot, pool) = of_pages(seeds(number));
        let name = |number| format!("f/{number}");
        let options = WriteOptions::new("default");
        store
            .write(&name(number), &snapshot, &pool, &options)
            .unwrap();
        if number % 3 == 2 {
            let options = WriteOptions {
                hot: &[10..50],
                ..options
            };
            store.rewrite(&name(number), &options).unwrap();
        }
        if number % 2 == 1 {
            store.remove(&name(number - 1)).unwrap();
            store.gc(EAGER).unwrap();
        }
    }
    unreachable!("the numbers do not end")
}

#[test]
fn whatever_is_interrupted_leaves_whole_snapshots() {
    if let Some(root) = env::var_os(ROOT) {
        work_for_ever(Path::new(&root));
    }
    let mut leftovers = 0;
    let mut snapshots = 0;
    // Whatever the child is doing when it dies, the result must be right; different delays make
    // it die at different places, but nothing depends on which.
    for round in 0..24 {
        let root = tempfile::tempdir().unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args([
                "--exact",
                "whatever_is_interrupted_leaves_whole_snapshots",
                "--nocapture",
            ])
            .env(ROOT, root.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().ends_with(STARTED)),
            "the child did not start"
        );
        thread::sleep(Duration::from_micros(13_001 * round));
        child.kill().unwrap();
        child.wait().unwrap();

        let store = store(root.path());
        let check = || {
            for name in store.list().unwrap() {
                let number = name.strip_prefix("f/").unwrap().parse().unwrap();
                let loaded = store.open_snapshot(&name).unwrap().load().unwrap();
                assert!(
                    contents(&loaded) == contents(&pool(seeds(number))),
                    "{name}"
                );
            }
        };
        check();
        assert!(store.fsck().unwrap().is_clean());
        snapshots += store.list().unwrap().len();
        leftovers += store.gc(EAGER).unwrap().removed_leftovers;
        check();
        let report = store.fsck().unwrap();
        assert!(
            report.is_clean() && report.leftovers.is_empty(),
            "{report:?}"
        );
        assert!(report.orphans.is_empty(), "{report:?}");
    }
    // Said only for a person who reads the output: it depends on the machine's speed.
    eprintln!("24 children left {snapshots} snapshots and {leftovers} leftovers");
}
