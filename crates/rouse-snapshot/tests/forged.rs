//! Manifests whose checksums are right and whose contents are not: each is refused for its own
//! reason. Offsets are written out here on purpose: the test is a second reading of the format.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod sample;

use rouse_snapshot::Invalid;
use rouse_snapshot::manifest::{ManifestError, WireError, decode, encode};

const HEADER: usize = 192;
const ENTRY: usize = 64;

/// A manifest that can be changed and then signed again.
struct Forgery {
    bytes: Vec<u8>,
}

impl Forgery {
    fn new() -> Self {
        Self {
            bytes: encode(&sample::sample(2, 1)),
        }
    }

    fn set_u32(mut self, at: usize, value: u32) -> Self {
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn set_u64(mut self, at: usize, value: u64) -> Self {
        self.bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().unwrap())
    }

    fn count(&self) -> usize {
        u32::from_le_bytes(self.bytes[20..24].try_into().unwrap()) as usize
    }

    /// Position of the table's entry of the section with this type.
    fn entry(&self, kind: u32) -> usize {
        (0..self.count())
            .map(|index| HEADER + index * ENTRY)
            .find(|at| self.bytes[*at..at + 4] == kind.to_le_bytes())
            .unwrap()
    }

    /// Position of a section's first byte.
    fn contents(&self, kind: u32) -> usize {
        self.u64(self.entry(kind) + 16) as usize
    }

    /// Makes all checksums right again and decodes.
    fn decode(mut self) -> ManifestError {
        let table_end = HEADER + self.count() * ENTRY;
        for at in (HEADER..table_end).step_by(ENTRY) {
            let (offset, len) = (self.u64(at + 16) as usize, self.u64(at + 24) as usize);
            if let Some(contents) = offset
                .checked_add(len)
                .and_then(|end| self.bytes.get(offset..end))
            {
                let digest = blake3::hash(contents);
                self.bytes[at + 32..at + 64].copy_from_slice(digest.as_bytes());
            }
        }
        let table = blake3::hash(&self.bytes[HEADER..table_end]);
        self.bytes[128..160].copy_from_slice(table.as_bytes());
        let header = blake3::hash(&self.bytes[..160]);
        self.bytes[160..192].copy_from_slice(header.as_bytes());
        decode(&self.bytes).unwrap_err()
    }
}

#[test]
fn another_format_version() {
    let error = Forgery::new().set_u32(8, 4).decode();
    assert_eq!(
        error.to_string(),
        "the manifest has format version 4; this rouse reads version 3"
    );
}

#[test]
fn another_architecture() {
    let error = Forgery::new().set_u32(12, 183).decode();
    assert!(matches!(error, ManifestError::Architecture { found: 183 }));
}

#[test]
fn another_sandbox_kind() {
    let error = Forgery::new().set_u32(16, 4).decode();
    assert!(matches!(error, ManifestError::SandboxKind { found: 4 }));
    let error = Forgery::new().set_u32(16, 2).decode();
    assert_eq!(
        error.to_string(),
        "the manifest is of a virtual machine, not of a process"
    );
}

#[test]
fn another_host_in_the_header() {
    for at in [32, 64, 96] {
        let error = Forgery::new().set_u32(at, 0x1234_5678).decode();
        assert!(matches!(error, ManifestError::HostDigest));
    }
}

#[test]
fn an_unknown_critical_section() {
    let forgery = Forgery::new();
    let at = forgery.entry(8);
    let error = forgery.set_u32(at, 77).decode();
    assert!(matches!(error, ManifestError::UnknownCritical { kind: 77 }));
}

#[test]
fn an_unknown_section_that_is_not_critical_is_skipped_but_the_rest_must_be_there() {
    let forgery = Forgery::new();
    let at = forgery.entry(8);
    let error = forgery.set_u32(at, 77).set_u32(at + 8, 0).decode();
    assert!(matches!(error, ManifestError::Missing { section: "tmp" }));
}

#[test]
fn an_unknown_section_version() {
    let forgery = Forgery::new();
    let at = forgery.entry(3);
    let error = forgery.set_u32(at + 4, 9).decode();
    assert!(matches!(
        error,
        ManifestError::SectionVersion {
            section: "threads",
            found: 9
        }
    ));
}

#[test]
fn unknown_flags_and_reserved_fields() {
    for field in [8, 12] {
        let forgery = Forgery::new();
        let at = forgery.entry(3);
        let error = forgery.set_u32(at + field, 3).decode();
        assert!(matches!(error, ManifestError::UnknownFlags { kind: 3 }));
    }
}

#[test]
fn a_section_twice() {
    let forgery = Forgery::new();
    let at = forgery.entry(8);
    let error = forgery.set_u32(at, 7).decode();
    assert!(matches!(error, ManifestError::Duplicate { kind: 7 }));
}

#[test]
fn a_section_beyond_the_end() {
    for (field, value) in [(16, u64::MAX), (16, 1 << 40), (24, u64::MAX), (24, 1 << 40)] {
        let forgery = Forgery::new();
        let at = forgery.entry(4);
        let error = forgery.set_u64(at + field, value).decode();
        assert!(matches!(error, ManifestError::OutOfRange { kind: 4 }));
    }
}

#[test]
fn a_section_over_the_table() {
    let forgery = Forgery::new();
    let at = forgery.entry(1);
    let error = forgery.set_u64(at + 16, 0).decode();
    assert!(matches!(error, ManifestError::Overlap { kind: 1 }));
}

#[test]
fn overlapping_sections() {
    let forgery = Forgery::new();
    let (at, before) = (forgery.entry(5), forgery.contents(4) as u64);
    let error = forgery.set_u64(at + 16, before).decode();
    assert!(matches!(error, ManifestError::Overlap { kind: 5 }));
}

#[test]
fn a_gap_between_sections() {
    let forgery = Forgery::new();
    let at = forgery.entry(5);
    let start = forgery.u64(at + 16);
    let error = forgery.set_u64(at + 16, start + 64).decode();
    assert!(matches!(error, ManifestError::Gap { .. }));
}

#[test]
fn bytes_behind_the_last_section() {
    let mut forgery = Forgery::new();
    forgery.bytes.extend([0; 64]);
    let len = forgery.bytes.len() as u64;
    let error = forgery.set_u64(24, len).decode();
    assert!(matches!(error, ManifestError::Gap { .. }));
}

#[test]
fn padding_that_is_not_zero() {
    let mut forgery = Forgery::new();
    let at = forgery.entry(1);
    let end = (forgery.u64(at + 16) + forgery.u64(at + 24)) as usize;
    forgery.bytes[end] = 1;
    assert!(matches!(
        forgery.decode(),
        ManifestError::Padding { kind: 2 }
    ));
}

#[test]
fn more_sections_than_fit() {
    // The table cannot be signed again: there are no bytes for it.
    let mut bytes = Forgery::new().set_u32(20, u32::MAX).bytes;
    let header = blake3::hash(&bytes[..160]);
    bytes[160..192].copy_from_slice(header.as_bytes());
    assert!(matches!(decode(&bytes), Err(ManifestError::Short { .. })));
}

#[test]
fn a_list_longer_than_its_section() {
    for count in [u64::MAX, 1 << 32, 1000] {
        let forgery = Forgery::new();
        let at = forgery.contents(4);
        let error = forgery.set_u64(at, count).decode();
        let source = WireError::Count { count };
        assert!(
            matches!(error, ManifestError::Section { section: "mappings", source: found } if found == source)
        );
    }
}

#[test]
fn a_list_shorter_than_its_section() {
    let forgery = Forgery::new();
    let at = forgery.contents(5);
    let error = forgery.set_u64(at, 0).decode();
    let trailing = |source| matches!(source, WireError::Trailing { .. });
    assert!(
        matches!(error, ManifestError::Section { section: "files", source } if trailing(source))
    );
}

#[test]
fn a_tag_without_a_meaning() {
    let mut forgery = Forgery::new();
    let at = forgery.contents(6) + 8 + 4;
    forgery.bytes[at] = 200;
    let error = forgery.decode();
    let source = WireError::Tag {
        tag: 200,
        of: "DescriptionKind",
    };
    assert!(
        matches!(error, ManifestError::Section { section: "descriptions", source: found } if found == source)
    );
}

#[test]
fn contents_that_make_no_sense() {
    let forgery = Forgery::new();
    let at = forgery.contents(4) + 8;
    let error = forgery.set_u64(at, 1).decode();
    assert!(matches!(
        error,
        ManifestError::Invalid(Invalid::Mapping { start: 1, .. })
    ));
}
