//! A stored working set: what was written is read, and whatever else is refused with a reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod arbitrary;
mod sample;

use proptest::prelude::*;
use rouse_snapshot::model::{PAGE_SIZE, ProcessSnapshot};
use rouse_snapshot::working_set::{
    FORMAT_VERSION, Record, SnapshotBinding, TouchRun, Treatment, WorkingSetError, preparable,
};

const GOLDEN: &[u8] = include_bytes!("golden/v1.working-set");
const HEADER: usize = 152;

/// Runs of every kind in the first pages of the mappings that can be prepared.
fn record(snapshot: &ProcessSnapshot) -> Record {
    let mut runs = Vec::new();
    let kinds = [
        (Treatment::Copy, u16::MAX, u16::MAX, Some(7)),
        (Treatment::Map, 0, 40_000, None),
        (Treatment::None, 300, 900, None),
    ];
    let places = snapshot.mappings.iter().filter(|m| preparable(m));
    for (mapping, (treatment, written, touched, order)) in places.zip(kinds.iter().cycle()) {
        let pages = (mapping.range.end - mapping.range.start) / PAGE_SIZE;
        runs.push(TouchRun {
            address: mapping.range.start,
            pages: pages.min(5) as u32,
            written: *written,
            touched: *touched,
            order: *order,
            treatment: *treatment,
        });
    }
    Record {
        snapshot: SnapshotBinding::of(snapshot),
        version: 3,
        on: true,
        invocations: 123,
        horizon: 16,
        residual: 9,
        gain_ns: -1500,
        runs,
    }
}

#[test]
fn the_golden_file_and_its_value_agree() {
    assert_eq!(FORMAT_VERSION, 1);
    let snapshot = sample::sample(2, 1);
    let record = record(&snapshot);
    assert!(record.runs.len() > 3, "the sample has too few mappings");
    assert!(record.encode() == GOLDEN, "the bytes of version 1 changed");
    assert_eq!(Record::decode(GOLDEN, &snapshot), Ok(record));
}

/// Run by hand, once for a new format version:
/// `ROUSE_WRITE_GOLDEN=1 cargo test -p rouse-snapshot --test working_set -- --ignored`
#[test]
#[ignore = "writes the golden file, when asked by ROUSE_WRITE_GOLDEN"]
fn write_the_golden_file() {
    if std::env::var_os("ROUSE_WRITE_GOLDEN").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.working-set");
        std::fs::write(path, record(&sample::sample(2, 1)).encode()).unwrap();
    }
}

#[test]
fn any_flipped_bit_and_any_other_length_is_refused() {
    let snapshot = sample::sample(2, 1);
    let good = record(&snapshot).encode();
    let mut bytes = good.clone();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            let found = Record::decode(&bytes, &snapshot);
            assert!(found.is_err(), "bit {bit} of byte {at} went unnoticed");
            bytes[at] ^= 1 << bit;
        }
    }
    for len in 0..good.len() {
        assert!(Record::decode(&good[..len], &snapshot).is_err());
    }
    bytes.push(0);
    let longer = Record::decode(&bytes, &snapshot);
    assert!(matches!(longer, Err(WorkingSetError::Length { .. })));
}

#[test]
fn a_set_of_another_snapshot_is_refused() {
    let snapshot = sample::sample(2, 1);
    let bytes = record(&snapshot).encode();
    let mut other = snapshot;
    other.process.monotonic_ns += 1;
    let found = Record::decode(&bytes, &other);
    assert_eq!(found, Err(WorkingSetError::OtherSnapshot));
}

#[test]
fn runs_outside_of_what_can_be_prepared_are_refused() {
    let snapshot = sample::sample(2, 1);
    let good = record(&snapshot);
    let stack = snapshot.mappings.iter().find(|m| !preparable(m)).unwrap();
    let one = |address| TouchRun {
        address,
        pages: 1,
        ..good.runs[0]
    };
    let mapping = snapshot.mappings.iter().find(|m| preparable(m)).unwrap();
    let across = TouchRun {
        pages: ((mapping.range.end - mapping.range.start) / PAGE_SIZE + 1) as u32,
        ..good.runs[0]
    };
    for run in [one(0), one(stack.range.start), across] {
        let bytes = Record {
            runs: vec![run],
            ..good.clone()
        }
        .encode();
        let found = Record::decode(&bytes, &snapshot);
        let address = run.address;
        assert_eq!(found, Err(WorkingSetError::NoSuchPages { address }));
    }
}

/// The bytes with all checksums right.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let digest = blake3::hash(&bytes[HEADER..]);
    bytes[88..120].copy_from_slice(digest.as_bytes());
    let digest = blake3::hash(&bytes[..120]);
    bytes[120..HEADER].copy_from_slice(digest.as_bytes());
    bytes
}

prop_compose! {
    fn run()(
        gap in 0u64..9,
        pages in 1u32..9,
        touched in 1u16..,
        share in 0u16..,
        order in prop::option::of(0u32..1000),
        treatment in 0usize..3,
    ) -> (u64, TouchRun) {
        let treatment = [Treatment::None, Treatment::Map, Treatment::Copy][treatment];
        let written = share.min(touched);
        (gap, TouchRun { address: 0, pages, written, touched, order, treatment })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_encoded_is_decoded(
        snapshot in arbitrary::snapshot(),
        spaced in prop::collection::vec(run(), 0..40),
        version in 1u64..,
        (on, invocations, horizon, residual, gain_ns) in any::<(bool, u64, u32, u32, i64)>(),
    ) {
        let mut at = 0x10_0000;
        let runs = spaced.into_iter().map(|(gap, run)| {
            let run = TouchRun { address: at + gap * PAGE_SIZE, ..run };
            at = run.range().end;
            run
        }).collect();
        let snapshot = SnapshotBinding::of(&snapshot);
        let record = Record { snapshot, version, on, invocations, horizon, residual, gain_ns, runs };
        prop_assert_eq!(Record::decode_unbound(&record.encode()), Ok(record));
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        prop_assert!(Record::decode_unbound(&bytes).is_err());
    }

    /// The checksums are right, so this reaches the entries. What is accepted gives the same bytes again.
    #[test]
    fn a_forged_file_is_refused_or_canonical(
        changes in prop::collection::vec(any::<(prop::sample::Index, u8)>(), 1..6),
    ) {
        let snapshot = sample::sample(2, 1);
        let mut bytes = record(&snapshot).encode();
        for (at, value) in changes {
            // Not the checksums themselves, which are put right.
            let places = (8..88).chain(HEADER..bytes.len()).collect::<Vec<_>>();
            bytes[places[at.index(places.len())]] = value;
        }
        let bytes = sealed(bytes);
        if let Ok(record) = Record::decode_unbound(&bytes) {
            prop_assert_eq!(record.encode(), bytes.clone());
        }
        let _ = Record::decode(&bytes, &snapshot);
    }
}
