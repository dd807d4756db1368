//! Snapshots in a store: written, read, shared, stored anew, removed.

#![allow(
    clippy::single_range_in_vec_init,
    reason = "a working set may have one range"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_sample;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rouse_pool::codec::{Single, train};
use rouse_pool::key::{KeyError, NodeKey};
use rouse_pool::snapshot_store::{GcOptions, MIN_HOT_RUN, SnapshotStore, StoreError, WriteOptions};
use rouse_snapshot::manifest::ManifestError;
use rouse_snapshot::page_map::{Class, CodecId, Domain, PieceKind};
use store_sample::*;

fn seeds() -> impl Iterator<Item = u64> + Clone {
    (0..4)
        .chain(1000..1100)
        .chain(std::iter::repeat_n(0, 40))
        .chain(1_000_000..1_000_030)
        .chain([5; 20])
}

#[test]
fn what_was_written_is_read() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(seeds());
    let report = store
        .write("f/1", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    assert_eq!(report.plain_bytes(), pool.pages() * PAGE as u64);
    assert_eq!(report.repeated_bytes, 64 * PAGE as u64);
    assert!(report.stored_bytes() < report.plain_bytes());
    assert_eq!(
        report.codecs[CodecId::None as usize].plain_bytes,
        30 * PAGE as u64
    );

    let stored = store.open_snapshot("f/1").unwrap();
    assert_eq!(stored.snapshot, snapshot);
    assert_eq!(stored.binding.tenant, "default");
    assert_eq!(stored.binding.pool, stored.binding.page_map);
    assert_eq!(stored.map.pages(), pool.pages());
    assert_eq!(stored.map.hot_extent(), None);
    assert!(contents(&stored.load().unwrap()) == contents(&pool));
    assert_eq!(store.list().unwrap(), ["f/1"]);
}

#[test]
fn an_empty_pool_is_a_pool() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let pages = snapshot(1000).pool_pages;
    let (snapshot, pool) = of_pages(std::iter::repeat_n(0, pages as usize));
    let report = store
        .write("zeros", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    assert_eq!((report.stored_bytes(), report.pack_bytes), (0, 0));
    assert!(store.packs().list().unwrap().is_empty());
    let loaded = store.open_snapshot("zeros").unwrap().load().unwrap();
    assert!(contents(&loaded) == contents(&pool));
}

#[test]
fn only_the_owner_may_read() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(seeds());
    store
        .write("f/1", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    let mut looked_at = 0;
    let mut places = vec![root.path().to_owned()];
    while let Some(dir) = places.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{}", path.display());
            looked_at += 1;
            if path.is_dir() {
                places.push(path);
            }
        }
    }
    assert!(looked_at >= 7);
}

#[test]
fn the_working_set_lies_side_by_side_in_its_order() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1300);
    let hot = [200..216, 10..20, 250..251];
    let options = WriteOptions {
        hot: &hot,
        ..WriteOptions::new("default")
    };
    let report = store.write("f", &snapshot, &pool, &options).unwrap();
    let stored = store.open_snapshot("f").unwrap();
    let (pack, extent) = stored.map.hot_extent().unwrap();
    assert_eq!(extent.start, 4096);
    assert_eq!(
        extent.end,
        (4096 + report.hot_stored_bytes).next_multiple_of(4096)
    );
    assert_eq!(
        report.codecs[CodecId::Lz4 as usize].stored_bytes,
        report.hot_stored_bytes
    );

    let mut order: Vec<_> = stored
        .map
        .pieces()
        .iter()
        .filter(|piece| piece.class == Class::Hot)
        .map(|piece| (piece.chunk().unwrap().offset, piece.range()))
        .collect();
    order.sort_by_key(|(offset, _)| *offset);
    let pages: Vec<u64> = order.iter().flat_map(|(_, range)| range.clone()).collect();
    let expected: Vec<u64> = hot.into_iter().flatten().collect();
    assert_eq!(pages, expected);
    for piece in stored.map.pieces() {
        let chunk = piece.chunk().unwrap();
        let inside = extent.contains(&chunk.offset);
        assert_eq!(inside, piece.class == Class::Hot);
        assert_eq!(chunk.pack, pack);
    }
    assert!(contents(&stored.load().unwrap()) == contents(&pool));
}

#[test]
fn every_codec_and_a_dictionary_can_be_chosen() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1200);
    let samples: Vec<Vec<u8>> = (1000..1200).map(page).collect();
    let dictionary = Arc::new(train(&samples).unwrap());
    for codec in CodecId::ALL {
        let choice = Single(codec);
        let options = WriteOptions {
            choice: &choice,
            dictionary: Some(dictionary.clone()),
            deduplicate: false,
            ..WriteOptions::new("default")
        };
        store
            .write(codec.name(), &snapshot, &pool, &options)
            .unwrap();
        let stored = store.open_snapshot(codec.name()).unwrap();
        assert!(stored.map.chunks().all(|chunk| chunk.codec == codec));
        let dictionaries = stored.map.dictionaries();
        assert_eq!(dictionaries.len(), usize::from(codec == CodecId::Zstd));
        assert!(contents(&stored.load().unwrap()) == contents(&pool));
    }
    assert_eq!(
        store.dictionary(dictionary.id()).unwrap().bytes(),
        dictionary.bytes()
    );
}

/// Some pages resemble what the dictionary was trained on, others would be larger with it.
#[test]
fn only_pieces_that_gain_are_stored_with_the_dictionary() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let text = |seed: u64| -> Vec<u8> {
        let words = (0..PAGE as u64).map(|at| seed * 31 + at * at / 7);
        let line = words.flat_map(|word| format!("member {:02x} ", word % 64).into_bytes());
        line.take(PAGE).collect()
    };
    let samples: Vec<Vec<u8>> = (0..200).map(text).collect();
    let dictionary = Arc::new(train(&samples).unwrap());
    let mut builder = rouse_pool::PoolBuilder::new("test").unwrap();
    for number in 0..64 {
        builder.append(&text(1000 + number)).unwrap();
    }
    for seed in 1_000_000..1_000_064 {
        // Half of it noise, so that it can be made smaller, but not by what the text has.
        let mut half = page(seed);
        half[PAGE / 2..].fill(0);
        builder.append(&half).unwrap();
    }
    let pool = builder.finish().unwrap();
    let options = WriteOptions {
        dictionary: Some(dictionary),
        ..WriteOptions::new("default")
    };
    let written = snapshot(pool.pages());
    store.write("mixed", &written, &pool, &options).unwrap();
    let stored = store.open_snapshot("mixed").unwrap();
    let with = |helped: bool| {
        let mut chunks = stored.map.chunks();
        chunks.any(|chunk| chunk.dictionary.is_some() == helped)
    };
    assert!(with(true) && with(false));
    assert!(contents(&stored.load().unwrap()) == contents(&pool));
}

/// All stand beside a template: it needs nothing to be read.
#[test]
fn a_template_is_stored_without_a_dictionary() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let samples: Vec<Vec<u8>> = (1000..1200).map(page).collect();
    let (snapshot, pool) = of_pages(1000..1200);
    let options = WriteOptions {
        domain: Domain::Templates,
        dictionary: Some(Arc::new(train(&samples).unwrap())),
        ..WriteOptions::new("default")
    };
    store.write("t", &snapshot, &pool, &options).unwrap();
    assert!(
        store
            .open_snapshot("t")
            .unwrap()
            .map
            .dictionaries()
            .is_empty()
    );
}

#[test]
fn equal_pages_of_one_tenant_are_stored_once() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let options = WriteOptions::new("default");
    let (snapshot, pool) = of_pages(1000..1400);
    let first = store.write("one", &snapshot, &pool, &options).unwrap();
    assert_eq!(first.deduplicated_bytes, 0);
    let again = store.write("same", &snapshot, &pool, &options).unwrap();
    assert_eq!(again.deduplicated_bytes, again.plain_bytes());
    assert_eq!(again.pack_bytes, 0);

    // Another page in front, and some that differ in the middle.
    let (shifted, shifted_pool) = of_pages((998..1200).chain(2000..2010).chain(1210..1400));
    let report = store
        .write("shifted", &shifted, &shifted_pool, &options)
        .unwrap();
    assert!(
        report.deduplicated_bytes > report.plain_bytes() * 3 / 4,
        "{report:?}"
    );
    for (name, pool) in [("one", &pool), ("same", &pool), ("shifted", &shifted_pool)] {
        let loaded = store.open_snapshot(name).unwrap().load().unwrap();
        assert!(contents(&loaded) == contents(pool));
    }
}

#[test]
fn tenants_share_nothing_but_templates() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1300);
    let write = |name, options| store.write(name, &snapshot, &pool, &options).unwrap();
    write("a", WriteOptions::new("a"));
    let other = write("b", WriteOptions::new("b"));
    assert_eq!(other.deduplicated_bytes, 0);
    let template = write(
        "template",
        WriteOptions {
            domain: Domain::Templates,
            ..WriteOptions::new("operator")
        },
    );
    assert_eq!(template.deduplicated_bytes, 0);
    let child = write("c", WriteOptions::new("c"));
    assert_eq!(child.deduplicated_bytes, child.plain_bytes());
    for name in ["a", "b", "c", "template"] {
        let stored = store.open_snapshot(name).unwrap();
        assert!(contents(&stored.load().unwrap()) == contents(&pool));
    }
    let ids = |name| {
        let stored = store.open_snapshot(name).unwrap();
        stored
            .map
            .chunks()
            .map(|chunk| chunk.id)
            .collect::<Vec<_>>()
    };
    assert!(ids("a").iter().all(|id| !ids("b").contains(id)));
    let stored = store.open_snapshot("c").unwrap();
    assert!(
        stored
            .map
            .chunks()
            .all(|chunk| chunk.domain == Domain::Templates)
    );
}

#[test]
fn a_working_set_is_not_scattered_over_packs() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1600);
    store
        .write("one", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    let run = MIN_HOT_RUN / PAGE as u64;
    // One long run, and many short ones in between pages that are new.
    let mut pages: Vec<u64> = (1000..1000 + 3 * run).collect();
    for at in 0..20 {
        pages.extend(1300 + at * 12..1310 + at * 12);
        pages.extend(5000 + at * 2..5002 + at * 2);
    }
    let (snapshot, pool) = of_pages(pages.iter().copied());
    let hot = 0..pages.len() as u64;
    let options = WriteOptions {
        hot: std::slice::from_ref(&hot),
        ..WriteOptions::new("default")
    };
    let report = store.write("hot", &snapshot, &pool, &options).unwrap();
    assert!(report.deduplicated_bytes >= 2 * MIN_HOT_RUN, "{report:?}");
    let stored = store.open_snapshot("hot").unwrap();
    let (own, _) = stored.map.hot_extent().unwrap();
    for piece in stored.map.pieces() {
        let chunk = piece.chunk().unwrap();
        assert_eq!(
            chunk.pack == own,
            piece.first_page >= 3 * run - 16 && chunk.pack == own
        );
        if piece.first_page >= 3 * run {
            assert_eq!(chunk.pack, own, "{piece:?}");
        }
    }
    // The same, cold: everything that is known is referred to.
    let cold = store
        .write("cold", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    assert_eq!(cold.deduplicated_bytes, cold.plain_bytes());
}

#[test]
fn a_snapshot_is_stored_anew_in_another_order() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1300);
    store
        .write("f", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    let before = store.open_snapshot("f").unwrap();
    let hot = [100..130];
    let options = WriteOptions {
        hot: &hot,
        ..WriteOptions::new("ignored")
    };
    store.rewrite("f", &options).unwrap();
    let after = store.open_snapshot("f").unwrap();
    assert!(after.map.hot_extent().is_some());
    assert_eq!(after.binding.tenant, "default");
    assert_eq!(after.binding.pool, before.binding.pool);
    assert_ne!(after.binding.page_map, before.binding.page_map);
    assert_eq!(store.packs().list().unwrap().len(), 2);
    store.gc(GcOptions::default()).unwrap();
    assert_eq!(store.packs().list().unwrap().len(), 1);
    // Who had it open goes on with what is gone.
    for stored in [before, after] {
        assert!(contents(&stored.load().unwrap()) == contents(&pool));
    }
}

#[test]
fn nothing_is_written_over() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1200);
    let options = WriteOptions::new("default");
    store.write("f", &snapshot, &pool, &options).unwrap();
    fs::create_dir(root.path().join("snapshots/empty")).unwrap();
    for name in ["f", "empty"] {
        let error = store.write(name, &snapshot, &pool, &options).unwrap_err();
        assert!(matches!(error, StoreError::Exists { .. }), "{error}");
    }
    assert_eq!(store.packs().list().unwrap().len(), 1);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1200);
    let long = "x".repeat(201);
    for name in [
        "", ".", "..", "a/../b", "/a", "a/", "a/b/c", ".tmp-a", "a\0b", &long,
    ] {
        let error = store
            .write(name, &snapshot, &pool, &WriteOptions::new("default"))
            .unwrap_err();
        assert!(
            matches!(error, StoreError::BadName { .. }),
            "{name:?}: {error}"
        );
    }
    store
        .write(&long[1..], &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
}

#[test]
fn what_makes_no_sense_is_not_written() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (mut snapshot, pool) = of_pages(1000..1200);
    let options = WriteOptions::new("default");
    snapshot.pool_pages += 1;
    let error = store.write("f", &snapshot, &pool, &options).unwrap_err();
    assert!(matches!(error, StoreError::PoolLength { .. }), "{error}");
    snapshot.threads.clear();
    let error = store.write("f", &snapshot, &pool, &options).unwrap_err();
    assert!(matches!(error, StoreError::Invalid(_)), "{error}");
    assert!(store.list().unwrap().is_empty());
    assert!(store.packs().list().unwrap().is_empty());
}

#[test]
fn a_snapshot_of_another_node_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (snapshot, pool) = of_pages(1000..1200);
    store(root.path())
        .write("f", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    let other = SnapshotStore::open(root.path(), NodeKey::new([8; 32])).unwrap();
    let error = other.open_snapshot("f").unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Manifest {
                source: ManifestError::OtherKey,
                ..
            }
        ),
        "{error}"
    );
    // And nothing of it is collected: the key may come back.
    other.gc(GcOptions::default()).unwrap();
    store(root.path())
        .open_snapshot("f")
        .unwrap()
        .load()
        .unwrap();
}

#[test]
fn a_page_map_of_another_snapshot_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    for (name, first) in [("f", 1000), ("g", 2000)] {
        let (snapshot, pool) = of_pages(first..first + 200);
        store
            .write(name, &snapshot, &pool, &WriteOptions::new("default"))
            .unwrap();
    }
    let map_of = |name| {
        fs::read_dir(store.path_of(name).unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| !path.ends_with("manifest"))
            .unwrap()
    };
    fs::copy(map_of("g"), map_of("f")).unwrap();
    let error = store.open_snapshot("f").unwrap_err();
    assert!(matches!(error, StoreError::WrongPageMap { .. }), "{error}");
}

#[test]
fn a_removed_snapshot_is_gone_but_its_pool_stays() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages(1000..1200);
    store
        .write("f/1", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    let loaded = store.open_snapshot("f/1").unwrap().load().unwrap();
    store.remove("f/1").unwrap();
    assert!(store.list().unwrap().is_empty());
    assert!(contents(&loaded) == contents(&pool));
    assert!(matches!(store.remove("f/1"), Err(StoreError::Io { .. })));
    let report = store.gc(GcOptions::default()).unwrap();
    assert_eq!(report.removed_packs, 1);
    assert!(report.freed_bytes > 0);
    assert!(store.packs().list().unwrap().is_empty());
}

#[test]
fn a_node_has_one_key_that_only_it_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    assert!(matches!(NodeKey::load(&path), Err(KeyError::Io { .. })));
    NodeKey::load_or_create(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 32);
    assert_ne!(bytes, [0; 32]);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    NodeKey::load_or_create(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        NodeKey::load_or_create(&path),
        Err(KeyError::Exposed { mode: 0o640, .. })
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, [1; 33]).unwrap();
    assert!(matches!(
        NodeKey::load_or_create(&path),
        Err(KeyError::Length { found: 33, .. })
    ));
}

#[test]
fn pieces_say_what_they_hold() {
    let root = tempfile::tempdir().unwrap();
    let store = store(root.path());
    let (snapshot, pool) = of_pages([0; 20].into_iter().chain([3; 20]).chain(1000..1200));
    store
        .write("f", &snapshot, &pool, &WriteOptions::new("default"))
        .unwrap();
    let map = store.open_snapshot("f").unwrap().map;
    assert_eq!(map.piece_of(0).1.kind, PieceKind::Zero);
    assert_eq!(map.piece_of(25).1.kind, PieceKind::Repeated(3));
    assert!(map.piece_of(50).1.chunk().is_some());
}
