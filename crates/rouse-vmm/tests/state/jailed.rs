//! A machine in a process of its own, jailed before it knew of the machine, with memory that the pager brings: it is rewound,
//! and multiplied into others.

use std::fs::File;
use std::io::{BufRead, BufReader, Lines};
use std::os::fd::AsFd;
use std::path::Path;

use rouse_pool::keeper::{PagerHandle, Registration};
use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions};
use rouse_pool::{PoolId, SnapshotStore, SparsePool};
use rouse_snapshot::model::MachineSnapshot;
use rouse_vmm::jail::Jail;
use rouse_vmm::snapshot::Written;
use rouse_vmm::zygote::{GivenDevices, GivenPool, Ready, Running};

use super::goes_on;
use super::guest::Tick;

const JAIL: Jail = Jail {
    uid: 64_123,
    gid: 64_124,
};

pub fn from_the_store(pager: &PagerHandle, written: &Written, before: &[Tick]) {
    let directory = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(directory.path(), NodeKey::new([7; 32])).unwrap();
    store
        .write(
            "machine",
            &written.snapshot,
            &written.pool,
            &WriteOptions::new("tenant"),
        )
        .unwrap();
    let stored: StoredSnapshot<MachineSnapshot> = store.open_as("machine").unwrap();
    let sparse = SparsePool::new("jailed", stored.snapshot.pool_pages).unwrap();
    let source = store.source(&stored).unwrap();
    let pool = pager.add_pool(PoolId(77), sparse, &source).unwrap();

    let ready = start();
    is_jailed(ready.pid());
    let registered = pool.registered();
    let faults = pager.stats().faults;
    let identity = Some(stored.binding.pool);
    let pools = Pools {
        pager,
        pools: vec![GivenPool::Registered(&registered, identity)],
    };
    let mut first = Jailed::restore(ready, &stored.snapshot, pools);
    let ticks = first.ticks(3);
    goes_on(before, &ticks);
    assert!(pager.stats().faults > faults);

    let pages = first.running.rewind().unwrap();
    assert!(pages > 0);
    // Behind what it had said meanwhile, and perhaps half a line, it says again what it has said already; but for what must differ.
    let again = first.tick_up_to(ticks.last().unwrap().number);
    assert!(ticks.iter().all(|tick| tick.random != again.random));

    let (snapshot, own) = first.running.snapshot(&[]).unwrap();
    assert_eq!(snapshot.parents.len(), 1);
    let mut seen = vec![again.random.clone()];
    for _ in 0..2 {
        let pools = Pools {
            pager,
            pools: vec![
                GivenPool::Whole(&own, None),
                GivenPool::Registered(&registered, identity),
            ],
        };
        let mut clone = Jailed::restore(start(), &snapshot, pools);
        let tick = clone.ticks(2).remove(1);
        assert!(tick.number > again.number && tick.uptime >= again.uptime);
        assert!(!seen.contains(&tick.random));
        seen.push(tick.random);
    }
    // It has gone on meanwhile.
    assert!(first.ticks(1)[0].number > again.number);
    let pid = first.running.pid();
    drop(first);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

fn start() -> Ready {
    let program = std::env::current_exe().unwrap();
    Ready::start(&program, &JAIL, None).unwrap_or_else(|error| panic!("{error}: {error:?}"))
}

struct Pools<'a> {
    pager: &'a PagerHandle,
    pools: Vec<GivenPool<'a>>,
}

/// A machine in a jailed process.
struct Jailed {
    // Before what serves its memory.
    running: Running,
    lines: Lines<BufReader<File>>,
    _registration: Option<Registration>,
}

impl Jailed {
    fn restore(ready: Ready, snapshot: &MachineSnapshot, pools: Pools<'_>) -> Self {
        let (console, theirs) = rustix::pipe::pipe().unwrap();
        let mut registration = None;
        let running = ready
            .restore(
                snapshot,
                &pools.pools,
                &GivenDevices::default(),
                theirs.as_fd(),
                |uffd, mappings| {
                    registration = Some(pools.pager.register(uffd, mappings, false)?);
                    Ok(())
                },
            )
            .unwrap_or_else(|error| panic!("{error}: {error:?}"));
        Self {
            running,
            lines: BufReader::new(File::from(console)).lines(),
            _registration: registration,
        }
    }

    fn ticks(&mut self, count: usize) -> Vec<Tick> {
        let lines = self.lines.by_ref().map_while(Result::ok);
        lines
            .filter_map(|line| Tick::parse(&line))
            .take(count)
            .collect()
    }

    /// The next one with no higher number.
    fn tick_up_to(&mut self, number: u64) -> Tick {
        let mut lines = self.lines.by_ref().map_while(Result::ok);
        lines
            .find_map(|line| Tick::parse(&line).filter(|tick| tick.number <= number))
            .unwrap()
    }
}

/// What the kernel says of the warden's child.
fn is_jailed(warden: u32) {
    let children = format!("/proc/{warden}/task/{warden}/children");
    let child = std::fs::read_to_string(children).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.trim())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(field("Uid:"), "64123 64123 64123 64123");
    assert_eq!(field("Gid:"), "64124 64124 64124 64124");
    for set in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "CapInh:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(
        (field("NoNewPrivs:"), field("Seccomp:")),
        ("1".into(), "2".into())
    );
    let root = std::fs::read_dir(format!("/proc/{}/root", child.trim())).unwrap();
    assert_eq!(root.count(), 0);
}
