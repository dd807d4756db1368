//! Collecting and checking: nothing that is needed goes, all that is damaged is named.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_sample;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rouse_pool::codec::{Single, train};
use rouse_pool::packs::read_index;
use rouse_pool::snapshot_store::{GcOptions, SnapshotStore, WriteOptions};
use rouse_snapshot::page_map::{CodecId, Domain};
use store_sample::*;

/// Everything is worth rewriting.
const EAGER: GcOptions = GcOptions {
    min_unused_part: 0.0,
    min_unused_bytes: 1,
};

fn write(store: &SnapshotStore, name: &str, seeds: impl IntoIterator<Item = u64>) {
    let (snapshot, pool) = of_pages(seeds);
    store
        .write(name, &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
}

fn assert_holds(store: &SnapshotStore, name: &str, seeds: impl IntoIterator<Item = u64>) {
    let loaded = store.open_snapshot(name).unwrap().load().unwrap();
    assert!(contents(&loaded) == contents(&pool(seeds)), "{name}");
}

/// Every file of a store but its lock.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut places = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => places.push(path),
                false => files.push(path),
            }
        }
    }
    files.retain(|path| !path.ends_with("store.lock"));
    files.sort();
    files
}

/// Flips a byte, looks, and flips it back.
fn with_flipped<T>(path: &Path, at: u64, look: impl FnOnce() -> T) -> T {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
    let result = look();
    file.write_all_at(&byte, at).unwrap();
    result
}

#[test]
fn what_others_refer_to_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    write(&store, "one", 1000..1400);
    write(&store, "two", (1000..1200).chain(3000..3100));
    store.remove("one").unwrap();
    // Half of the first pack is needed still.
    assert_eq!(store.gc(GcOptions::default()).unwrap().removed_packs, 0);
    assert_holds(&store, "two", (1000..1200).chain(3000..3100));

    let before = store.open_snapshot("two").unwrap();
    let report = store.gc(EAGER).unwrap();
    assert_eq!(report.rewritten_packs, 1, "{report}");
    assert!(report.freed_bytes > 0);
    assert_holds(&store, "two", (1000..1200).chain(3000..3100));
    let after = store.open_snapshot("two").unwrap();
    assert_eq!(before.binding.pool, after.binding.pool);
    assert!(store.fsck().unwrap().orphans.is_empty());
    // Nothing more to do.
    let again = store.gc(EAGER).unwrap();
    assert_eq!(
        (again.rewritten_packs, again.freed_bytes),
        (0, 0),
        "{again}"
    );
    // The page map that was replaced did not stay, and who had it open goes on.
    assert_eq!(
        fs::read_dir(store.path_of("two").unwrap()).unwrap().count(),
        2
    );
    before.load().unwrap();

    store.remove("two").unwrap();
    assert_eq!(store.gc(GcOptions::default()).unwrap().removed_packs, 2);
    assert!(store.packs().list().unwrap().is_empty());
}

#[test]
fn a_working_set_stays_side_by_side_when_its_pack_is_written_anew() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1400);
    let hot = [100..200];
    let options = WriteOptions {
        hot: &hot,
        domain: Domain::Templates,
        ..WriteOptions::new("")
    };
    store.write("template", &snapshot, &pool, &options).unwrap();
    // The child's own pages make a pack of their own, with a working set.
    let (snapshot, pool) = of_pages((1000..1300).chain(5000..5200));
    let hot = [320..400, 50..60];
    let options = WriteOptions {
        hot: &hot,
        ..WriteOptions::new("default")
    };
    store.write("child", &snapshot, &pool, &options).unwrap();
    let (own, extent) = store
        .open_snapshot("child")
        .unwrap()
        .map
        .hot_extent()
        .unwrap();
    store.remove("template").unwrap();
    assert_eq!(store.gc(EAGER).unwrap().rewritten_packs, 1);
    let child = store.open_snapshot("child").unwrap();
    assert_eq!(child.map.hot_extent(), Some((own, extent)));
    assert!(contents(&child.load().unwrap()) == contents(&pool));
}

#[test]
fn leftovers_of_killed_writers_go() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    write(&store, "f/1", 1000..1200);
    let at = |name: &str| root.path().join(name);
    fs::create_dir_all(at("snapshots/f/.tmp-abc/deep")).unwrap();
    fs::create_dir_all(at("snapshots/f/1/.tmp-abc")).unwrap();
    fs::create_dir_all(at("snapshots/.tmp-removed")).unwrap();
    fs::write(at("packs/.tmp-half"), "half a pack").unwrap();
    let map = files(root.path())
        .into_iter()
        .find(|path| path.to_str().unwrap().contains("pages-"))
        .unwrap();
    fs::copy(&map, map.with_file_name("pages-0123456789abcdef")).unwrap();
    assert_eq!(store.fsck().unwrap().leftovers.len(), 5);
    assert_eq!(store.gc(EAGER).unwrap().removed_leftovers, 5);
    assert_eq!(store.fsck().unwrap().leftovers.len(), 0);
    assert_eq!(store.list().unwrap(), ["f/1"]);
    assert_holds(&store, "f/1", 1000..1200);
}

#[test]
fn while_a_page_map_cannot_be_read_no_pack_goes() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    write(&store, "f", 1000..1200);
    write(&store, "g", 2000..2200);
    store.remove("g").unwrap();
    let map = files(root.path())
        .into_iter()
        .find(|path| path.to_str().unwrap().contains("pages-"))
        .unwrap();
    with_flipped(&map, 130, || {
        let report = store.gc(EAGER).unwrap();
        assert_eq!(report.unreadable, ["f"]);
        assert_eq!(report.removed_packs, 0);
    });
    assert_eq!(store.gc(EAGER).unwrap().removed_packs, 1);
    assert_holds(&store, "f", 1000..1200);
}

#[test]
fn dictionaries_go_with_the_last_snapshot_that_needs_them() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let samples: Vec<Vec<u8>> = (1000..1200).map(page).collect();
    let (snapshot, pool) = of_pages(1000..1200);
    let options = WriteOptions {
        choice: &Single(CodecId::Zstd),
        dictionary: Some(Arc::new(train(&samples).unwrap())),
        ..WriteOptions::new("default")
    };
    store.write("f", &snapshot, &pool, &options).unwrap();
    assert_eq!(store.gc(EAGER).unwrap().removed_dictionaries, 0);
    store.open_snapshot("f").unwrap().load().unwrap();
    store.remove("f").unwrap();
    assert_eq!(store.gc(EAGER).unwrap().removed_dictionaries, 1);
    assert_eq!(
        fs::read_dir(root.path().join("dictionaries"))
            .unwrap()
            .count(),
        0
    );
}

/// It is in memory still when the next snapshot is written with it.
#[test]
fn a_dictionary_that_was_collected_is_stored_again() {
    let root = tempfile::tempdir().unwrap();
    let samples: Vec<Vec<u8>> = (1000..1200).map(page).collect();
    let dictionary = Arc::new(train(&samples).unwrap());
    let (snapshot, pool) = of_pages(1000..1200);
    let options = WriteOptions {
        choice: &Single(CodecId::Zstd),
        dictionary: Some(dictionary),
        ..WriteOptions::new("default")
    };
    let store = store(root.path());
    store.write("f", &snapshot, &pool, &options).unwrap();
    let held = store.open_snapshot("f").unwrap();
    assert!(store.dictionary_of(&held.map).is_some());
    store.remove("f").unwrap();
    assert_eq!(store.gc(EAGER).unwrap().removed_dictionaries, 1);
    store.write("g", &snapshot, &pool, &options).unwrap();
    // Nothing of it is in the memory of this one.
    let fresh = SnapshotStore::open(root.path(), key()).unwrap();
    let loaded = fresh.open_snapshot("g").unwrap().load().unwrap();
    assert!(contents(&loaded) == contents(&pool));
    assert!(fresh.fsck().unwrap().is_clean());
}

#[test]
fn a_healthy_store_is_clean() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    assert!(store.fsck().unwrap().is_clean());
    write(&store, "a/1", 1000..1200);
    write(&store, "a/2", 1000..1300);
    write(&store, "b/1", [0; 200]);
    let report = store.fsck().unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.snapshots, report.packs), (3, 2));
    assert!(report.orphans.is_empty() && report.leftovers.is_empty());
    let entries: usize = store
        .packs()
        .list()
        .unwrap()
        .into_iter()
        .map(|id| {
            read_index(&store.packs().pack(id).unwrap(), id)
                .unwrap()
                .entries
                .len()
        })
        .sum();
    assert_eq!(report.chunks, entries as u64);
    store.remove("a/1").unwrap();
    store.remove("a/2").unwrap();
    assert_eq!(store.fsck().unwrap().orphans.len(), entries);
}

/// Every file, many places in each: either nobody needs the byte, or it is refused and named.
#[test]
fn any_flipped_byte_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let samples: Vec<Vec<u8>> = (1000..1200).map(page).collect();
    let (snapshot, pool) = of_pages((1000..1100).chain([0; 60]).chain(1_000_000..1_000_040));
    let options = WriteOptions {
        hot: &[3..20],
        dictionary: Some(Arc::new(train(&samples).unwrap())),
        ..WriteOptions::new("default")
    };
    store.write("f/1", &snapshot, &pool, &options).unwrap();
    store.write("f/2", &snapshot, &pool, &options).unwrap();
    let good = contents(&pool);
    for path in files(root.path()) {
        let name = path.display().to_string();
        let len = fs::metadata(&path).unwrap().len();
        let padding = if name.ends_with(".pack") {
            paddings(&path)
        } else {
            Vec::new()
        };
        for at in (0..600.min(len))
            .step_by(7)
            .chain((600..len).step_by(4999))
            .chain([len - 1])
        {
            with_flipped(&path, at, || {
                // A new one: dictionaries in memory are right for ever.
                let store = SnapshotStore::open(root.path(), key()).unwrap();
                let mut refused = 0;
                for snapshot in ["f/1", "f/2"] {
                    match store
                        .open_snapshot(snapshot)
                        .and_then(|stored| stored.load())
                    {
                        Err(error) => {
                            refused += 1;
                            let text = chain(&error);
                            let named = name.contains("dictionaries") || name_of(&path, &text);
                            assert!(named, "{name}, byte {at}: {text}");
                        }
                        Ok(loaded) => assert!(contents(&loaded) == good, "{name}, byte {at}"),
                    }
                }
                let report = store.fsck().unwrap();
                let harmless = padding.iter().any(|range| range.contains(&at));
                assert_eq!(report.is_clean(), harmless, "{name}, byte {at}: {report:?}");
                assert!(report.affected().len() >= refused);
            });
        }
    }
    assert!(store.fsck().unwrap().is_clean());
}

/// Does the text name the file, by its path or by the pack's number?
fn name_of(path: &Path, text: &str) -> bool {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    text.contains(stem)
}

/// The bytes of a pack that mean nothing.
fn paddings(path: &Path) -> Vec<std::ops::Range<u64>> {
    let id = u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
    let id = rouse_snapshot::page_map::PackId(id);
    let index = read_index(&fs::File::open(path).unwrap(), id).unwrap();
    let mut ranges = vec![144..4096];
    let mut end = 4096;
    for entry in &index.entries {
        ranges.push(end..entry.offset);
        end = entry.offset + u64::from(entry.stored_len);
    }
    ranges.push(end..index.data_end);
    ranges
}

#[test]
fn a_damaged_chunk_does_not_get_into_new_snapshots() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    write(&store, "old", 1000..1200);
    let pack = files(root.path())
        .into_iter()
        .find(|p| p.extension().is_some())
        .unwrap();
    with_flipped(&pack, 4200, || {
        assert!(store.open_snapshot("old").unwrap().load().is_err());
        let report = store.fsck().unwrap();
        assert_eq!(report.affected(), ["old"]);
        assert_eq!(report.damages.len(), 1);
        assert!(
            report.damages[0].what.contains("the chunk at byte 4096"),
            "{report:?}"
        );
        // As a function does that is built again.
        store.remove("old").unwrap();
        let (snapshot, pool) = of_pages(1000..1200);
        let written = store
            .write("new", &snapshot, &pool, &WriteOptions::new("default"))
            .unwrap();
        assert!(written.deduplicated_bytes > 0);
        assert!(written.deduplicated_bytes < written.plain_bytes());
        assert_holds(&store, "new", 1000..1200);
    });
}

#[test]
fn missing_files_are_named() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    write(&store, "f", 1000..1200);
    for path in files(root.path()) {
        let away = root.path().join("away");
        fs::rename(&path, &away).unwrap();
        let error = chain(&store.open_snapshot("f").unwrap_err());
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        if !path.ends_with("manifest") {
            assert_eq!(store.fsck().unwrap().affected(), ["f"]);
        }
        fs::rename(&away, &path).unwrap();
    }
    let pack = files(root.path())
        .into_iter()
        .find(|p| p.extension().is_some())
        .unwrap();
    let whole = fs::read(&pack).unwrap();
    for len in [0, 100, 4096, whole.len() - 1] {
        fs::write(&pack, &whole[..len]).unwrap();
        assert_eq!(store.fsck().unwrap().affected(), ["f"], "{len}");
        // What is there is still right.
        if let Ok(loaded) = store.open_snapshot("f").unwrap().load() {
            assert!(contents(&loaded) == contents(&pool(1000..1200)));
        }
    }
}
