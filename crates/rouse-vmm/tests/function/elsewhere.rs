//! The machine in another process, which knows of it what is in the store: its pages come from there, by the pager.

use std::env;
use std::io::Read;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use rouse_pool::keeper::{self, PagerHandle};
use rouse_pool::key::NodeKey;
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions};
use rouse_pool::uffd::Device;
use rouse_pool::{PoolId, SnapshotStore, SparsePool};
use rouse_snapshot::model::{MachineSnapshot, ParentPool};
use rouse_vmm::devices::virtio::{DeviceConfig, Disk, Vsock};
use rouse_vmm::memory::{Layer, MapError, Mapped, Memory, Source};
use rouse_vmm::snapshot::Written;
use rouse_vmm::{Ended, Machine};

use crate::guest;

/// What this program does when it is the other process: its first argument.
pub const ROLE: &str = "machine-of-the-store";
/// The snapshot's name.
pub const NAME: &str = "function";

pub fn store(directory: &Path) -> SnapshotStore {
    SnapshotStore::open(directory, NodeKey::new([7; 32])).expect("the store can be opened")
}

/// Stores what was written down.
pub fn keep(written: &Written, directory: &Path) {
    store(directory)
        .write(
            NAME,
            &written.snapshot,
            &written.pool,
            &WriteOptions::new("tenant"),
        )
        .expect("it can be stored");
}

/// Starts the process. If it fails, nobody would answer the test, which therefore fails with it.
pub fn start(directory: &Path, devices: &DeviceConfig) -> thread::JoinHandle<()> {
    let sockets = &devices.vsock.as_ref().expect("there are some").directory;
    let mut command = Command::new(env::current_exe().expect("this program has a path"));
    command.arg(ROLE).args([directory, sockets]);
    for disk in &devices.disks {
        command.args([Path::new(&disk.name), &disk.image]);
    }
    // It ends with what it reads from.
    let mut process = command
        .stdin(Stdio::piped())
        .spawn()
        .expect("it can be started");
    thread::spawn(move || {
        let stdin = process.stdin.take();
        let status = process.wait().expect("it is a child");
        drop(stdin);
        if !status.success() {
            eprintln!("the other process failed: {status}");
            std::process::exit(1);
        }
    })
}

/// The other process. `arguments`: store, sockets, then name and image of each disk.
pub fn main(arguments: &[String]) -> ExitCode {
    // Before the first thread.
    let keeper = keeper::start().expect("the pager's keeper starts");
    let (pager, _events) = keeper.connect().expect("it answers");
    thread::spawn(|| {
        drop(std::io::stdin().read_to_end(&mut Vec::new()));
        std::process::exit(1);
    });
    let [directory, sockets, disks @ ..] = arguments else {
        panic!("arguments are missing: {arguments:?}");
    };
    let disk = |pair: &[String]| Disk {
        name: pair[0].clone(),
        image: (&pair[1]).into(),
    };
    let devices = DeviceConfig {
        disks: disks.chunks_exact(2).map(disk).collect(),
        vsock: Some(Vsock {
            directory: sockets.into(),
        }),
        ..DeviceConfig::default()
    };
    let store = store(Path::new(directory));
    let stored: StoredSnapshot<MachineSnapshot> = store.open_as(NAME).expect("it is stored");
    let memory = by_the_pager(&pager, &store, &stored);
    let machine = Machine::restore(&stored.snapshot, memory, &devices, guest::console())
        .unwrap_or_else(|error| panic!("it cannot be restored: {error}: {error:?}"));
    assert_eq!(machine.run().expect("it runs"), Ended::Off);
    let faults = pager.stats().faults;
    println!("{faults} faults, of {} pages", stored.snapshot.pool_pages);
    assert!(faults > 0, "its pages came from elsewhere");
    ExitCode::SUCCESS
}

fn by_the_pager(
    pager: &PagerHandle,
    store: &SnapshotStore,
    stored: &StoredSnapshot<MachineSnapshot>,
) -> Memory {
    let sparse = SparsePool::new(NAME, stored.snapshot.pool_pages).expect("there is room");
    let source = store.source(stored).expect("its files can be opened");
    let pool = pager
        .add_pool(PoolId(1), sparse, &source)
        .expect("the pager takes it");
    let layer = Layer {
        source: Source::Registered(pool.registered()),
        name: Some(ParentPool {
            pool: stored.binding.pool,
            pages: pool.pages(),
        }),
    };
    let pages = stored.snapshot.hardware.memory_pages;
    let mapped = Mapped::new(pages, &stored.snapshot.memory, vec![layer]).expect("there is room");
    let device = Device::open().expect("memory can be watched");
    mapped
        .watch(Some(&device), |uffd, mappings| -> Result<(), MapError> {
            let registration = pager.register(uffd, mappings, false);
            // Until this process ends.
            std::mem::forget(registration.expect("the pager watches it"));
            Ok(())
        })
        .expect("it can be watched")
}
