//! A snapshot as a checkpoint of an interpreter with a few threads would give it, with every kind
//! of backing, open file and entry of `/tmp` in it.

use rouse_snapshot::model::*;

const XSAVE_LEN: u32 = 2696;

/// `threads` threads and `libraries` shared objects of four mappings each.
pub fn sample(threads: i32, libraries: u64) -> ProcessSnapshot {
    let mut pool = Pool { pages: 0 };
    let (files, mappings) = memory(libraries, &mut pool);
    let (descriptions, descriptors) = open_files(&mut pool);
    let tmp = tmp(&mut pool);
    ProcessSnapshot {
        host: HostFingerprint {
            kernel: "6.18.1 #1 SMP PREEMPT_DYNAMIC Debian 6.18.1-1".into(),
            vdso: [0x11; 32],
            cpu: [0x22; 32],
            xsave_len: XSAVE_LEN,
            boot_id: *b"0123456789abcdef",
        },
        process: process(),
        threads: (2..2 + threads).map(thread).collect(),
        mappings,
        files,
        descriptions,
        descriptors,
        tmp,
        pool_pages: pool.pages,
        parents: Vec::new(),
    }
}

struct Pool {
    pages: u64,
}

impl Pool {
    fn take(&mut self, pages: u64) -> u64 {
        self.pages += pages;
        self.pages - pages
    }

    fn run(&mut self, address: u64, pages: u64) -> PageRun {
        PageRun {
            address,
            pages,
            pool_page: self.take(pages),
        }
    }
}

fn process() -> ProcessState {
    ProcessState {
        exe: FileId(0),
        mm: MmLayout {
            fields: MmFields {
                start_code: 0x5555_5555_4000,
                end_code: 0x5555_5555_5000,
                start_data: 0x5555_5555_8000,
                end_data: 0x5555_5555_9000,
                start_brk: 0x5555_5600_0000,
                brk: 0x5555_5602_1000,
                start_stack: 0x7fff_ffff_e000,
                arg_start: 0x7fff_ffff_e100,
                arg_end: 0x7fff_ffff_e120,
                env_start: 0x7fff_ffff_e120,
                env_end: 0x7fff_ffff_e800,
            },
            auxv: (0..320u32).map(|byte| byte as u8).collect(),
        },
        cwd: b"/var/task".to_vec(),
        umask: 0o022,
        signal_actions: vec![
            SignalAction {
                signal: 2,
                handler: 0x5555_5555_4100,
                flags: 0x0400_0000,
                restorer: 0x7f00_0000_1000,
                mask: 0,
            },
            SignalAction {
                signal: 13,
                handler: 1,
                flags: 0,
                restorer: 0,
                mask: 0,
            },
        ],
        pending: vec![vec![7; 128]],
        interval_timers: [
            IntervalTimer {
                value_us: 1_500_000,
                interval_us: 2_000_000,
            },
            IntervalTimer::default(),
            IntervalTimer::default(),
        ],
        posix_timers: vec![PosixTimer {
            id: 0,
            clock: 1,
            notify: 4,
            signal: 34,
            value: 0xdead_beef,
            notify_tid: 2,
            remaining_ns: 12_345,
            interval_ns: 0,
        }],
        rlimits: vec![(7, 1024, 4096)],
        child_subreaper: false,
        thp_disable: true,
        dumpable: 1,
        protection_keys: 1 << 3 | 1 << 5,
        membarrier: 1 << 4,
        monotonic_ns: 123_456_789_012,
        boottime_ns: 223_456_789_012,
    }
}

fn thread(tid: i32) -> Thread {
    let seed = tid as u64;
    Thread {
        tid,
        regs: Registers {
            rax: 202,
            rip: 0x7f00_0000_2000 + seed,
            rsp: 0x7fff_ffff_d000 - seed * 16,
            eflags: 0x246,
            fs_base: 0x7f10_0000_0000 + seed * 4096,
            ..Registers::default()
        },
        xsave: (0..XSAVE_LEN)
            .map(|byte| (byte as u64 * seed) as u8)
            .collect(),
        signal_mask: 1 << 13,
        alt_stack: AltStack {
            sp: 0x7f20_0000_0000,
            flags: 2,
            size: 8192,
        },
        pending: if tid == 2 {
            vec![]
        } else {
            vec![vec![tid as u8; 128]]
        },
        robust_list: (0x7f10_0000_0020, 24),
        rseq: (tid % 2 == 0).then_some(Rseq {
            address: 0x7f10_0000_0060,
            len: 32,
            signature: 0x5305_3053,
            flags: 0,
        }),
        clear_child_tid: 0x7f10_0000_0010,
        name: b"python3".to_vec(),
        sched: Sched {
            policy: 0,
            nice: 5,
            priority: 0,
        },
        parent_death_signal: 9,
        timer_slack_ns: 50_000,
        io_priority: 0x4003,
        affinity: vec![3, 0, 0, 0, 0, 0, 0, 0],
    }
}

fn file(path: &str, inode: u64) -> FileRef {
    FileRef {
        path: path.into(),
        host_path: path.into(),
        device: 0xfd01,
        inode,
        size: 6_800_000,
        mtime_ns: 1_700_000_000_123_456_789,
        ctime_ns: -5,
    }
}

fn memory(libraries: u64, pool: &mut Pool) -> (Vec<FileRef>, Vec<Mapping>) {
    let mut files = vec![
        file("/usr/bin/python3.13", 4711),
        file("/usr/lib/locale/C.utf8/LC_CTYPE", 4712),
    ];
    let mut mappings = Vec::new();
    let mut map = |start: u64, pages: u64, prot: u32, backing: Backing, saved: Vec<PageRun>| {
        let range = start..start + pages * PAGE_SIZE;
        mappings.push(Mapping {
            range,
            prot,
            backing,
            flags: MappingFlags::default(),
            pkey: 0,
            name: Vec::new(),
            saved,
        });
    };
    map(
        0x5555_5555_4000,
        4,
        5,
        Backing::PrivateFile {
            file: FileId(0),
            offset: 0,
        },
        vec![],
    );
    let data = vec![pool.run(0x5555_5555_8000, 2), pool.run(0x5555_5555_b000, 1)];
    map(
        0x5555_5555_8000,
        4,
        3,
        Backing::PrivateFile {
            file: FileId(0),
            offset: 0x4000,
        },
        data,
    );
    map(
        0x5555_5600_0000,
        33,
        3,
        Backing::Anonymous,
        vec![pool.run(0x5555_5600_0000, 33)],
    );
    let object = Backing::SharedMemory {
        object: 0,
        size: 3 * PAGE_SIZE,
        offset: 0,
    };
    map(0x7e00_0000_0000, 3, 3, object, vec![]);
    map(
        0x7e10_0000_0000,
        2,
        1,
        Backing::SharedFile {
            file: FileId(1),
            offset: 0,
        },
        vec![],
    );
    for library in 0..libraries {
        let base = 0x7f00_0000_0000 + library * 0x100_0000;
        let id = FileId(files.len() as u32);
        files.push(file(
            &format!("/usr/lib/python3.13/lib-dynload/library-{library}.so"),
            5000 + library,
        ));
        map(
            base,
            16,
            1,
            Backing::PrivateFile {
                file: id,
                offset: 0,
            },
            vec![],
        );
        map(
            base + 0x10_000,
            32,
            5,
            Backing::PrivateFile {
                file: id,
                offset: 0x10_000,
            },
            vec![],
        );
        map(base + 0x30_000, 1, 0, Backing::Anonymous, vec![]);
        let data = vec![pool.run(base + 0x31_000, 1), pool.run(base + 0x33_000, 2)];
        map(
            base + 0x31_000,
            8,
            3,
            Backing::PrivateFile {
                file: id,
                offset: 0x30_000,
            },
            data,
        );
    }
    map(0x7fff_f7ff_0000, 4, 1, Backing::Vvar { index: 0 }, vec![]);
    map(0x7fff_f7ff_4000, 2, 1, Backing::Vvar { index: 1 }, vec![]);
    map(0x7fff_f7ff_6000, 2, 5, Backing::Vdso, vec![]);
    map(
        0x7fff_fffd_0000,
        47,
        3,
        Backing::Stack,
        vec![pool.run(0x7fff_ffff_d000, 2)],
    );
    mappings[3].flags = MappingFlags {
        dont_dump: true,
        wipe_on_fork: true,
        ..MappingFlags::default()
    };
    mappings[2].flags.huge_page = true;
    mappings[4].pkey = 3;
    mappings[3].name = b"a heap".to_vec();
    (files, mappings)
}

fn open_files(pool: &mut Pool) -> (Vec<Description>, Vec<Descriptor>) {
    let option = || SocketOption {
        level: 6,
        name: 1,
        value: vec![1, 0, 0, 0],
    };
    let pipe = |write_end, content| DescriptionKind::Pipe {
        pipe: 0,
        write_end,
        content,
        capacity: 65536,
    };
    let pair = |second, queue| DescriptionKind::SocketPair {
        pair: 0,
        second,
        kind: 2,
        queue,
        options: vec![option()],
    };
    let path = |path: &str, identity| DescriptionKind::Path {
        path: path.into(),
        offset: 17,
        identity,
    };
    let kinds = vec![
        path("/dev/null", None),
        DescriptionKind::Log,
        DescriptionKind::RuntimeApi {
            options: vec![option()],
        },
        DescriptionKind::ClosedConnection {
            family: 1,
            kind: 1,
            queue: vec![b"farewell".to_vec()],
        },
        path("/usr/bin/python3.13", Some(FileId(0))),
        pipe(false, b"in the pipe".to_vec()),
        pipe(true, vec![]),
        DescriptionKind::EventFd {
            count: 3,
            semaphore: true,
        },
        DescriptionKind::TimerFd {
            clock: 1,
            remaining_ns: 5,
            expires_at_ns: 8,
            cancel_on_set: true,
            interval_ns: 6,
            ticks: 7,
        },
        DescriptionKind::SignalFd { mask: 1 << 14 },
        DescriptionKind::Epoll {
            watches: vec![EpollWatch {
                fd: 7,
                events: 1,
                data: 99,
            }],
        },
        DescriptionKind::Inotify {
            watches: vec![InotifyWatch {
                wd: 1,
                path: b"/tmp/d".to_vec(),
                mask: 2,
            }],
        },
        pair(false, vec![b"one".to_vec(), b"two".to_vec()]),
        pair(true, vec![]),
        DescriptionKind::Socket {
            family: 2,
            kind: 1,
            protocol: 6,
            bound: Some(vec![2, 0, 31, 144, 127, 0, 0, 1]),
            peer: Some(vec![2, 0, 0, 53, 127, 0, 0, 53]),
            listen: Some(128),
            options: vec![],
        },
        DescriptionKind::MemFd {
            object: 0,
            name: b"arena".to_vec(),
            size: 3 * PAGE_SIZE,
            seals: 4,
            offset: 0,
            saved: vec![pool.run(PAGE_SIZE, 2)],
        },
    ];
    let descriptors = (0..kinds.len() as i32 + 1)
        // stdout and stderr share a description
        .map(|fd| Descriptor {
            fd,
            close_on_exec: fd > 2,
            description: DescriptionId(if fd < 2 { fd as u32 } else { fd as u32 - 1 }),
        })
        .collect();
    let descriptions = kinds
        .into_iter()
        .map(|kind| Description { flags: 2, kind })
        .collect();
    (descriptions, descriptors)
}

fn tmp(pool: &mut Pool) -> Vec<TmpEntry> {
    let entry = |path: &str, mode, kind| TmpEntry {
        path: path.into(),
        mode,
        accessed_ns: 1_700_000_000_000_000_001,
        modified_ns: 1_600_000_000_000_000_002,
        kind,
    };
    vec![
        entry("/tmp/d", 0o755, TmpKind::Directory),
        entry(
            "/tmp/d/file",
            0o600,
            TmpKind::File {
                size: 5000,
                saved: vec![PageRun {
                    address: 0,
                    pages: 2,
                    pool_page: pool.take(2),
                }],
            },
        ),
        entry(
            "/tmp/link",
            0o777,
            TmpKind::Symlink {
                target: b"d/file".to_vec(),
            },
        ),
        entry(
            "/tmp/same",
            0o600,
            TmpKind::HardLink {
                target: b"/tmp/d/file".to_vec(),
            },
        ),
        entry("/tmp/fifo", 0o622, TmpKind::Fifo),
        entry("/tmp/socket", 0o755, TmpKind::Socket),
    ]
}
