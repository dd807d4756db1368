//! Only what a node has signed is accepted, and the reason is the right one.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sample;

use rouse_snapshot::manifest::{ManifestError, ManifestKey, decode, encode, sign, verify};

fn key(seed: u8) -> ManifestKey {
    ManifestKey::new([seed; 32])
}

#[test]
fn what_was_signed_is_verified() {
    let manifest = encode(&sample::sample(1, 1));
    let signed = sign(manifest.clone(), &key(1));
    assert_eq!(verify(&signed, &key(1)).unwrap(), manifest);
}

#[test]
fn another_key_is_named() {
    let signed = sign(encode(&sample::sample(1, 1)), &key(1));
    assert!(matches!(
        verify(&signed, &key(2)),
        Err(ManifestError::OtherKey)
    ));
}

#[test]
fn a_manifest_without_a_signature_is_refused() {
    let mut manifest = encode(&sample::sample(1, 1));
    assert!(verify(&manifest, &key(1)).is_err());
    manifest.extend([0; 64]);
    assert!(matches!(
        verify(&manifest, &key(1)),
        Err(ManifestError::Unsigned)
    ));
}

#[test]
fn a_forged_manifest_is_refused_though_its_checksums_are_right() {
    let signed = sign(encode(&sample::sample(1, 1)), &key(1));
    let mut forged = encode(&sample::sample(1, 2));
    decode(&forged).unwrap();
    forged.extend_from_slice(&signed[signed.len() - 64..]);
    assert!(matches!(
        verify(&forged, &key(1)),
        Err(ManifestError::Signature)
    ));
}

#[test]
fn any_flipped_or_missing_byte_is_refused() {
    let signed = sign(encode(&sample::sample(1, 0)), &key(1));
    let mut bytes = signed.clone();
    for at in 0..bytes.len() {
        bytes[at] ^= 1 << (at % 8);
        assert!(verify(&bytes, &key(1)).is_err(), "byte {at}");
        bytes[at] = signed[at];
        assert!(verify(&signed[..at], &key(1)).is_err(), "length {at}");
    }
}

#[test]
fn damage_is_said_to_be_damage() {
    let mut signed = sign(encode(&sample::sample(1, 0)), &key(1));
    signed[140] ^= 1;
    assert!(matches!(
        verify(&signed, &key(1)),
        Err(ManifestError::HeaderChecksum)
    ));
}
