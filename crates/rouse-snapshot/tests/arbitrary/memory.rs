//! Arbitrary mappings.

use proptest::collection::vec;
use proptest::prelude::*;
use rouse_snapshot::model::*;

use super::{POOL_PAGES, file_id};

/// Runs within `pages` pages from `start`: each is (pages skipped, length, pool page).
pub fn runs(start: u64, pages: u64, pieces: &[(u64, u64, u64)]) -> Vec<PageRun> {
    let mut at = 0;
    let mut runs = Vec::new();
    for (skip, pages_in_run, pool_page) in pieces {
        if at + skip + pages_in_run > pages {
            break;
        }
        let address = start + (at + skip) * PAGE_SIZE;
        runs.push(PageRun {
            address,
            pages: *pages_in_run,
            pool_page: *pool_page,
        });
        at += skip + pages_in_run;
    }
    runs
}

pub fn pieces() -> impl Strategy<Value = Vec<(u64, u64, u64)>> {
    vec((0u64..4, 1u64..8, 0..POOL_PAGES - 8), 0..4)
}

pub fn mappings() -> impl Strategy<Value = Vec<Mapping>> {
    let offset = || (0u64..1 << 30).prop_map(|page| page * PAGE_SIZE);
    let backing = prop_oneof![
        Just(Backing::Anonymous),
        Just(Backing::Stack),
        (file_id(), offset()).prop_map(|(file, offset)| Backing::PrivateFile { file, offset }),
        (file_id(), offset()).prop_map(|(file, offset)| Backing::SharedFile { file, offset }),
        // The size depends on the object alone, so that all who show it agree.
        (0u32..3, offset()).prop_map(|(object, offset)| Backing::SharedMemory {
            object,
            size: object_size(object),
            offset
        }),
        Just(Backing::Vdso),
        (0u32..2).prop_map(|index| Backing::Vvar { index }),
    ];
    let area = (0u64..100, 1u64..40, backing, 0u32..8, 0u32..16);
    vec((area, any::<[bool; 12]>(), pieces()), 0..8).prop_map(|areas| {
        let mut at = 0x1_0000;
        let mut mappings = Vec::new();
        for ((gap, pages, backing, prot, pkey), bits, pieces) in areas {
            let start = at + gap * PAGE_SIZE;
            at = start + pages * PAGE_SIZE;
            let flags = flags(bits);
            let unsaved = matches!(
                backing,
                Backing::SharedFile { .. } | Backing::Vdso | Backing::Vvar { .. }
            );
            let empty = unsaved || flags.wipe_on_fork || flags.droppable || flags.guard;
            let named = matches!(backing, Backing::Anonymous | Backing::SharedMemory { .. });
            let name = if named && pkey % 2 == 1 {
                format!("{pages} pages").into_bytes()
            } else {
                vec![]
            };
            let saved = if empty {
                vec![]
            } else {
                runs(start, pages, &pieces)
            };
            mappings.push(Mapping {
                range: start..at,
                prot,
                backing,
                flags,
                pkey,
                name,
                saved,
            });
        }
        mappings
    })
}

fn flags(bits: [bool; 12]) -> MappingFlags {
    let [
        no_reserve,
        dont_fork,
        dont_dump,
        wipe_on_fork,
        huge_page,
        no_huge_page,
        mergeable,
        locked,
        random_read,
        sequential_read,
        droppable,
        guard,
    ] = bits;
    MappingFlags {
        no_reserve,
        dont_fork,
        dont_dump,
        wipe_on_fork,
        huge_page,
        no_huge_page,
        mergeable,
        locked,
        random_read,
        sequential_read,
        droppable,
        guard,
    }
}

pub fn object_size(object: u32) -> u64 {
    u64::from(object) * 10_000
}
