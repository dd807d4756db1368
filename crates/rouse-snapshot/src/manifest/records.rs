//! The types of a process's model as they lie in sections, field by field.
//!
//! Order and types below *are* the format: the golden file notices any change, and a field that
//! is added to the model does not compile until it is added here.

use super::Binding;
use super::error::WireError;
use super::forms::{choice, index, record};
use super::wire::{Input, Wire};
use crate::model::*;
use crate::page_map::Domain;

type Bytes = Vec<u8>;

/// Contents of the pool section: what the manifest knows of the page map beside it.
#[derive(Debug)]
pub(super) struct PoolSection {
    pub pages: u64,
    pub binding: Option<Binding>,
}

record!(PoolSection {
    pages: u64,
    binding: Option<Binding>
});
record!(Binding {
    page_map: [u8; 32],
    pool: [u8; 32],
    tenant: String,
    domain: Domain
});
choice!(Domain {
    0 => Tenant,
    1 => Templates,
});

record!(HostFingerprint {
    kernel: String,
    vdso: [u8; 32],
    cpu: [u8; 32],
    xsave_len: u32,
    boot_id: [u8; 16],
});

record!(ProcessState {
    exe: FileId,
    mm: MmLayout,
    cwd: Bytes,
    umask: u32,
    signal_actions: Vec<SignalAction>,
    pending: Vec<Bytes>,
    interval_timers: [IntervalTimer; 3],
    posix_timers: Vec<PosixTimer>,
    rlimits: Vec<(u32, u64, u64)>,
    child_subreaper: bool,
    thp_disable: bool,
    dumpable: u32,
    protection_keys: u16,
    membarrier: u32,
    monotonic_ns: u64,
    boottime_ns: u64,
});
record!(MmLayout {
    fields: MmFields,
    auxv: Bytes
});
record!(MmFields {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
});
record!(SignalAction {
    signal: u32,
    handler: u64,
    flags: u64,
    restorer: u64,
    mask: u64
});
record!(IntervalTimer {
    value_us: u64,
    interval_us: u64
});
record!(PosixTimer {
    id: i32,
    clock: i32,
    notify: i32,
    signal: i32,
    value: u64,
    notify_tid: i32,
    remaining_ns: u64,
    interval_ns: u64,
});

record!(Thread {
    tid: i32,
    regs: Registers,
    xsave: Bytes,
    signal_mask: u64,
    alt_stack: AltStack,
    pending: Vec<Bytes>,
    robust_list: (u64, u64),
    rseq: Option<Rseq>,
    clear_child_tid: u64,
    name: Bytes,
    sched: Sched,
    parent_death_signal: i32,
    timer_slack_ns: u64,
    io_priority: u32,
    affinity: Bytes,
});
record!(Registers {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbp: u64,
    rbx: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rip: u64,
    eflags: u64,
    rsp: u64,
    fs_base: u64,
    gs_base: u64,
});
record!(AltStack {
    sp: u64,
    flags: i32,
    size: u64
});
record!(Rseq {
    address: u64,
    len: u32,
    signature: u32,
    flags: u32
});
record!(Sched {
    policy: u32,
    nice: i32,
    priority: u32
});

index!(FileId, DescriptionId);
record!(FileRef {
    path: Bytes,
    host_path: Bytes,
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
});

/// `Range` belongs to the standard library, so that a mapping spells its two ends out.
impl Wire for Mapping {
    const NAME: &'static str = "Mapping";
    const MIN_LEN: usize = 2 * u64::MIN_LEN
        + 2 * u32::MIN_LEN
        + Backing::MIN_LEN
        + MappingFlags::MIN_LEN
        + Bytes::MIN_LEN
        + <Vec<PageRun>>::MIN_LEN;

    fn put(&self, out: &mut Vec<u8>) {
        let Self {
            range,
            prot,
            backing,
            flags,
            pkey,
            name,
            saved,
        } = self;
        range.start.put(out);
        range.end.put(out);
        prot.put(out);
        backing.put(out);
        flags.put(out);
        pkey.put(out);
        name.put(out);
        saved.put(out);
    }

    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok(Self {
            range: u64::take(input)?..u64::take(input)?,
            prot: u32::take(input)?,
            backing: Backing::take(input)?,
            flags: MappingFlags::take(input)?,
            pkey: u32::take(input)?,
            name: Bytes::take(input)?,
            saved: Vec::take(input)?,
        })
    }
}
choice!(Backing {
    0 => Anonymous,
    1 => Stack,
    2 => PrivateFile { file: FileId, offset: u64 },
    3 => SharedFile { file: FileId, offset: u64 },
    4 => SharedMemory { object: u32, size: u64, offset: u64 },
    5 => Vdso,
    6 => Vvar { index: u32 },
});
record!(MappingFlags {
    no_reserve: bool,
    dont_fork: bool,
    dont_dump: bool,
    wipe_on_fork: bool,
    huge_page: bool,
    no_huge_page: bool,
    mergeable: bool,
    locked: bool,
    random_read: bool,
    sequential_read: bool,
    droppable: bool,
    guard: bool,
});
record!(ParentPool {
    pool: [u8; 32],
    pages: u64
});
record!(PageRun {
    address: u64,
    pages: u64,
    pool_page: u64
});

record!(Descriptor {
    fd: i32,
    close_on_exec: bool,
    description: DescriptionId
});
record!(Description {
    flags: u32,
    kind: DescriptionKind
});
choice!(DescriptionKind {
    0 => Log,
    1 => RuntimeApi { options: Vec<SocketOption> },
    2 => ClosedConnection { family: i32, kind: i32, queue: Vec<Bytes> },
    3 => Path { path: Bytes, offset: u64, identity: Option<FileId> },
    4 => Pipe { pipe: u32, write_end: bool, content: Bytes, capacity: u32 },
    5 => EventFd { count: u64, semaphore: bool },
    6 => TimerFd {
        clock: i32,
        remaining_ns: u64,
        expires_at_ns: u64,
        cancel_on_set: bool,
        interval_ns: u64,
        ticks: u64,
    },
    7 => SignalFd { mask: u64 },
    8 => Epoll { watches: Vec<EpollWatch> },
    9 => Inotify { watches: Vec<InotifyWatch> },
    10 => SocketPair {
        pair: u32,
        second: bool,
        kind: i32,
        queue: Vec<Bytes>,
        options: Vec<SocketOption>,
    },
    11 => Socket {
        family: i32,
        kind: i32,
        protocol: i32,
        bound: Option<Bytes>,
        peer: Option<Bytes>,
        listen: Option<i32>,
        options: Vec<SocketOption>,
    },
    12 => MemFd {
        object: u32,
        name: Bytes,
        size: u64,
        seals: u32,
        offset: u64,
        saved: Vec<PageRun>,
    },
});
record!(SocketOption {
    level: i32,
    name: i32,
    value: Bytes
});
record!(EpollWatch {
    fd: i32,
    events: u32,
    data: u64
});
record!(InotifyWatch {
    wd: i32,
    path: Bytes,
    mask: u32
});

record!(TmpEntry {
    path: Bytes,
    mode: u32,
    accessed_ns: i128,
    modified_ns: i128,
    kind: TmpKind
});
choice!(TmpKind {
    0 => Directory,
    1 => Symlink { target: Bytes },
    2 => File { size: u64, saved: Vec<PageRun> },
    3 => HardLink { target: Bytes },
    4 => Fifo,
    5 => Socket,
});
