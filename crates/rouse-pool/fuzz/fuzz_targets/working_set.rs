//! Any bytes as a working set, with its checksums made right: what is accepted gives the same bytes again, and what is
//! accepted for a snapshot names only pages of it.

#![no_main]

use std::ops::Range;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rouse_snapshot::manifest::{ManifestKey, decode_with_map, verify};
use rouse_snapshot::model::ProcessSnapshot;
use rouse_snapshot::working_set::{Record, SnapshotBinding};

/// Bytes of the header, of an entry, and where parts of the header lie (`working_set/layout.rs`).
const HEADER: usize = 152;
const ENTRY: usize = 24;
const SNAPSHOT: Range<usize> = 56..88;

/// The golden manifest's snapshot, and an empty working set of it.
static OF: LazyLock<(ProcessSnapshot, Vec<u8>)> = LazyLock::new(|| {
    let golden = include_bytes!("../../../rouse-snapshot/tests/golden/v3.manifest");
    let manifest = verify(golden, &ManifestKey::new([0x44; 32])).and_then(decode_with_map);
    let snapshot = manifest.expect("the golden file").snapshot;
    let empty = Record {
        snapshot: SnapshotBinding::of(&snapshot),
        version: 0,
        on: true,
        invocations: 0,
        horizon: 0,
        residual: 0,
        gain_ns: 0,
        runs: Vec::new(),
    };
    let bytes = empty.encode();
    (snapshot, bytes)
});

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    if bytes.len() >= HEADER {
        bytes.truncate(bytes.len() - (bytes.len() - HEADER) % ENTRY);
        let entries = (bytes.len() - HEADER) / ENTRY;
        bytes[48..52].copy_from_slice(&(entries as u32).to_le_bytes());
        // Magic and version always, the snapshot for half of all.
        bytes[..12].copy_from_slice(&OF.1[..12]);
        if bytes[SNAPSHOT.start] % 2 == 0 {
            bytes[SNAPSHOT].copy_from_slice(&OF.1[SNAPSHOT]);
        }
        let entries = blake3::hash(&bytes[HEADER..]);
        bytes[88..120].copy_from_slice(entries.as_bytes());
        let header = blake3::hash(&bytes[..120]);
        bytes[120..HEADER].copy_from_slice(header.as_bytes());
    }
    if let Ok(record) = Record::decode_unbound(&bytes) {
        assert!(record.encode() == bytes);
        assert!(record.predicted_pages() < 1 << 52);
    }
    if let Ok(record) = Record::decode(&bytes, &OF.0) {
        let mappings = &OF.0.mappings;
        for range in record.runs.iter().map(|run| run.range()) {
            let inside = |m: &std::ops::Range<u64>| m.start <= range.start && range.end <= m.end;
            assert!(mappings.iter().any(|m| inside(&m.range)));
        }
    }
});
