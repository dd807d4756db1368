//! Header, section table and sections: everything about a manifest but what the sections mean.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::{ManifestError, WireError};
use super::layout::{
    ARCHITECTURE, CRITICAL, FORMAT_VERSION, Header, MAGIC, SECTION_ALIGN, Section, SectionEntry,
};
use super::subject::SnapshotKind;
use super::wire::{Input, Wire};
use crate::model::{HostFingerprint, MachineHost};

/// What the header says of the host, 32 bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostDigests {
    /// BLAKE3 of [`HostFingerprint::kernel`] or [`MachineHost::kernel`].
    pub kernel: [u8; 32],
    /// [`HostFingerprint::vdso`]; of a machine, BLAKE3 of [`MachineHost::kvm`].
    pub vdso: [u8; 32],
    /// [`HostFingerprint::cpu`] or [`MachineHost::cpu`].
    pub cpu: [u8; 32],
}

impl HostDigests {
    /// The digests of a fingerprint.
    pub fn of(host: &HostFingerprint) -> Self {
        let kernel = *blake3::hash(host.kernel.as_bytes()).as_bytes();
        Self {
            kernel,
            vdso: host.vdso,
            cpu: host.cpu,
        }
    }

    /// Of what belongs to no host.
    pub fn none() -> Self {
        Self {
            kernel: [0; 32],
            vdso: [0; 32],
            cpu: [0; 32],
        }
    }

    /// The digests of a host of machines.
    pub fn of_machine(host: &MachineHost) -> Self {
        Self {
            kernel: *blake3::hash(host.kernel.as_bytes()).as_bytes(),
            vdso: *blake3::hash(host.kvm.as_bytes()).as_bytes(),
            cpu: host.cpu,
        }
    }
}

/// Collects sections and lays them out.
pub(super) struct Builder {
    kind: SnapshotKind,
    host: HostDigests,
    sections: Vec<(Section, Vec<u8>)>,
}

impl Builder {
    pub fn new(kind: SnapshotKind, host: HostDigests) -> Self {
        Self {
            kind,
            host,
            sections: Vec::new(),
        }
    }

    pub fn section(&mut self, section: Section, value: &impl Wire) {
        let mut bytes = Vec::new();
        value.put(&mut bytes);
        self.sections.push((section, bytes));
    }

    pub fn finish(self) -> Vec<u8> {
        let mut offset = table_end(self.sections.len() as u64);
        let mut end = offset;
        let mut table = Vec::with_capacity(self.sections.len());
        for (section, bytes) in &self.sections {
            table.push(SectionEntry {
                kind: U32::new(*section as u32),
                version: U32::new(Section::VERSION),
                flags: U32::new(CRITICAL),
                reserved: U32::ZERO,
                offset: U64::new(offset),
                length: U64::new(bytes.len() as u64),
                digest: *blake3::hash(bytes).as_bytes(),
            });
            end = offset + bytes.len() as u64;
            offset = end.next_multiple_of(SECTION_ALIGN);
        }
        let mut header = Header {
            magic: MAGIC,
            format_version: U32::new(FORMAT_VERSION),
            architecture: U32::new(ARCHITECTURE),
            sandbox_kind: U32::new(self.kind as u32),
            section_count: U32::new(self.sections.len() as u32),
            total_len: U64::new(end),
            kernel: self.host.kernel,
            vdso: self.host.vdso,
            cpu: self.host.cpu,
            table_digest: *blake3::hash(table.as_bytes()).as_bytes(),
            header_digest: [0; 32],
        };
        header.header_digest = header.digest();

        let mut out = Vec::with_capacity(end as usize);
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(table.as_bytes());
        for ((_, bytes), entry) in self.sections.iter().zip(&table) {
            out.resize(entry.offset.get() as usize, 0);
            out.extend_from_slice(bytes);
        }
        out
    }
}

/// A manifest whose layout and checksums are all right.
pub(super) struct Container<'a> {
    bytes: &'a [u8],
    kind: SnapshotKind,
    header: &'a Header,
    table: &'a [SectionEntry],
}

impl<'a> Container<'a> {
    /// Checks everything but the meaning of the sections.
    ///
    /// In this order, so that the reason given is the useful one:
    /// - magic and version before the header's checksum: another version may lay out the rest
    ///   of the header differently, and its owner wants to hear "version", not "damaged";
    /// - the header's checksum before any other field is believed;
    /// - the total length before the table, so that a file cut off is called that.
    pub fn open(bytes: &'a [u8]) -> Result<Self, ManifestError> {
        let short = || ManifestError::Short { found: bytes.len() };
        let (header, rest) = Header::ref_from_prefix(bytes).map_err(|_| short())?;
        if header.magic != MAGIC {
            return Err(ManifestError::Magic);
        }
        if header.format_version != FORMAT_VERSION {
            return Err(ManifestError::FormatVersion {
                found: header.format_version.get(),
            });
        }
        if header.header_digest != header.digest() {
            return Err(ManifestError::HeaderChecksum);
        }
        if header.architecture != ARCHITECTURE {
            return Err(ManifestError::Architecture {
                found: header.architecture.get(),
            });
        }
        let found = header.sandbox_kind.get();
        let kind = SnapshotKind::from_number(found).ok_or(ManifestError::SandboxKind { found })?;
        let found = bytes.len() as u64;
        if header.total_len != found {
            return Err(ManifestError::Length {
                expected: header.total_len.get(),
                found,
            });
        }
        let count = header.section_count.get() as usize;
        let (table, _) =
            <[SectionEntry]>::ref_from_prefix_with_elems(rest, count).map_err(|_| short())?;
        if *blake3::hash(table.as_bytes()).as_bytes() != header.table_digest {
            return Err(ManifestError::TableChecksum);
        }
        let container = Self {
            bytes,
            kind,
            header,
            table,
        };
        container.check_sections()?;
        Ok(container)
    }

    pub fn kind(&self) -> SnapshotKind {
        self.kind
    }

    pub fn host_digests(&self) -> HostDigests {
        HostDigests {
            kernel: self.header.kernel,
            vdso: self.header.vdso,
            cpu: self.header.cpu,
        }
    }

    /// The value in a section.
    pub fn read<T: Wire>(&self, section: Section) -> Result<T, ManifestError> {
        let name = section.name();
        self.read_optional(section)?
            .ok_or(ManifestError::Missing { section: name })
    }

    /// The value in a section that may not be there.
    pub fn read_optional<T: Wire>(&self, section: Section) -> Result<Option<T>, ManifestError> {
        let name = section.name();
        let Some(entry) = self.table.iter().find(|entry| entry.kind == section as u32) else {
            return Ok(None);
        };
        let context = |source| ManifestError::Section {
            section: name,
            source,
        };
        let mut input = Input(self.contents(entry));
        let value = T::take(&mut input).map_err(context)?;
        match input.0.len() {
            0 => Ok(Some(value)),
            count => Err(context(WireError::Trailing { count })),
        }
    }

    fn contents(&self, entry: &SectionEntry) -> &'a [u8] {
        let start = entry.offset.get() as usize;
        &self.bytes[start..start + entry.length.get() as usize]
    }

    /// Sections must follow one another in table order, apart by less than the alignment:
    /// overlap, gaps and trailing bytes are then impossible, not just unlikely.
    fn check_sections(&self) -> Result<(), ManifestError> {
        let total = self.bytes.len() as u64;
        let mut end = table_end(self.table.len() as u64);
        let mut seen = Vec::with_capacity(self.table.len());
        for entry in self.table {
            let kind = entry.kind.get();
            check_entry(entry)?;
            seen.push(kind);

            let (start, expected) = (entry.offset.get(), end.next_multiple_of(SECTION_ALIGN));
            let next_end = start
                .checked_add(entry.length.get())
                .filter(|next_end| *next_end <= total)
                .ok_or(ManifestError::OutOfRange { kind })?;
            if start < expected {
                return Err(ManifestError::Overlap { kind });
            }
            if start > expected {
                return Err(ManifestError::Gap {
                    from: expected,
                    to: start,
                });
            }
            if self.bytes[end as usize..start as usize]
                .iter()
                .any(|byte| *byte != 0)
            {
                return Err(ManifestError::Padding { kind });
            }
            if *blake3::hash(self.contents(entry)).as_bytes() != entry.digest {
                return Err(ManifestError::SectionChecksum { kind });
            }
            end = next_end;
        }
        if end != total {
            return Err(ManifestError::Gap {
                from: end,
                to: total,
            });
        }
        seen.sort_unstable();
        match seen.array_windows().find(|[a, b]| a == b) {
            Some([kind, _]) => Err(ManifestError::Duplicate { kind: *kind }),
            None => Ok(()),
        }
    }
}

/// What one entry says on its own.
fn check_entry(entry: &SectionEntry) -> Result<(), ManifestError> {
    let kind = entry.kind.get();
    if entry.flags.get() & !CRITICAL != 0 || entry.reserved != 0 {
        return Err(ManifestError::UnknownFlags { kind });
    }
    match Section::from_kind(kind) {
        Some(section) if entry.version != Section::VERSION => Err(ManifestError::SectionVersion {
            section: section.name(),
            found: entry.version.get(),
        }),
        None if entry.flags == CRITICAL => Err(ManifestError::UnknownCritical { kind }),
        Some(_) | None => Ok(()),
    }
}

fn table_end(sections: u64) -> u64 {
    size_of::<Header>() as u64 + sections * size_of::<SectionEntry>() as u64
}
