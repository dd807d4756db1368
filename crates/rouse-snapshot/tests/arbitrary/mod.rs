//! Arbitrary snapshots that are valid.

mod memory;
mod open_files;
mod process;

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use rouse_snapshot::model::*;

use memory::mappings;
use open_files::open_files;
use process::{process, threads};

const FILES: u32 = 5;
const POOL_PAGES: u64 = 1 << 20;

pub fn snapshot() -> impl Strategy<Value = ProcessSnapshot> {
    let host = (
        any::<[u8; 32]>(),
        any::<[u8; 32]>(),
        0u32..700,
        any::<[u8; 16]>(),
        "\\PC{1,40}",
    );
    let host = host.prop_map(|(vdso, cpu, xsave_len, boot_id, kernel)| HostFingerprint {
        kernel,
        vdso,
        cpu,
        xsave_len,
        boot_id,
    });
    host.prop_flat_map(|host| {
        let threads = threads(host.xsave_len as usize);
        let rest = (mappings(), vec(file(), FILES as usize), open_files(), tmp());
        (Just(host), process(), threads, rest)
    })
    .prop_map(
        |(host, mut process, threads, (mappings, files, open_files, tmp))| {
            for timer in &mut process.posix_timers {
                timer.notify_tid = threads[0].tid;
            }
            let (descriptions, descriptors) = open_files;
            ProcessSnapshot {
                host,
                process,
                threads,
                mappings,
                files,
                descriptions,
                descriptors,
                tmp,
                pool_pages: POOL_PAGES,
                parents: Vec::new(),
            }
        },
    )
    .prop_flat_map(|snapshot| (Just(snapshot), parents()))
    .prop_map(|(mut snapshot, parents)| {
        let private = snapshot.mappings.iter_mut().filter(|mapping| {
            matches!(
                mapping.backing,
                Backing::Anonymous | Backing::PrivateFile { .. }
            )
        });
        // Runs lie in the pools in turn.
        for (turn, run) in private.flat_map(|mapping| &mut mapping.saved).enumerate() {
            let pool = turn % (parents.len() + 1);
            run.pool_page = pool_page(pool as u32, run.pool_page);
        }
        snapshot.parents = parents;
        snapshot
    })
}

fn parents() -> impl Strategy<Value = Vec<ParentPool>> {
    btree_set(any::<[u8; 32]>(), 0..4).prop_map(|digests| {
        let parent = |pool| ParentPool {
            pool,
            pages: POOL_PAGES,
        };
        digests.into_iter().map(parent).collect()
    })
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..max)
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(1u8.., 0..30).prop_map(|mut path| {
        path.insert(0, b'/');
        path
    })
}

fn file_id() -> impl Strategy<Value = FileId> {
    (0..FILES).prop_map(FileId)
}

fn large() -> impl Strategy<Value = u64> {
    0..=i64::MAX as u64
}

fn file() -> impl Strategy<Value = FileRef> {
    (path(), path(), any::<(u64, u64, i128, i128)>(), large()).prop_map(
        |(path, host_path, (device, inode, mtime_ns, ctime_ns), size)| FileRef {
            path,
            host_path,
            device,
            inode,
            size,
            mtime_ns,
            ctime_ns,
        },
    )
}

/// A directory in `/tmp`, with things in it and beside it.
fn tmp() -> impl Strategy<Value = Vec<TmpEntry>> {
    let kind = prop_oneof![
        Just(TmpKind::Directory),
        vec(1u8.., 1..20).prop_map(|target| TmpKind::Symlink { target }),
        (1u64..100_000, 0..POOL_PAGES - 100).prop_map(|(size, pool_page)| TmpKind::File {
            size,
            saved: std::vec::Vec::from([PageRun {
                address: 0,
                pages: size.div_ceil(4096),
                pool_page,
            }]),
        }),
        Just(TmpKind::Fifo),
        Just(TmpKind::Socket),
    ];
    let names = btree_set("[a-z]{1,8}", 0..5);
    (names, vec((0u32..=0o7777, kind, any::<bool>()), 5)).prop_map(|(names, kinds)| {
        let path = |path: &str| path.as_bytes().to_vec();
        let mut entries = vec![TmpEntry {
            path: path("/tmp/D"),
            mode: 0o700,
            accessed_ns: -1,
            modified_ns: 1,
            kind: TmpKind::Directory,
        }];
        entries.extend(
            names
                .into_iter()
                .zip(kinds)
                .map(|(name, (mode, kind, inside))| {
                    let at = if inside {
                        format!("/tmp/D/{name}")
                    } else {
                        format!("/tmp/{name}")
                    };
                    TmpEntry {
                        path: path(&at),
                        mode,
                        accessed_ns: 2,
                        modified_ns: 3,
                        kind,
                    }
                }),
        );
        entries
    })
}
