//! Memory that a clone of a template must make for itself: shared objects, and attributes that
//! `fork` does not copy or that change what it copies.
//!
//! A shared mapping of a template would be one object for all of its clones, so each instance
//! makes its own objects and fills them from the pool, by copying: they are writable and shared
//! between the processes of the instance, which a private mapping of the pool cannot be.

use std::collections::BTreeMap;

use rouse_restorer::op::Op;
use rouse_snapshot::model::{Backing, DescriptionKind, Mapping, PageRun};

use super::Context;
use super::address_space::mmap;

/// A shared-memory object: anonymous shared memory, or a memfd.
#[derive(Debug, Default)]
struct Object {
    name: Vec<u8>,
    size: u64,
    seals: u32,
    /// (offset in the object, pages, page in the pool)
    saved: Vec<(u64, u64, u64)>,
}

impl Context<'_> {
    /// Shared objects and their mappings, then the attributes of all mappings.
    pub(super) fn private_memory(&mut self, list: &mut Vec<Op>) {
        for (id, object) in self.objects() {
            let cell = self.object_cell(id);
            let name = self.builder.string(&object.name);
            let flags = libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC;
            list.push(Op::syscall(libc::SYS_memfd_create, &[name, u64::from(flags)]).store(cell));
            self.fill(list, cell, object.size, &object.saved);
            if object.seals != 0 {
                let args = [cell, libc::F_ADD_SEALS as u64, u64::from(object.seals)];
                list.push(Op::syscall(libc::SYS_fcntl, &args).indirect(0));
            }
        }
        for mapping in &self.snapshot.mappings {
            if let Backing::SharedMemory { object, offset, .. } = mapping.backing {
                let cell = self.object_cell(object);
                list.push(
                    mmap(&mapping.range, mapping.prot, libc::MAP_SHARED, cell, offset).indirect(4),
                );
            }
            advise(list, mapping);
            self.name_memory(list, mapping);
        }
        self.protection_keys(list);
    }

    /// Names tell a reader of `/proc/self/maps` what memory is for. Kernels may be built without them.
    fn name_memory(&mut self, list: &mut Vec<Op>, mapping: &Mapping) {
        const PR_SET_VMA: u64 = 0x5356_4d41;
        const PR_SET_VMA_ANON_NAME: u64 = 0;
        if mapping.name.is_empty() {
            return;
        }
        let name = self.builder.string(&mapping.name);
        let (start, len) = (mapping.range.start, mapping.range.end - mapping.range.start);
        let args = [PR_SET_VMA, PR_SET_VMA_ANON_NAME, start, len, name];
        list.push(Op::syscall(libc::SYS_prctl, &args).ignore_error());
    }

    /// The cell that holds the descriptor of an object while the instance is being made.
    pub(super) fn object_cell(&mut self, id: u32) -> u64 {
        if let Some(cell) = self.object_cells.get(&id) {
            return *cell;
        }
        let cell = self.builder.cell(0);
        self.object_cells.insert(id, cell);
        cell
    }

    fn objects(&self) -> BTreeMap<u32, Object> {
        let mut objects: BTreeMap<u32, Object> = BTreeMap::new();
        for mapping in &self.snapshot.mappings {
            if let Backing::SharedMemory {
                object,
                size,
                offset,
            } = mapping.backing
            {
                let entry = objects.entry(object).or_default();
                entry.size = entry.size.max(size);
                let in_object = |run: &PageRun| {
                    (
                        run.address - mapping.range.start + offset,
                        run.pages,
                        run.pool_page,
                    )
                };
                entry.saved.extend(mapping.saved.iter().map(in_object));
            }
        }
        for description in &self.snapshot.descriptions {
            if let DescriptionKind::MemFd {
                object,
                name,
                size,
                seals,
                saved,
                ..
            } = &description.kind
            {
                let entry = objects.entry(*object).or_default();
                entry.name.clone_from(name);
                entry.size = entry.size.max(*size);
                entry.seals = *seals;
                entry.saved.extend(
                    saved
                        .iter()
                        .map(|run| (run.address, run.pages, run.pool_page)),
                );
            }
        }
        objects
    }
}

/// Attributes that only `madvise` and `mlock` can set. In a clone they come after the fork:
/// `MADV_DONTFORK` in the template would leave the mapping out of every clone.
fn advise(list: &mut Vec<Op>, mapping: &Mapping) {
    const MADV_GUARD_INSTALL: u64 = 102;
    let flags = &mapping.flags;
    let advice = [
        (flags.dont_fork, libc::MADV_DONTFORK),
        (flags.dont_dump, libc::MADV_DONTDUMP),
        (flags.wipe_on_fork, libc::MADV_WIPEONFORK),
        (flags.huge_page, libc::MADV_HUGEPAGE),
        (flags.no_huge_page, libc::MADV_NOHUGEPAGE),
        (flags.mergeable, libc::MADV_MERGEABLE),
        (flags.random_read, libc::MADV_RANDOM),
        (flags.sequential_read, libc::MADV_SEQUENTIAL),
    ];
    if flags.guard {
        let (start, len) = (mapping.range.start, mapping.range.end - mapping.range.start);
        list.push(Op::syscall(
            libc::SYS_madvise,
            &[start, len, MADV_GUARD_INSTALL],
        ));
    }
    // A droppable mapping has wipe-on-fork and don't-dump from the start, and refuses them.
    if flags.droppable {
        return;
    }
    let (start, len) = (mapping.range.start, mapping.range.end - mapping.range.start);
    for (wanted, advice) in advice {
        if wanted {
            list.push(Op::syscall(libc::SYS_madvise, &[start, len, advice as u64]));
        }
    }
    if flags.locked {
        // Locking is a promise about latency, not about contents: a low RLIMIT_MEMLOCK must not end the restore.
        list.push(Op::syscall(libc::SYS_mlock, &[start, len]).ignore_error());
    }
}
