//! Mappings and their pages.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use rouse_process::checkpoint::Checkpoint;
use rouse_snapshot::model::{Backing, Mapping, PAGE_SIZE};

use super::subject::{Subject, kind};

fn mapping_at(taken: &Checkpoint, address: u64) -> &Mapping {
    taken
        .snapshot
        .mappings
        .iter()
        .find(|mapping| mapping.range.contains(&address))
        .unwrap()
}

/// What a restore would show at a page of a mapping; `None` behind the end of a file.
fn restored_page(taken: &Checkpoint, mapping: &Mapping, address: u64) -> Option<[u8; 4096]> {
    let mut page = [0; 4096];
    let saved = mapping
        .saved
        .iter()
        .find(|run| (run.address..run.address + run.pages * PAGE_SIZE).contains(&address));
    match (&mapping.backing, saved) {
        (_, Some(run)) => {
            let offset = run.pool_page * PAGE_SIZE + address - run.address;
            assert_eq!(
                rustix::io::pread(&taken.pool, &mut page, offset).unwrap(),
                4096
            );
        }
        (Backing::PrivateFile { file, offset } | Backing::SharedFile { file, offset }, None) => {
            let file = &taken.snapshot.files[file.0 as usize];
            let path = String::from_utf8(file.host_path.clone()).unwrap();
            let at = offset + address - mapping.range.start;
            if at >= file.size {
                return None;
            }
            let len = (file.size - at).min(4096) as usize;
            File::open(path)
                .unwrap()
                .read_exact_at(&mut page[..len], at)
                .unwrap();
        }
        _ => {}
    }
    Some(page)
}

/// Compares every page that a restore would show with what the stopped process has there.
fn assert_same_memory(subject: &Subject, taken: &Checkpoint) {
    for mapping in &taken.snapshot.mappings {
        if matches!(
            mapping.backing,
            Backing::Vdso | Backing::Vvar { .. } | Backing::SharedMemory { .. }
        ) || mapping.flags.wipe_on_fork
        {
            continue;
        }
        for address in mapping.range.clone().step_by(4096) {
            // Guard pages and what lies behind the end of a file cannot be read.
            let Some(now) = subject.memory(address, 4096) else {
                continue;
            };
            let then = restored_page(taken, mapping, address);
            assert!(
                then.is_none_or(|then| then == *now),
                "{address:x} differs, in {mapping:x?}"
            );
        }
    }
}

#[test]
fn a_restore_would_show_the_same_memory() {
    let subject = Subject::start(
        r#"
import json, decimal
private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
def address(area):
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
area = mmap.mmap(-1, 400 * 4096, private)
libc.madvise(ctypes.c_void_p(address(area)), 400 * 4096, 15)
for page in [3, 3 + 16, 3 + 16 + 17, 200, 201]:
    area[page * 4096] = 1
read_only = area[300 * 4096]
area[250 * 4096] = 0
ready(address(area))
park()
"#,
    );
    let taken = subject.checkpoint();
    assert_same_memory(&subject, &taken);
    let start = subject.number(0);
    let runs: Vec<(u64, u64)> = mapping_at(&taken, start)
        .saved
        .iter()
        .filter(|run| (start..start + 400 * 4096).contains(&run.address))
        .map(|run| ((run.address - start) / 4096, run.pages))
        .collect();
    assert_eq!(
        runs,
        [(3, 17), (36, 1), (200, 2)],
        "pages that were only read or are zero are not saved"
    );
    let snapshot = &taken.snapshot;
    let special = |backing: Backing| {
        snapshot
            .mappings
            .iter()
            .filter(|mapping| mapping.backing == backing)
            .count()
    };
    assert_eq!(special(Backing::Vdso), 1);
    assert_eq!(special(Backing::Vvar { index: 0 }), 1);
    assert_eq!(special(Backing::Stack), 1);
    let mut last = 0;
    for run in snapshot.mappings.iter().flat_map(|mapping| &mapping.saved) {
        assert!(
            run.pool_page >= last,
            "the pool keeps the order of addresses"
        );
        last = run.pool_page + run.pages;
    }
    assert!(taken.resident_bytes > taken.pool.pages() * 4096 / 2);
}

#[test]
fn attributes_of_mappings() {
    let subject = Subject::start(
        r#"
def area(flags=0, advice=None, prot=3):
    # A page without access on both sides keeps it from growing together with others.
    outer = libc.mmap(None, 6 * 4096, 0, 0x22, -1, 0)
    inner = libc.mmap(outer + 4096, 4 * 4096, 3, 0x32 | flags, -1, 0)
    ctypes.memset(inner, 7, 8192)
    if advice is not None:
        assert libc.madvise(inner, 4 * 4096, advice) == 0, advice
    if prot != 3:
        libc.mprotect(inner, 4 * 4096, prot)
    return inner
droppable = libc.mmap(None, 4 * 4096, 3, 0x28, -1, 0)
ready(area(0x4000), area(advice=10), area(advice=16), area(advice=18), area(advice=14), area(advice=15),
      area(advice=12), area(advice=1), area(advice=2), area(prot=0), area(prot=5), area(flags=0x2000),
      area(), droppable if droppable not in (None, 2**64 - 1) else 0)
park()
"#,
    );
    let taken = subject.checkpoint();
    assert_same_memory(&subject, &taken);
    let mapping = |index: usize| mapping_at(&taken, subject.number(index));
    assert!(mapping(0).flags.no_reserve);
    assert!(mapping(1).flags.dont_fork);
    assert!(mapping(2).flags.dont_dump);
    assert!(mapping(3).flags.wipe_on_fork && mapping(3).saved.is_empty());
    assert!(mapping(4).flags.huge_page);
    assert!(mapping(5).flags.no_huge_page);
    assert!(mapping(6).flags.mergeable);
    assert!(mapping(7).flags.random_read);
    assert!(mapping(8).flags.sequential_read);
    assert_eq!((mapping(9).prot, mapping(9).saved[0].pages), (0, 2));
    assert_eq!(mapping(10).prot, 5);
    assert!(mapping(11).flags.locked);
    assert_eq!(mapping(12).flags, Default::default());
    if subject.number(13) != 0 {
        assert!(mapping(13).flags.droppable && mapping(13).saved.is_empty());
    }
}

#[test]
fn guard_pages_are_told_apart() {
    let subject = Subject::start(
        r#"
area = mmap.mmap(-1, 8 * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(area))
ctypes.memset(address, 5, 8 * 4096)
guarded = libc.madvise(ctypes.c_void_p(address + 2 * 4096), 4096, 102)
ready(address, guarded)
park()
"#,
    );
    let taken = subject.checkpoint();
    if subject.words[1] != "0" {
        // A kernel before 6.13.
        return;
    }
    let guard = subject.number(0) + 2 * 4096;
    assert_eq!(mapping_at(&taken, guard).range, guard..guard + 4096);
    let is_guard = |address| {
        let mapping = mapping_at(&taken, address);
        (mapping.prot, mapping.flags.guard, mapping.saved.len())
    };
    assert_eq!(is_guard(guard), (3, true, 0));
    assert_eq!(is_guard(guard - 1), (3, false, 1));
    assert_eq!(is_guard(guard + 4096), (3, false, 1));
    assert_same_memory(&subject, &taken);
}

#[test]
fn guard_pages_elsewhere_are_obstacles() {
    let subject = Subject::start(
        r#"
fd = os.open("/usr/bin/python3", os.O_RDONLY)
address = map_file(fd, 8, mmap.MAP_PRIVATE)
os.close(fd)
guarded = libc.madvise(address + 2 * 4096, 4096, 102)
ready("%x-%x" % (address + 2 * 4096, address + 3 * 4096), guarded)
park()
"#,
    );
    // Kernels before 6.15 have them in anonymous memory only.
    if subject.words[1] == "0" {
        let expected = format!(
            "mapping {}: guard pages in memory that is a stack, shared, or of a file",
            subject.words[0]
        );
        assert_eq!(subject.obstacle(), expected);
    }
}

#[test]
fn locked_memory_of_the_future_is_an_obstacle() {
    // Bits: all memory of now, of the future, each page on its first access.
    for (flags, is_obstacle) in [(1, false), (2, true), (3, true), (6, true)] {
        let script = format!("assert libc.mlockall({flags}) == 0\nready()\npark()");
        let subject = Subject::start(&script);
        if is_obstacle {
            let expected = format!(
                "process {} (python3): locks all memory that it will map (mlockall)",
                subject.pid
            );
            assert_eq!(subject.obstacle(), expected);
        } else {
            let taken = subject.checkpoint();
            let is_locked = |mapping: &Mapping| mapping.flags.locked;
            assert!(taken.snapshot.mappings.iter().any(is_locked));
        }
    }
}

#[test]
fn shared_memory_is_saved_once() {
    let subject = Subject::start(
        r#"
def address(area):
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
anonymous = mmap.mmap(-1, 4 * 4096)
anonymous[4096:4100] = b"anon"
fd = os.memfd_create("thing", os.MFD_ALLOW_SEALING)
os.truncate(fd, 8 * 4096 + 10)
os.pwrite(fd, b"memfd", 5 * 4096)
import fcntl
fcntl.fcntl(fd, 1033, 2)
os.lseek(fd, 77, 0)
first = map_file(fd, 1, 1, offset=5 * 4096)
closed = os.memfd_create("closed")
os.truncate(closed, 2 * 4096)
os.pwrite(closed, b"closed", 4096)
second = map_file(closed, 2, 1)
third = map_file(closed, 1, 1, offset=4096)
private = map_file(closed, 2, 2)
poke(private, 9)
os.close(closed)
ready(address(anonymous), fd, first, second, third, private)
park()
"#,
    );
    let taken = subject.checkpoint();
    assert_same_memory(&subject, &taken);
    let object = |index: usize| match mapping_at(&taken, subject.number(index)).backing {
        Backing::SharedMemory { object, size, .. } => (object, size),
        ref other => panic!("{other:?}"),
    };
    let saved = |index: usize| {
        mapping_at(&taken, subject.number(index))
            .saved
            .iter()
            .map(|run| run.pages)
            .sum::<u64>()
    };
    assert_eq!((object(0).1, saved(0)), (4 * 4096, 1));
    assert_eq!(saved(2), 0, "it is saved with the descriptor");
    assert_eq!(object(3), object(4));
    assert_ne!(object(3).0, object(2).0);
    assert_eq!(
        saved(3) + saved(4),
        1,
        "the page is saved with one of its two mappings"
    );
    assert_eq!(
        mapping_at(&taken, subject.number(5)).backing,
        Backing::Anonymous
    );
    let rouse_snapshot::model::DescriptionKind::MemFd {
        object: number,
        name,
        size,
        seals,
        offset,
        saved,
    } = kind(&taken, subject.number(1))
    else {
        panic!("not a memfd");
    };
    assert_eq!((*number, *size), object(2));
    assert_eq!(
        (name.as_slice(), *seals, *offset),
        (b"thing".as_slice(), 2, 77)
    );
    assert_eq!((saved[0].address, saved[0].pages), (5 * 4096, 1));
    let mut content = [0; 5];
    rustix::io::pread(&taken.pool, &mut content, saved[0].pool_page * 4096).unwrap();
    assert_eq!(&content, b"memfd");
}

#[test]
fn files_are_referred_to_and_what_is_gone_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["kept", "gone", "shared"] {
        let content: Vec<u8> = (0..40 * 4096 + 100)
            .map(|byte| (byte / 4096) as u8 + 1)
            .collect();
        std::fs::write(directory.path().join(name), content).unwrap();
    }
    let subject = Subject::start(&format!(
        r#"
def area(name, pages, flags, prot):
    fd = os.open("{}/" + name, os.O_RDONLY)
    area = map_file(fd, pages, flags, prot)
    os.close(fd)
    return area
small = area("kept", 4, 2, 3)
poke(small + 4096, 99)
large = area("kept", 41, 2, 3)
poke(large + 38 * 4096, 99)
poke(large + 4096, 99)
gone = area("gone", 41, 2, 3)
poke(gone, 99)
os.unlink("{0}/gone")
shared = area("shared", 41, 1, 1)
ready(small, large, gone, shared)
park()
"#,
        directory.path().display()
    ));
    let taken = subject.checkpoint();
    assert_same_memory(&subject, &taken);
    let mapping = |index: usize| mapping_at(&taken, subject.number(index));
    let runs = |index: usize| {
        mapping(index)
            .saved
            .iter()
            .map(|run| ((run.address - subject.number(index)) / 4096, run.pages))
            .collect::<Vec<_>>()
    };
    let file = |index: usize| match mapping(index).backing {
        Backing::PrivateFile { file, offset: 0 } | Backing::SharedFile { file, offset: 0 } => {
            &taken.snapshot.files[file.0 as usize]
        }
        ref other => panic!("{other:?}"),
    };
    assert_eq!(runs(0), [(0, 4)], "a small mapping is saved whole");
    assert_eq!(runs(1), [(1, 1), (38, 1)]);
    assert_eq!(file(0), file(1));
    assert_eq!(mapping(2).backing, Backing::Anonymous);
    assert_eq!(runs(2), [(0, 41)]);
    assert_eq!(runs(3), []);
    assert_eq!(file(3).size, 40 * 4096 + 100);
    assert!(file(3).host_path.ends_with(b"/shared"));
}

#[test]
fn writable_shared_files_are_obstacles() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(4096).unwrap();
    let path = file.path().display();
    let subject = Subject::start(&format!(
        r#"
fd = os.open("{path}", os.O_RDWR)
area = mmap.mmap(fd, 4096)
os.close(fd)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
ready("%x-%x" % (start, start + 4096))
park()
"#
    ));
    assert_eq!(
        subject.obstacle(),
        format!("mapping {}: shared writable file {path}", subject.words[0])
    );
}

#[test]
fn system_v_shared_memory_is_an_obstacle() {
    let subject = Subject::start(
        r#"
shmid = syscall(29, 0, 4096, 0o600)
syscall(30, shmid, 0, 0)
syscall(31, shmid, 0, None)
ready()
park()
"#,
    );
    assert!(
        subject
            .obstacle()
            .contains(": System V shared memory /SYSV")
    );
}

#[test]
fn sealed_mappings_are_obstacles() {
    const NO_SUCH_CALL: u64 = libc::ENOSYS as u64;
    let subject = Subject::start(
        r#"
area = map_file(-1, 2, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
libc.syscall(462, ctypes.c_long(area), ctypes.c_long(8192), 0)
ready(ctypes.get_errno(), area)
park()
"#,
    );
    // Kernels before 6.10 have no mseal, and show it in VmFlags later still.
    if subject.number(0) != NO_SUCH_CALL {
        let start = subject.number(1);
        let expected = format!("mapping {start:x}-{:x}: sealed mapping", start + 8192);
        assert_eq!(subject.obstacle(), expected);
    }
}
