//! A full disk gives a clear error and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod store_sample;

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use rouse_pool::snapshot_store::{GcOptions, WriteOptions};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use store_sample::*;

/// Runs `check` with a tmpfs of the given options on a new directory.
///
/// The mount is made in a mount namespace of a thread that ends with the check, so that the
/// kernel takes it away whatever happens.
fn with_tmpfs(options: &str, check: impl FnOnce(&Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let run = || {
        // SAFETY: the caller must not rely on a shared descriptor table afterwards; NEWNS and FS
        // leave it shared. Their own effect ends with this thread, which was made for it.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }
            .expect("a mount namespace needs CAP_SYS_ADMIN: run the tests as root");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let options = CString::new(options).unwrap();
        let flags = MountFlags::empty();
        mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            flags,
            Some(options.as_c_str()),
        )
        .unwrap();
        check(dir.path());
        unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

/// Files below a directory, but the lock.
fn files(dir: &Path) -> usize {
    let count = |path: &Path| match path.is_dir() {
        true => files(path),
        false => usize::from(!path.ends_with("store.lock")),
    };
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| count(&entry.unwrap().path()))
        .sum()
}

/// Noise, so that its stored length is known.
fn seeds() -> std::ops::Range<u64> {
    1_000_000..1_000_200
}

fn refused(options: &str) -> String {
    let mut text = String::new();
    with_tmpfs(options, |root| {
        let store = store(root);
        let (snapshot, pool) = of_pages(seeds());
        let options = WriteOptions::new("default");
        let error = store.write("f/1", &snapshot, &pool, &options).unwrap_err();
        text = chain(&error);
        assert_eq!(files(root), 0, "something is left: {text}");
    });
    let reason = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
    assert!(text.contains(&reason.to_string()), "{text}");
    text
}

#[test]
fn no_space_for_the_pack() {
    for pages in [4, 100, 200] {
        let text = refused(&format!("size={}", pages * PAGE));
        assert!(text.contains("packs"), "{text}");
    }
}

#[test]
fn no_space_for_the_snapshot() {
    // Header, 200 pages, one page of index; then page map and manifest.
    for spare in [0, 1, 2] {
        let text = refused(&format!("size={}", (202 + spare) * PAGE));
        assert!(text.contains("snapshots"), "{text}");
    }
}

#[test]
fn no_more_files() {
    for inodes in [4, 5, 6, 7, 8] {
        refused(&format!("size=10m,nr_inodes={inodes}"));
    }
}

#[test]
fn collecting_on_a_full_disk_gives_room_back() {
    with_tmpfs(&format!("size={}", 420 * PAGE), |root| {
        let store = store(root);
        let options = WriteOptions::new("default");
        let (snapshot, pool) = of_pages(seeds());
        store.write("f/1", &snapshot, &pool, &options).unwrap();
        let (other, other_pool) = of_pages(2_000_000..2_000_190);
        store.write("f/2", &other, &other_pool, &options).unwrap();
        let (third, third_pool) = of_pages(3_000_000..3_000_190);
        store
            .write("f/3", &third, &third_pool, &options)
            .unwrap_err();
        store.remove("f/1").unwrap();
        store.gc(GcOptions::default()).unwrap();
        store.write("f/3", &third, &third_pool, &options).unwrap();
        for (name, pool) in [("f/2", &other_pool), ("f/3", &third_pool)] {
            let loaded = store.open_snapshot(name).unwrap().load().unwrap();
            assert!(contents(&loaded) == contents(pool));
        }
    });
}
