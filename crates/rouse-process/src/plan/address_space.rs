//! Replaces the address space: everything away but the program, then mapping by mapping.

use std::io::{BufRead, BufReader};
use std::ops::Range;

use rouse_restorer::op::Op;
use rouse_sandbox::seccomp::memory_calls::PASS;
use rouse_snapshot::model::{Backing, Mapping, PAGE_SIZE, PageRun, ProcessSnapshot};

use super::copied::{Copies, Layout, copied, without};
use super::{Context, PlanError, waiting_room};

/// The executable stays what it is: only who may restore checkpoints may set it.
pub(super) const KEEP_EXE: u64 = u32::MAX as u64;

/// Where the kernel's own mappings are, in a process that is about to run a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialMappings {
    pub(super) vdso: Range<u64>,
    pub(super) vvar: Vec<Range<u64>>,
}

impl SpecialMappings {
    /// Those of this process, from `/proc/self/maps`. Its forks have them at the same places.
    pub fn of_this_process() -> Result<Self, PlanError> {
        let file = std::fs::File::open("/proc/self/maps").map_err(PlanError::OwnMappings)?;
        let mut special = Self {
            vdso: 0..0,
            vvar: Vec::new(),
        };
        for line in BufReader::new(file).lines() {
            let line = line.map_err(PlanError::OwnMappings)?;
            let Some((start, end)) = line
                .split_once(' ')
                .and_then(|(range, _)| range.split_once('-'))
            else {
                continue;
            };
            let (Ok(start), Ok(end)) =
                (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
            else {
                continue;
            };
            if line.ends_with("[vdso]") {
                special.vdso = start..end;
            } else if line.contains("[vvar") {
                special.vvar.push(start..end);
            }
        }
        Ok(special)
    }
}

impl Context<'_> {
    /// The whole address space of a process that has nothing but the waiting room, the parked
    /// mappings of the kernel and this program. Constraints:
    /// - the room goes first: a mapping of the snapshot may lie there;
    /// - the kernel's mappings cannot be made, only moved, and their place is known only now;
    /// - `PR_SET_MM_MAP` last: it may set `exe` only when no mapping of the old one is left.
    pub(super) fn address_space(&mut self, list: &mut Vec<Op>) -> Result<(), PlanError> {
        let moves = self.special_moves()?;
        let room = [
            waiting_room::BASE,
            waiting_room::PARKING - waiting_room::BASE,
        ];
        list.push(Op::syscall(libc::SYS_munmap, &room));
        for (from, to) in &moves {
            list.push(mremap(from, *to));
        }
        let snapshot = self.snapshot;
        for mapping in &snapshot.mappings {
            self.map(list, mapping);
        }
        let exe = self.file_fd(snapshot.process.exe.0);
        self.memory_layout(list, exe);
        if snapshot.process.thp_disable {
            self.disable_huge_pages(list, true);
        }
        Ok(())
    }

    /// Copies, in batches, the pages that an invocation is known to write. Only advice: a page
    /// that cannot be had now is had by the fault.
    pub(super) fn copy_written(&mut self, list: &mut Vec<Op>) {
        let copied = match self.copies {
            // What the host has copied is not the clone's own yet.
            Copies::Host => Vec::new(),
            by => copied(self.snapshot, self.working_set, by, &self.copying),
        };
        self.read_copied(list, &copied);
        let rest = without(&self.working_set.written, &copied);
        populate(list, &rest, libc::MADV_POPULATE_WRITE);
    }

    /// Reads pages from the pool to where they belong. Those that lie side by side in it come with one read.
    pub(super) fn read_copied(&mut self, list: &mut Vec<Op>, copied: &[PageRun]) {
        let follows = |one: &PageRun, next: &PageRun| one.pool_page + one.pages == next.pool_page;
        for part in copied.chunk_by(follows) {
            for part in part.chunks(libc::UIO_MAXIOV as usize) {
                let len = |run: &PageRun| run.pages * PAGE_SIZE;
                let vectors: Vec<u64> = (part.iter())
                    .flat_map(|run| [run.address, len(run)])
                    .collect();
                let vectors = self.builder.words(&vectors);
                let offset = part[0].pool_page * PAGE_SIZE;
                let args = [self.fds.pool(), vectors, part.len() as u64, offset, 0];
                let bytes = part.iter().map(len).sum();
                list.push(Op::syscall(libc::SYS_preadv, &args).exact(bytes));
            }
        }
    }

    /// Maps, in batches, the pages that an invocation is known to read. Faults save more than this costs only where it
    /// is done ahead of the request.
    pub(super) fn map_read(&mut self, list: &mut Vec<Op>) {
        populate(list, &self.working_set.read, libc::MADV_POPULATE_READ);
    }

    /// In a template: makes the page-table entries of what is only read, for clones to copy: that
    /// costs a clone some 20 ns a page, where the fault would cost 1 to 2 us.
    ///
    /// The kernel copies entries only of mappings that have pages of their own, so one page of
    /// each is written. Entries of other pages that clones will write are taken out again (the
    /// kernel maps neighbours of what is read): one that is there makes a clone's copy dearer
    /// (2.4 us a page) than one that is not (1.4 us).
    pub(super) fn populate_template(&mut self, list: &mut Vec<Op>) {
        let set = self.working_set;
        let copied = copied(self.snapshot, set, self.copies, &self.copying);
        self.read_copied(list, &copied);
        populate(list, &set.read, libc::MADV_POPULATE_READ);
        // Not of what was just copied: the template would show up.
        populate(list, &without(&set.written, &copied), libc::MADV_DONTNEED);
        for mapping in &self.snapshot.mappings {
            let inside =
                |r: &&Range<u64>| r.start >= mapping.range.start && r.end <= mapping.range.end;
            if let Some(Range { start, .. }) = set.written.iter().find(inside) {
                let args = [*start, PAGE_SIZE, libc::MADV_POPULATE_WRITE as u64];
                list.push(Op::syscall(libc::SYS_madvise, &args).ignore_error());
            }
        }
    }

    /// (parking place, place in the snapshot) of each kernel mapping.
    fn special_moves(&self) -> Result<Vec<(Range<u64>, u64)>, PlanError> {
        let special = &self.environment.special;
        let mut moves = Vec::new();
        for mapping in &self.snapshot.mappings {
            let (name, from) = match mapping.backing {
                Backing::Vdso => ("[vdso]", special.vdso.clone()),
                Backing::Vvar { index } => (
                    "[vvar]",
                    special.vvar.get(index as usize).cloned().unwrap_or(0..0),
                ),
                _ => continue,
            };
            let (now, then) = (
                from.end - from.start,
                mapping.range.end - mapping.range.start,
            );
            if now != then {
                return Err(PlanError::SpecialMapping { name, now, then });
            }
            moves.push((from, mapping.range.start));
        }
        Ok(moves)
    }

    pub(super) fn map(&mut self, list: &mut Vec<Op>, mapping: &Mapping) {
        // The kernel would choose a protection key for it here and now.
        let closed = self.is_executable_only(mapping).then(|| Mapping {
            prot: libc::PROT_NONE as u32,
            ..mapping.clone()
        });
        let mapping = closed.as_ref().unwrap_or(mapping);
        match mapping.backing {
            Backing::Vdso | Backing::Vvar { .. } => {}
            // Shared memory must not be shared between clones of a template: see `shared_memory`.
            Backing::SharedMemory { .. } => {}
            Backing::Stack => self.map_stack(list, mapping),
            Backing::Anonymous | Backing::PrivateFile { .. } | Backing::SharedFile { .. } => {
                let layout = Layout::copying(mapping, self.working_set, self.copies, &self.copying);
                let mut at = mapping.range.start;
                for run in &layout.mapped {
                    self.map_backing(list, mapping, at..run.address);
                    self.map_pool(list, mapping, run);
                    at = run.address + run.pages * PAGE_SIZE;
                }
                self.map_backing(list, mapping, at..mapping.range.end);
            }
        }
    }

    /// A stack grows downwards, which only anonymous memory can: its pages are copied. Only those
    /// that hold something: what lies below the stack pointer (and the red zone under it) is dead,
    /// however deep the program once was.
    fn map_stack(&mut self, list: &mut Vec<Op>, mapping: &Mapping) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_STACK;
        list.push(mmap(&mapping.range, mapping.prot, flags, u64::MAX, 0));
        for run in live_stack(self.snapshot, mapping) {
            let (offset, len) = (run.pool_page * PAGE_SIZE, run.pages * PAGE_SIZE);
            let args = [self.fds.pool(), run.address, len, offset];
            list.push(Op::syscall(libc::SYS_pread64, &args).exact(len));
        }
    }

    /// The descriptor of the pool in which a run lies.
    pub(super) fn pool_of(&self, run: &PageRun) -> u64 {
        match run.pool() {
            0 => self.fds.pool(),
            // Behind the files.
            parent => self.fds.file(self.files.len() + parent - 1),
        }
    }

    fn map_pool(&mut self, list: &mut Vec<Op>, mapping: &Mapping, run: &PageRun) {
        let range = run.address..run.address + run.pages * PAGE_SIZE;
        let mut flags = libc::MAP_PRIVATE;
        if mapping.flags.no_reserve {
            flags |= libc::MAP_NORESERVE;
        }
        let pool = self.pool_of(run);
        let offset = run.page_in_pool() * PAGE_SIZE;
        list.push(mmap(&range, mapping.prot, flags, pool, offset));
    }

    fn map_backing(&mut self, list: &mut Vec<Op>, mapping: &Mapping, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        let skipped = part.start - mapping.range.start;
        let op = match mapping.backing {
            Backing::PrivateFile { file, offset } => mmap(
                &part,
                mapping.prot,
                libc::MAP_PRIVATE,
                self.file_fd(file.0),
                offset + skipped,
            ),
            Backing::SharedFile { file, offset } => mmap(
                &part,
                mapping.prot,
                libc::MAP_SHARED,
                self.file_fd(file.0),
                offset + skipped,
            ),
            _ => {
                let mut flags = libc::MAP_ANONYMOUS;
                flags |= if mapping.flags.droppable {
                    libc::MAP_DROPPABLE
                } else {
                    libc::MAP_PRIVATE
                };
                if mapping.flags.no_reserve {
                    flags |= libc::MAP_NORESERVE;
                }
                mmap(&part, mapping.prot, flags, u64::MAX, 0)
            }
        };
        list.push(op);
    }

    pub(super) fn file_fd(&self, id: u32) -> u64 {
        let index = self.files.binary_search(&(id as usize));
        self.fds
            .file(index.unwrap_or_else(|_| unreachable!("every mapped file is in the list")))
    }

    /// `struct prctl_mm_map`: what `/proc/self/{stat,cmdline,environ,auxv,exe}` and `brk` go by.
    /// `exe` is a descriptor of the executable, or [`KEEP_EXE`].
    pub(super) fn memory_layout(&mut self, list: &mut Vec<Op>, exe: u64) {
        let process = &self.snapshot.process;
        let auxv = self.builder.bytes(&process.mm.auxv, 8);
        let f = &process.mm.fields;
        let map = self.builder.words(&[
            f.start_code,
            f.end_code,
            f.start_data,
            f.end_data,
            f.start_brk,
            f.brk,
            f.start_stack,
            f.arg_start,
            f.arg_end,
            f.env_start,
            f.env_end,
            auxv,
            process.mm.auxv.len() as u64 | exe << 32,
        ]);
        const MM_MAP_SIZE: u64 = 104;
        let args = [
            libc::PR_SET_MM as u64,
            libc::PR_SET_MM_MAP as u64,
            map,
            MM_MAP_SIZE,
            0,
        ];
        list.push(Op::syscall(libc::SYS_prctl, &args));
    }

    /// `PR_SET_THP_DISABLE`.
    pub(super) fn disable_huge_pages(&self, list: &mut Vec<Op>, disable: bool) {
        let args = [libc::PR_SET_THP_DISABLE as u64, u64::from(disable), 0, 0, 0];
        list.push(Op::syscall(libc::SYS_prctl, &args));
    }
}

/// The pages of a stack that hold something, as parts of its saved runs.
pub(super) fn live_stack(snapshot: &ProcessSnapshot, mapping: &Mapping) -> Vec<PageRun> {
    const RED_ZONE: u64 = 128;
    let pointer = snapshot.threads[0].regs.rsp;
    let live = match mapping.range.contains(&pointer) {
        true => pointer.saturating_sub(RED_ZONE) / PAGE_SIZE * PAGE_SIZE,
        // The thread is on another stack: nothing is known about this one.
        false => mapping.range.start,
    };
    let part = |run: &PageRun| {
        let end = run.address + run.pages * PAGE_SIZE;
        let start = run.address.max(live);
        (start < end).then(|| PageRun {
            address: start,
            pages: (end - start) / PAGE_SIZE,
            pool_page: run.pool_page + (start - run.address) / PAGE_SIZE,
        })
    };
    mapping.saved.iter().filter_map(part).collect()
}

pub(super) fn mmap(range: &Range<u64>, prot: u32, flags: i32, fd: u64, offset: u64) -> Op {
    let flags = (flags | libc::MAP_FIXED) as u64;
    Op::syscall(
        libc::SYS_mmap,
        &[
            range.start,
            range.end - range.start,
            u64::from(prot),
            flags,
            fd,
            offset,
        ],
    )
}

pub(super) fn mremap(from: &Range<u64>, to: u64) -> Op {
    let len = from.end - from.start;
    let flags = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
    Op::syscall(libc::SYS_mremap, &[from.start, len, len, flags, to, PASS])
}

pub(super) fn populate(list: &mut Vec<Op>, ranges: &[Range<u64>], advice: i32) {
    for range in ranges {
        // A plain `MADV_DONTNEED`, so that the pool shows up.
        let args = [
            range.start,
            range.end - range.start,
            advice as u64,
            0,
            0,
            PASS,
        ];
        list.push(Op::syscall(libc::SYS_madvise, &args).ignore_error());
    }
}
