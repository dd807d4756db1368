//! Damage of any kind is refused, with a reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sample;

use rouse_snapshot::manifest::{Binding, ManifestError, decode, encode, encode_with_map};
use rouse_snapshot::page_map::Domain;

/// A manifest of about the size that an interpreter with heavy imports gives.
fn realistic() -> Vec<u8> {
    encode_with_map(
        &sample::sample(4, 40),
        &Binding {
            page_map: [9; 32],
            pool: [8; 32],
            tenant: "default".into(),
            domain: Domain::Tenant,
        },
    )
}

#[test]
fn any_flipped_byte_is_refused() {
    let good = realistic();
    assert!(decode(&good).is_ok());
    let mut bytes = good.clone();
    for at in 0..bytes.len() {
        for mask in [1 << (at % 8), 0xff] {
            bytes[at] ^= mask;
            assert!(
                decode(&bytes).is_err(),
                "byte {at} flipped by {mask:#x} went unnoticed"
            );
            bytes[at] ^= mask;
        }
    }
    assert_eq!(bytes, good);
}

#[test]
fn any_shorter_file_is_refused() {
    let good = encode(&sample::sample(1, 0));
    for len in 0..good.len() {
        assert!(
            decode(&good[..len]).is_err(),
            "the first {len} bytes were accepted"
        );
    }
}

#[test]
fn a_longer_file_is_refused() {
    for extra in [1, 64, 4096] {
        let mut bytes = realistic();
        bytes.extend(std::iter::repeat_n(0, extra));
        assert!(matches!(decode(&bytes), Err(ManifestError::Length { .. })));
    }
}

#[test]
fn swapped_sections_are_refused() {
    // Two sections of the same length whose contents were exchanged: each is intact.
    let mut bytes = realistic();
    let (first, second) = (192, 256);
    for at in 0..64 {
        bytes.swap(first + at, second + at);
    }
    assert!(matches!(decode(&bytes), Err(ManifestError::TableChecksum)));
}
