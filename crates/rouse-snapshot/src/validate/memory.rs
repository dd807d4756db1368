//! Mappings, and the shared-memory objects behind some of them.

use std::collections::BTreeMap;

use super::{
    ADDRESS_END, Check, Invalid, check_file_id, check_runs, ensure, is_page_aligned, pools,
};
use crate::model::{Backing, DescriptionKind, Mapping, PAGE_SIZE, ProcessSnapshot};

const PROT_BITS: u32 = 0b111;
/// The architecture has 16 protection keys.
const PKEYS: u32 = 16;
/// `[vvar]` and `[vvar_vclock]`.
const VVAR_AREAS: u32 = 2;

pub(super) fn check_mappings(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    let mut free_from = 0;
    for mapping in &snapshot.mappings {
        check_mapping(snapshot, mapping, free_from).map_err(|why| Invalid::Mapping {
            start: mapping.range.start,
            end: mapping.range.end,
            why,
        })?;
        free_from = mapping.range.end;
    }
    Ok(())
}

fn check_mapping(snapshot: &ProcessSnapshot, mapping: &Mapping, free_from: u64) -> Check {
    let (start, end) = (mapping.range.start, mapping.range.end);
    ensure(start < end, "it is empty")?;
    ensure(
        is_page_aligned(start) && is_page_aligned(end),
        "it is not page aligned",
    )?;
    ensure(end <= ADDRESS_END, "it reaches beyond the user addresses")?;
    ensure(
        start >= free_from,
        "it is not sorted, or overlaps the one before",
    )?;
    ensure(
        mapping.prot & !PROT_BITS == 0,
        "its protection has unknown bits",
    )?;
    ensure(mapping.pkey < PKEYS, "there is no such protection key")?;
    check_backing(snapshot, &mapping.backing, end - start)?;
    // Only what is private is mapped from a pool; the rest is filled from the snapshot's own.
    let pools = match mapping.backing {
        Backing::Anonymous | Backing::PrivateFile { .. } => {
            pools(snapshot.pool_pages, &snapshot.parents)
        }
        _ => vec![snapshot.pool_pages],
    };
    check_runs(&mapping.saved, start, end, &pools)?;

    let may_have_saved = match mapping.backing {
        Backing::Anonymous | Backing::Stack => true,
        Backing::PrivateFile { .. } | Backing::SharedMemory { .. } => true,
        // The file itself, or the kernel's own pages: nothing of them can have been saved.
        Backing::SharedFile { .. } | Backing::Vdso | Backing::Vvar { .. } => false,
    };
    ensure(
        may_have_saved || mapping.saved.is_empty(),
        "its kind has no saved pages",
    )?;
    ensure(
        mapping.saved.is_empty() || !mapping.flags.guard,
        "guard pages have saved pages",
    )?;
    check_name(mapping)?;
    // What a program keeps there (keys, generator states) must differ in each instance.
    ensure(
        mapping.saved.is_empty() || !(mapping.flags.wipe_on_fork || mapping.flags.droppable),
        "memory that must come back zeroed has saved pages",
    )
}

/// What the kernel demands of a name.
fn check_name(mapping: &Mapping) -> Check {
    /// `ANON_VMA_NAME_MAX_LEN` without the NUL.
    const LONGEST: usize = 79;
    let may_have_one = matches!(
        mapping.backing,
        Backing::Anonymous | Backing::Stack | Backing::SharedMemory { .. }
    );
    let is_allowed = |byte: &u8| (0x20..0x7f).contains(byte) && !b"\\`$[]".contains(byte);
    ensure(
        mapping.name.is_empty()
            || may_have_one && mapping.name.len() <= LONGEST && mapping.name.iter().all(is_allowed),
        "it cannot have that name",
    )
}

fn check_backing(snapshot: &ProcessSnapshot, backing: &Backing, len: u64) -> Check {
    let check_offset = |offset: u64| {
        ensure(
            is_page_aligned(offset),
            "its file offset is not page aligned",
        )?;
        // The kernel counts in signed 64-bit bytes.
        let end = offset.checked_add(len);
        ensure(
            end.is_some_and(|end| end <= i64::MAX as u64),
            "its file offset is too large",
        )
    };
    match *backing {
        Backing::Anonymous | Backing::Stack | Backing::Vdso => Ok(()),
        Backing::PrivateFile { file, offset } | Backing::SharedFile { file, offset } => {
            check_file_id(snapshot, file)?;
            check_offset(offset)
        }
        Backing::SharedMemory { offset, .. } => check_offset(offset),
        Backing::Vvar { index } => ensure(index < VVAR_AREAS, "there is no such vvar area"),
    }
}

/// Everything that shows the same object must agree on how many pages it has.
pub(super) fn check_objects(snapshot: &ProcessSnapshot) -> Result<(), Invalid> {
    let mut pages_of = BTreeMap::new();
    let mut agrees = |object: u32, size: u64| {
        let pages = size.div_ceil(PAGE_SIZE);
        let known = *pages_of.entry(object).or_insert(pages);
        ensure(size <= i64::MAX as u64, "its shared memory is too large")?;
        ensure(
            known == pages,
            "its shared memory has another size elsewhere",
        )
    };
    for (index, description) in snapshot.descriptions.iter().enumerate() {
        if let DescriptionKind::MemFd { object, size, .. } = description.kind {
            agrees(object, size).map_err(|why| Invalid::Description { index, why })?;
        }
    }
    for mapping in &snapshot.mappings {
        if let Backing::SharedMemory { object, size, .. } = mapping.backing {
            agrees(object, size).map_err(|why| Invalid::Mapping {
                start: mapping.range.start,
                end: mapping.range.end,
                why,
            })?;
        }
    }
    Ok(())
}
