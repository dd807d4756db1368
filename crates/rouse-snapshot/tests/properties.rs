//! What holds for every snapshot and for any bytes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod arbitrary;
mod forge;
mod sample;

use forge::forge;
use proptest::prelude::*;
use rouse_snapshot::manifest::{
    Binding, decode, decode_with_map, encode, encode_with_map, host_digests,
};
use rouse_snapshot::page_map::Domain;
use rouse_snapshot::validate;

/// What is accepted must be a value that gives the same bytes again.
fn is_refused_or_canonical(bytes: &[u8]) -> bool {
    decode_with_map(bytes).map_or(true, |manifest| {
        let again = match &manifest.binding {
            Some(binding) => encode_with_map(&manifest.snapshot, binding),
            None => encode(&manifest.snapshot),
        };
        again == bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_is_decoded(snapshot in arbitrary::snapshot(), bound: Option<([u8; 32], String)>) {
        prop_assert_eq!(validate(&snapshot), Ok(()));
        let binding = bound.map(|(page_map, tenant)| Binding {
            page_map,
            pool: [7; 32],
            tenant,
            domain: Domain::Templates,
        });
        let bytes = match &binding {
            Some(binding) => encode_with_map(&snapshot, binding),
            None => encode(&snapshot),
        };
        let manifest = decode_with_map(&bytes).unwrap();
        prop_assert_eq!(manifest.snapshot, snapshot);
        prop_assert_eq!(manifest.binding, binding);
    }

    #[test]
    fn a_mutation_is_refused(
        snapshot in arbitrary::snapshot(),
        at: prop::sample::Index,
        mask in 1u8..,
    ) {
        let mut bytes = encode(&snapshot);
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        prop_assert!(decode(&bytes).is_err());
        prop_assert!(host_digests(&bytes).is_err());
    }

    #[test]
    fn any_header_is_survived(header: [u8; 16], fields in prop::collection::vec(any::<u8>(), 176..2000)) {
        let mut bytes = b"ROUSESNP\x02\0\0\0\x3e\0\0\0".to_vec();
        bytes.extend(header);
        bytes.extend(fields);
        let digest = blake3::hash(&bytes[..160]);
        bytes[160..192].copy_from_slice(digest.as_bytes());
        prop_assert!(decode(&bytes).is_err());
    }

    /// The checksums of a forgery are right, so this reaches the section readers and the
    /// validation.
    #[test]
    fn a_forged_section_is_survived(
        section: prop::sample::Index,
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..4),
    ) {
        let bytes = forge(encode(&sample::sample(2, 1)), section, |contents| {
            for (at, value) in changes {
                contents[at.index(contents.len())] = value;
            }
        });
        prop_assert!(is_refused_or_canonical(&bytes));
    }

    /// As above. A section may be a few bytes long, so noise can be right by chance.
    #[test]
    fn a_section_of_noise_is_survived(section: prop::sample::Index, seed: u64) {
        let mut state = seed | 1;
        let bytes = forge(encode(&sample::sample(2, 1)), section, |contents| {
            for byte in contents {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (state >> 56) as u8;
            }
        });
        prop_assert!(is_refused_or_canonical(&bytes));
    }
}
