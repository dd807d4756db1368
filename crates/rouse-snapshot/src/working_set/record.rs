//! What is known of a function's working set, as bytes and back.

use std::mem::size_of;
use std::ops::Range;

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::error::WorkingSetError;
use super::layout::{Entry, FORMAT_VERSION, Header, MAGIC, NO_ORDER, OFF};
use super::{WorkingSet, pages};
use crate::model::{Backing, Mapping, PAGE_SIZE, ProcessSnapshot};

/// One past the highest page of user memory.
const PAGES_END: u64 = 0x7fff_ffff_f000 / PAGE_SIZE;

/// Says which snapshot a record belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotBinding([u8; 32]);

impl SnapshotBinding {
    /// The binding of a snapshot: a digest of what tells it from every other, among them the
    /// nanosecond at which it was taken and where its pages are.
    pub fn of(snapshot: &ProcessSnapshot) -> Self {
        let mut hasher = blake3::Hasher::new();
        let mut number = |n: u64| {
            hasher.update(&n.to_le_bytes());
        };
        number(snapshot.process.monotonic_ns);
        number(snapshot.process.boottime_ns);
        number(snapshot.pool_pages);
        for mapping in &snapshot.mappings {
            number(mapping.range.start);
            number(mapping.range.end);
            number(u64::from(mapping.prot));
            number(mapping.saved.len() as u64);
            for run in &mapping.saved {
                number(run.address);
                number(run.pages);
                number(run.pool_page);
            }
        }
        hasher.update(&snapshot.host.boot_id);
        hasher.update(snapshot.host.kernel.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }
}

impl From<[u8; 32]> for SnapshotBinding {
    fn from(digest: [u8; 32]) -> Self {
        Self(digest)
    }
}

/// What is done with a page before an instance starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// Nothing: too few invocations touch it.
    None,
    /// Mapped ahead where mappings are shared with later instances.
    Map,
    /// Copied ahead in each instance.
    Copy,
}

/// A run of pages that are touched equally often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TouchRun {
    /// Address of the first page.
    pub address: u64,
    /// Number of pages, at least one.
    pub pages: u32,
    /// Share of invocations that write the pages, in 1/65535.
    pub written: u16,
    /// Share of invocations that touch the pages, in 1/65535; not less than `written`, not zero.
    pub touched: u16,
    /// Place of the first page in the order of first touches, if that was observed; the others follow it.
    pub order: Option<u32>,
    /// What the present version of the set does with them.
    pub treatment: Treatment,
}

impl TouchRun {
    /// The addresses.
    pub fn range(&self) -> Range<u64> {
        self.address..self.address + u64::from(self.pages) * PAGE_SIZE
    }
}

/// Everything that is stored of a function's working set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The snapshot that the addresses belong to.
    pub snapshot: SnapshotBinding,
    /// Counts the sets that were predicted; 0 before the first one.
    pub version: u64,
    /// Are boots prepared with the set? Not when that did not pay.
    pub on: bool,
    /// Invocations that answered.
    pub invocations: u64,
    /// Observations since the last recording began.
    pub horizon: u32,
    /// Pages that an invocation touches although they were not predicted, on average.
    pub residual: u32,
    /// What the set saves an invocation on average, nanoseconds; negative when it costs more.
    pub gain_ns: i64,
    /// Pages, sorted by address, disjoint.
    pub runs: Vec<TouchRun>,
}

impl Record {
    /// The set that boots are to be prepared with, whether it is switched on or off.
    pub fn working_set(&self) -> WorkingSet {
        let ranges = |treatment| {
            let treated = self.runs.iter().filter(|run| run.treatment == treatment);
            treated.map(TouchRun::range).collect()
        };
        WorkingSet {
            written: ranges(Treatment::Copy),
            read: ranges(Treatment::Map),
        }
    }

    /// The bytes of the file. The same record always gives the same bytes.
    pub fn encode(&self) -> Vec<u8> {
        let entries: Vec<Entry> = self.runs.iter().map(entry).collect();
        let mut header = Header {
            magic: MAGIC,
            format_version: U32::new(FORMAT_VERSION),
            flags: U32::new(if self.on { 0 } else { OFF }),
            version: U64::new(self.version),
            invocations: U64::new(self.invocations),
            horizon: U32::new(self.horizon),
            residual: U32::new(self.residual),
            gain_ns: I64::new(self.gain_ns),
            entries: U32::new(entries.len() as u32),
            reserved: U32::ZERO,
            snapshot: self.snapshot.0,
            entries_digest: *blake3::hash(entries.as_bytes()).as_bytes(),
            header_digest: [0; 32],
        };
        header.header_digest = header.digest();
        [header.as_bytes(), entries.as_bytes()].concat()
    }

    /// Reads a record for `snapshot`.
    ///
    /// # Errors
    /// Anything that is damaged, unknown, inconsistent, or does not fit the snapshot.
    pub fn decode(bytes: &[u8], snapshot: &ProcessSnapshot) -> Result<Self, WorkingSetError> {
        let record = Self::decode_unbound(bytes)?;
        if record.snapshot != SnapshotBinding::of(snapshot) {
            return Err(WorkingSetError::OtherSnapshot);
        }
        record.check_places(snapshot)?;
        Ok(record)
    }

    /// Reads a record of whatever snapshot: for tools that only show it.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), but for what only the snapshot can tell.
    pub fn decode_unbound(bytes: &[u8]) -> Result<Self, WorkingSetError> {
        let (header, rest) = Header::ref_from_prefix(bytes)
            .map_err(|_| WorkingSetError::Short { found: bytes.len() })?;
        if header.magic != MAGIC {
            return Err(WorkingSetError::Magic);
        }
        if header.format_version != FORMAT_VERSION {
            return Err(WorkingSetError::FormatVersion {
                found: header.format_version.get(),
            });
        }
        if header.header_digest != header.digest() {
            return Err(WorkingSetError::HeaderChecksum);
        }
        if header.flags.get() & !OFF != 0 || header.reserved != 0 {
            return Err(WorkingSetError::UnknownFlags);
        }
        let expected = size_of::<Header>() as u64
            + u64::from(header.entries.get()) * size_of::<Entry>() as u64;
        if expected != bytes.len() as u64 {
            return Err(WorkingSetError::Length {
                expected,
                found: bytes.len() as u64,
            });
        }
        if *blake3::hash(rest).as_bytes() != header.entries_digest {
            return Err(WorkingSetError::EntriesChecksum);
        }
        // The length is that of whole entries, which have no alignment.
        let entries = <[Entry]>::ref_from_bytes(rest)
            .map_err(|_| WorkingSetError::Short { found: bytes.len() })?;
        let mut runs = Vec::with_capacity(entries.len());
        let mut free_from = 0;
        for (index, entry) in entries.iter().enumerate() {
            let wrong = |why| WorkingSetError::Entry { index, why };
            let run = run(entry).map_err(wrong)?;
            if run.address < free_from {
                return Err(wrong("it is not sorted, or overlaps the one before"));
            }
            if header.version == 0 && run.treatment != Treatment::None {
                return Err(wrong("it is predicted before the first prediction"));
            }
            free_from = run.range().end;
            runs.push(run);
        }
        Ok(Self {
            snapshot: SnapshotBinding(header.snapshot),
            version: header.version.get(),
            on: header.flags.get() & OFF == 0,
            invocations: header.invocations.get(),
            horizon: header.horizon.get(),
            residual: header.residual.get(),
            gain_ns: header.gain_ns.get(),
            runs,
        })
    }

    /// Every run must lie inside of one mapping that boots can prepare: its addresses go into system calls.
    fn check_places(&self, snapshot: &ProcessSnapshot) -> Result<(), WorkingSetError> {
        let mut mappings = snapshot.mappings.iter().filter(|m| preparable(m));
        let mut current = mappings.next();
        for run in &self.runs {
            let range = run.range();
            while current.is_some_and(|m| m.range.end <= range.start) {
                current = mappings.next();
            }
            let inside =
                current.is_some_and(|m| m.range.start <= range.start && range.end <= m.range.end);
            if !inside {
                return Err(WorkingSetError::NoSuchPages {
                    address: run.address,
                });
            }
        }
        Ok(())
    }

    /// Pages that the set copies or maps ahead.
    pub fn predicted_pages(&self) -> u64 {
        let set = self.working_set();
        pages(&set.written) + pages(&set.read)
    }
}

/// Can pages of this mapping be made ready ahead? A stack is filled when it is made; the rest cannot be copied on write.
pub fn preparable(mapping: &Mapping) -> bool {
    matches!(
        mapping.backing,
        Backing::Anonymous | Backing::PrivateFile { .. }
    )
}

fn entry(run: &TouchRun) -> Entry {
    Entry {
        page: U64::new(run.address / PAGE_SIZE),
        pages: U32::new(run.pages),
        written: U16::new(run.written),
        touched: U16::new(run.touched),
        order: U32::new(run.order.unwrap_or(NO_ORDER)),
        treatment: match run.treatment {
            Treatment::None => 0,
            Treatment::Map => 1,
            Treatment::Copy => 2,
        },
        reserved: [0; 3],
    }
}

fn run(entry: &Entry) -> Result<TouchRun, &'static str> {
    let (page, pages) = (entry.page.get(), u64::from(entry.pages.get()));
    if pages == 0 {
        return Err("it has no pages");
    }
    if page.checked_add(pages).is_none_or(|end| end > PAGES_END) {
        return Err("it reaches beyond the user addresses");
    }
    if entry.touched == 0 || entry.written > entry.touched {
        return Err("it is written more often than it is touched, or never touched");
    }
    if entry.reserved != [0; 3] {
        return Err("its reserved bytes are not zero");
    }
    let order = match entry.order.get() {
        NO_ORDER => None,
        order => match u64::from(order) + pages <= u64::from(NO_ORDER) {
            true => Some(order),
            false => return Err("its order is too large"),
        },
    };
    Ok(TouchRun {
        address: page * PAGE_SIZE,
        pages: entry.pages.get(),
        written: entry.written.get(),
        touched: entry.touched.get(),
        order,
        treatment: match entry.treatment {
            0 => Treatment::None,
            1 => Treatment::Map,
            2 => Treatment::Copy,
            _ => return Err("there is no such treatment"),
        },
    })
}
