//! One thing wrong with an otherwise good snapshot: each is found.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sample;

use rouse_snapshot::model::*;
use rouse_snapshot::validate;

/// The reason for which the sample is refused after a change.
fn reason(change: impl FnOnce(&mut ProcessSnapshot)) -> String {
    let mut snapshot = sample::sample(2, 1);
    assert_eq!(validate(&snapshot), Ok(()));
    change(&mut snapshot);
    validate(&snapshot).unwrap_err().to_string()
}

macro_rules! refused {
    ($($name:ident: $change:expr => $reason:literal;)*) => {$(
        #[test]
        fn $name() {
            let reason = reason($change);
            assert!(reason.contains($reason), "refused because of: {reason}");
        }
    )*};
}

refused! {
    no_kernel: |s| s.host.kernel.clear() => "host: the kernel version is empty";
    executable_out_of_range: |s| s.process.exe = FileId(99) => "process: refers to a file";
    relative_directory: |s| s.process.cwd = b"task".to_vec() => "not absolute";
    nul_in_directory: |s| s.process.cwd.push(0) => "holds a NUL";
    endless_directory: |s| s.process.cwd.resize(4096, b'a') => "too long";
    backward_heap: |s| s.process.mm.fields.brk = 0 => "ends before it starts";
    kernel_stack: |s| s.process.mm.fields.start_stack = 1 << 47 => "not a user address";
    cut_auxv: |s| s.process.mm.auxv.truncate(7) => "auxiliary vector";
    umask: |s| s.process.umask = 0o1000 => "umask";
    dumpable: |s| s.process.dumpable = 2 => "dumpable";
    signal_zero: |s| s.process.signal_actions[0].signal = 0 => "no such signal";
    signal_kill: |s| s.process.signal_actions[0].signal = 9 => "SIGKILL";
    signal_twice: |s| s.process.signal_actions[1].signal = 2 => "two actions";
    short_siginfo: |s| s.process.pending[0].truncate(127) => "siginfo_t";
    timer_of_nobody: |s| s.process.posix_timers[0].notify_tid = 77 => "not there";
    timer_signal: |s| s.process.posix_timers[0].signal = 65 => "no such signal";
    rlimit_order: |s| s.process.rlimits[0] = (1, 2, 1) => "above the hard";
    rlimit_number: |s| s.process.rlimits[0].0 = 16 => "no such resource";

    no_threads: |s| s.threads.clear() => "no threads";
    thread_zero: |s| s.threads[0].tid = 0 => "not positive";
    same_thread: |s| s.threads[1].tid = 2 => "same id";
    short_xsave: |s| s.threads[1].xsave.truncate(8) => "thread 3: its XSAVE area";
    long_name: |s| s.threads[1].name = vec![b'x'; 16] => "longer than 15";
    nul_in_name: |s| s.threads[1].name[2] = 0 => "holds a NUL";
    death_signal: |s| s.threads[1].parent_death_signal = -1 => "parent-death";
    thread_siginfo: |s| s.threads[1].pending[0].push(0) => "siginfo_t";
    rseq_in_kernel: |s| s.threads[0].rseq = Some(Rseq { address: !0, len: 32, signature: 0, flags: 0 }) => "rseq";

    empty_mapping: |s| s.mappings[1].range.end = s.mappings[1].range.start => "it is empty";
    unaligned_mapping: |s| s.mappings[1].range.end += 1 => "not page aligned";
    kernel_mapping: |s| s.mappings.last_mut().unwrap().range.end = 1 << 47 => "beyond the user addresses";
    unsorted_mappings: |s| s.mappings.swap(0, 1) => "not sorted";
    overlapping_mappings: |s| s.mappings[1].range.end = s.mappings[2].range.end => "overlaps";
    protection: |s| s.mappings[0].prot = 8 => "unknown bits";
    protection_key: |s| s.mappings[0].pkey = 16 => "protection key";
    mapped_file: |s| s.mappings[0].backing = Backing::PrivateFile { file: FileId(50), offset: 0 } => "not in the list";
    file_offset: |s| s.mappings[0].backing = Backing::PrivateFile { file: FileId(0), offset: 5 } => "not page aligned";
    huge_offset: |s| s.mappings[0].backing = Backing::PrivateFile { file: FileId(0), offset: !0xfff } => "too large";
    third_vvar: |s| s.mappings[0].backing = Backing::Vvar { index: 2 } => "vvar";
    saved_vdso: |s| s.mappings[2].backing = Backing::Vdso => "no saved pages";
    saved_secret: |s| s.mappings[2].flags.wipe_on_fork = true => "come back zeroed";
    saved_guard: |s| s.mappings[2].flags.guard = true => "guard pages";
    long_mapping_name: |s| s.mappings[3].name = vec![b'a'; 80] => "name";
    odd_name: |s| s.mappings[3].name = b"a]".to_vec() => "name";
    name_of_code: |s| s.mappings[0].name = b"a".to_vec() => "name";
    key_zero: |s| s.process.protection_keys = 1 => "protection key 0";
    saved_droppable: |s| s.mappings[2].flags.droppable = true => "come back zeroed";
    shared_size: |s| s.mappings[3].backing = Backing::SharedMemory { object: 0, size: 1, offset: 0 } => "another size";

    empty_run: |s| s.mappings[2].saved[0].pages = 0 => "is empty";
    unaligned_run: |s| s.mappings[2].saved[0].address += 8 => "not page aligned";
    run_before: |s| s.mappings[2].saved[0].address -= 4096 => "not sorted, or overlap";
    run_after: |s| s.mappings[2].saved[0].address += 4096 => "outside of it";
    endless_run: |s| s.mappings[2].saved[0].pages = u64::MAX => "outside of it";
    unsorted_runs: |s| s.mappings[1].saved.swap(0, 1) => "not sorted, or overlap";
    run_in_no_pool: |s| s.mappings[2].saved[0].pool_page = pool_page(1, 0) => "a pool that it may not use";
    parent_twice: |s| s.parents = vec![ParentPool { pool: [1; 32], pages: 1 }; 2] => "a parent is there twice";
    run_outside_parent: |s| {
        s.parents = vec![ParentPool { pool: [1; 32], pages: 1 }];
        s.mappings[2].saved[0].pool_page = pool_page(1, 1);
    } => "outside the pool";
    run_outside_pool: |s| s.mappings[2].saved[0].pool_page = s.pool_pages => "outside the pool";
    run_far_outside_pool: |s| s.mappings[2].saved[0].pool_page = u64::MAX => "a pool that it may not use";

    file_path: |s| s.files[1].path.clear() => "file 1: its path is not absolute";
    file_host_path: |s| s.files[1].host_path = b"/a\0".to_vec() => "holds a NUL";
    file_size: |s| s.files[1].size = u64::MAX => "too large";

    negative_fd: |s| s.descriptors[0].fd = -1 => "fd -1: it is negative";
    fd_twice: |s| s.descriptors[1].fd = 0 => "there twice";
    fds_unsorted: |s| s.descriptors.swap(2, 3) => "not sorted";
    fd_of_nothing: |s| s.descriptors[0].description = DescriptionId(100) => "not in the list";

    tmp_outside: |s| s.tmp[0].path = b"/etc".to_vec() => "not listed before";
    tmp_itself: |s| s.tmp[0].path = b"/tmp".to_vec() => "not listed before";
    tmp_escape: |s| s.tmp[2].path = b"/tmp/..".to_vec() => "names no file";
    tmp_escape_below: |s| s.tmp[2].path = b"/tmp/../etc".to_vec() => "not listed before";
    tmp_slash: |s| s.tmp[0].path = b"/tmp/".to_vec() => "names no file";
    tmp_order: |s| s.tmp.swap(0, 1) => "not listed before";
    tmp_twice: |s| s.tmp[2].path = b"/tmp/d".to_vec() => "there twice";
    tmp_through_link: |s| s.tmp[0].kind = TmpKind::Symlink { target: b"/etc".to_vec() } => "not listed before";
    tmp_mode: |s| s.tmp[0].mode = 0o10000 => "no permissions";
    tmp_link: |s| s.tmp[2].kind = TmpKind::Symlink { target: vec![] } => "not a path";
    tmp_pages: |s| s.tmp[1].kind = TmpKind::File { size: 4097, saved: vec![PageRun { address: 0, pages: 2, pool_page: s.pool_pages - 1 }] } => "outside the pool";
    tmp_file_pages: |s| s.tmp[1].kind = TmpKind::File { size: 4096, saved: vec![PageRun { address: 0, pages: 2, pool_page: 0 }] } => "outside of it";
    tmp_hard_link: |s| s.tmp[3].kind = TmpKind::HardLink { target: b"/tmp/link".to_vec() } => "another name of";
}

#[test]
fn what_is_wrong_with_an_open_file_is_found() {
    let wrong = [
        (
            DescriptionKind::Path {
                path: b"x".to_vec(),
                offset: 0,
                identity: None,
            },
            "not absolute",
        ),
        (
            DescriptionKind::Path {
                path: b"/x".to_vec(),
                offset: 0,
                identity: Some(FileId(9)),
            },
            "not in the list",
        ),
        (
            DescriptionKind::Pipe {
                pipe: 0,
                write_end: true,
                content: vec![1],
                capacity: 4096,
            },
            "writing end",
        ),
        (
            DescriptionKind::Pipe {
                pipe: 0,
                write_end: false,
                content: vec![1; 9],
                capacity: 8,
            },
            "more than it can",
        ),
        (
            DescriptionKind::EventFd {
                count: u64::MAX,
                semaphore: false,
            },
            "too far",
        ),
        (
            DescriptionKind::Epoll {
                watches: vec![EpollWatch {
                    fd: -1,
                    events: 0,
                    data: 0,
                }],
            },
            "negative",
        ),
        (
            DescriptionKind::SocketPair {
                pair: 0,
                second: false,
                kind: 3,
                queue: vec![],
                options: vec![],
            },
            "no such type",
        ),
        (
            DescriptionKind::MemFd {
                object: 0,
                name: b"m".to_vec(),
                size: 3 * PAGE_SIZE,
                seals: 0,
                offset: 0,
                saved: vec![PageRun {
                    address: 3 * PAGE_SIZE,
                    pages: 1,
                    pool_page: 0,
                }],
            },
            "outside of it",
        ),
    ];
    for (kind, expected) in wrong {
        let reason = reason(|snapshot| snapshot.descriptions[15].kind = kind);
        assert!(reason.contains(expected), "refused because of: {reason}");
    }
}
