//! Format version 3 is what `golden/v3.manifest` says. When a test here fails, either the change
//! was not meant, or it needs a new format version and a golden file of its own.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sample;

use rouse_snapshot::manifest::{
    Binding, FORMAT_VERSION, ManifestKey, decode_with_map, encode, encode_with_map, sign, verify,
};

use rouse_snapshot::page_map::Domain;

const GOLDEN: &[u8] = include_bytes!("golden/v3.manifest");
fn binding() -> Binding {
    Binding {
        page_map: [0x33; 32],
        pool: [8; 32],
        tenant: "default".into(),
        domain: Domain::Tenant,
    }
}

fn key() -> ManifestKey {
    ManifestKey::new([0x44; 32])
}

fn written() -> Vec<u8> {
    sign(encode_with_map(&sample::sample(2, 1), &binding()), &key())
}

#[test]
fn the_golden_file_is_of_the_version_that_is_written() {
    assert_eq!(FORMAT_VERSION, 3);
}

#[test]
fn the_golden_file_decodes_to_the_value_it_was_made_of() {
    let manifest = decode_with_map(verify(GOLDEN, &key()).unwrap()).unwrap();
    assert_eq!(manifest.snapshot, sample::sample(2, 1));
    assert_eq!(manifest.binding, Some(binding()));
}

#[test]
fn the_value_encodes_to_the_golden_file() {
    assert!(written() == GOLDEN, "the bytes of format version 3 changed");
}

#[test]
fn a_manifest_without_a_page_map_says_so() {
    let manifest = decode_with_map(&encode(&sample::sample(1, 0))).unwrap();
    assert_eq!(manifest.binding, None);
}

/// Run by hand, once for a new format version:
/// `ROUSE_WRITE_GOLDEN=1 cargo test -p rouse-snapshot --test golden -- --ignored`
#[test]
#[ignore = "writes the golden file, when asked by ROUSE_WRITE_GOLDEN"]
fn write_the_golden_file() {
    if std::env::var_os("ROUSE_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v3.manifest");
        std::fs::write(path, written()).unwrap();
    }
}
