use std::io::Write;

use proptest::prelude::*;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::*;

const LIMITS: UnpackLimits = UnpackLimits {
    bytes: 1 << 20,
    entries: 50,
};

enum Kind {
    File(&'static str, u32),
    Link(&'static str),
    Dir,
}

fn archive(entries: &[(&str, Kind)]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, kind) in entries {
        match kind {
            Kind::File(text, mode) => {
                writer
                    .start_file(*name, SimpleFileOptions::default().unix_permissions(*mode))
                    .unwrap();
                writer.write_all(text.as_bytes()).unwrap();
            }
            Kind::Link(target) => writer
                .add_symlink(*name, *target, SimpleFileOptions::default())
                .unwrap(),
            Kind::Dir => writer
                .add_directory(*name, SimpleFileOptions::default())
                .unwrap(),
        }
    }
    writer.finish().unwrap().into_inner()
}

/// Replaces a name in both headers; the writer refuses to write some of them itself.
fn renamed(mut zip: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    for at in 0..=zip.len() - from.len() {
        if &zip[at..at + from.len()] == from.as_bytes() {
            zip[at..at + from.len()].copy_from_slice(to.as_bytes());
        }
    }
    zip
}

fn try_unpack(zip: &[u8]) -> Result<tempfile::TempDir, UnpackError> {
    let dir = tempfile::tempdir().unwrap();
    unpack(zip, &dir.path().join("out"), &LIMITS).map(|()| dir)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn files_directories_links_and_executable_bits_arrive() {
    let zip = archive(&[
        ("bootstrap", Kind::File("#!/bin/sh\n", 0o755)),
        ("lib/deep/data.txt", Kind::File("data", 0o600)),
        ("empty/", Kind::Dir),
        ("lib/link", Kind::Link("../bootstrap")),
        ("suid", Kind::File("x", 0o4777)),
    ]);
    let dir = try_unpack(&zip).unwrap();
    let out = dir.path().join("out");
    assert_eq!(mode(&out), 0o755);
    assert_eq!(mode(&out.join("bootstrap")), 0o755);
    assert_eq!(mode(&out.join("suid")), 0o755);
    assert_eq!(mode(&out.join("lib/deep/data.txt")), 0o644);
    assert_eq!(mode(&out.join("lib")), 0o755);
    assert!(out.join("empty").is_dir());
    assert_eq!(fs::read(out.join("lib/link")).unwrap(), b"#!/bin/sh\n");
}

#[test]
fn names_that_leave_the_package_are_refused() {
    for (from, to) in [
        ("aa/bb", "../bb"),
        ("aa/bb", "/a/bb"),
        ("aa/bb", "a/../"),
        ("aabbc", "..\\bc"),
    ] {
        let zip = renamed(archive(&[(from, Kind::File("x", 0o644))]), from, to);
        assert!(
            matches!(try_unpack(&zip), Err(UnpackError::Name(name)) if name == to),
            "{to}"
        );
    }
}

#[test]
fn links_that_leave_the_package_are_refused() {
    for target in ["/etc/passwd", "../x", "a/../../x", "d/../x", "./../x"] {
        let zip = archive(&[("link", Kind::Link(target))]);
        assert!(
            matches!(try_unpack(&zip), Err(UnpackError::Link(_))),
            "{target}"
        );
    }
    let zip = archive(&[("a/b/link", Kind::Link("../../../x"))]);
    assert!(matches!(try_unpack(&zip), Err(UnpackError::Link(_))));
}

#[test]
fn nothing_is_written_through_a_link() {
    let zip = archive(&[("l", Kind::Link("d")), ("l/x", Kind::File("x", 0o644))]);
    assert!(matches!(try_unpack(&zip), Err(UnpackError::Duplicate(_))));
    let zip = archive(&[
        ("l", Kind::File("x", 0o644)),
        ("l/x", Kind::File("x", 0o644)),
    ]);
    assert!(matches!(try_unpack(&zip), Err(UnpackError::Duplicate(_))));
}

#[test]
fn the_same_name_twice_is_refused() {
    let zip = renamed(
        archive(&[
            ("one", Kind::File("1", 0o644)),
            ("two", Kind::File("2", 0o644)),
        ]),
        "two",
        "one",
    );
    assert!(matches!(try_unpack(&zip), Err(UnpackError::Duplicate(_))));
    let zip = renamed(
        archive(&[
            ("d/one", Kind::File("1", 0o644)),
            ("d/./a", Kind::File("2", 0o644)),
        ]),
        "d/./a",
        "d//on",
    );
    let zip = renamed(zip, "d/one", "d//on");
    assert!(try_unpack(&zip).is_err());
}

#[test]
fn bombs_are_refused_by_their_real_size() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer
        .start_file("zeros", SimpleFileOptions::default())
        .unwrap();
    writer.write_all(&vec![0; (1 << 20) + 1]).unwrap();
    let zip = writer.finish().unwrap().into_inner();
    assert!(matches!(try_unpack(&zip), Err(UnpackError::TooLarge(n)) if n == 1 << 20));

    let names: Vec<String> = (0..51).map(|n| format!("f{n}")).collect();
    let entries: Vec<(&str, Kind)> = names
        .iter()
        .map(|name| (name.as_str(), Kind::File("", 0o644)))
        .collect();
    assert!(matches!(
        try_unpack(&archive(&entries)),
        Err(UnpackError::TooManyEntries(50))
    ));
}

#[test]
fn a_wrong_checksum_and_an_encrypted_entry_are_refused() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    writer.start_file("data", stored).unwrap();
    writer.write_all(b"correct horse").unwrap();
    let good = writer.finish().unwrap().into_inner();
    let bad = renamed(good.clone(), "correct horse", "correct house");
    assert!(matches!(try_unpack(&bad), Err(UnpackError::Entry { name, .. }) if name == "data"));

    // Bit 0 of the general purpose flags, in the local header and in the central directory.
    let mut encrypted = good;
    encrypted[6] |= 1;
    let central = encrypted
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .unwrap();
    encrypted[central + 8] |= 1;
    assert!(matches!(
        try_unpack(&encrypted),
        Err(UnpackError::Encrypted(_))
    ));
}

#[test]
fn a_device_is_refused() {
    let mut zip = archive(&[("null", Kind::File("", 0o644))]);
    let central = zip.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
    // External attributes, upper half: the Unix mode.
    zip[central + 40..central + 42].copy_from_slice(&0o020_644u16.to_le_bytes());
    assert!(matches!(try_unpack(&zip), Err(UnpackError::Kind(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done to a zip, nothing appears beside the target, and nothing panics.
    #[test]
    fn damage_never_escapes(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6)) {
        let mut zip = archive(&[
            ("bootstrap", Kind::File("#!/bin/sh\n", 0o755)),
            ("lib/a.txt", Kind::File("data data data data", 0o600)),
            ("lib/link", Kind::Link("../bootstrap")),
        ]);
        for (at, byte) in flips {
            let at = at.index(zip.len());
            zip[at] = byte;
        }
        let dir = tempfile::tempdir().unwrap();
        let _ = unpack(&zip, &dir.path().join("out"), &LIMITS);
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        prop_assert!(names.iter().all(|name| name == "out"), "{:?}", names);
    }

    /// Accepted names stay below the root by the kernel's own rules.
    #[test]
    fn names_stay_inside(name in r"[a./\\]{1,12}") {
        if let Some((path, _)) = relative_path(&name) {
            prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
        }
    }

    /// An accepted link resolves below the root; the oracle is the kernel.
    #[test]
    fn links_stay_inside(links in proptest::collection::vec((r"(d/){0,2}[xyz]", r"(\.\./|d/|x/|y/){0,4}[xyzd]"), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        fs::create_dir_all(out.join("d/d")).unwrap();
        for name in ["x", "y", "z", "d"] {
            fs::write(dir.path().join(name), "outside").unwrap();
        }
        for (link, target) in &links {
            if link_stays_inside(Path::new(link), target) {
                let _ = symlink(target, out.join(link));
            }
        }
        for (link, _) in &links {
            if let Ok(real) = fs::canonicalize(out.join(link)) {
                prop_assert!(real.starts_with(fs::canonicalize(&out).unwrap()), "{:?}", real);
            }
        }
    }
}
