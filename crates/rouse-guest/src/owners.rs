//! What each page of a guest's memory belongs to: which kind of mapping of the function's processes, or the guest's kernel.
//!
//! The agent looks when the function is stopped for a snapshot; the host sees only pages. It is advice: nothing that is
//! restored depends on it, so that a guest that lies is restored slower, and nothing else.
//!
//! ```text
//!  page      0        3   4                 20
//!            | kernel | . | heap            | ...        runs, from page 0 on, without gaps
//!  bytes     (3, k)   (1, .)  (16, h)                    each a varint: pages << 4 | owner
//! ```

use std::ops::Range;

/// Memory of a guest is not larger, in pages: 4 GiB, beyond what a machine can have.
pub const MOST_PAGES: u64 = 1 << 20;
/// A table is not longer, bytes: a run takes one byte for up to seven pages, so that none has more bytes than pages.
pub const MOST_BYTES: usize = 1 << 20;
/// Bytes of a table in one message: twice as many digits, half of what a message may be.
const PART: usize = 64 << 10;

/// Whom a page belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Owner {
    /// No memory is there, or nobody knows.
    Unknown = 0,
    /// The guest's kernel has no use for it.
    Free = 1,
    /// The kernel itself: its program, its tables, its objects.
    Kernel = 2,
    /// Page tables.
    PageTable = 3,
    /// Files that no process of the function has mapped.
    PageCache = 4,
    /// Processes that are not the function's: the agent.
    Other = 5,
    /// The function's: its programs and libraries, as they are executed.
    Code = 6,
    /// The function's: other parts of files that it has mapped, as they are on disk.
    File = 7,
    /// The function's: parts of files that it has changed, as its variables.
    Data = 8,
    /// The function's: its heap (`brk`).
    Heap = 9,
    /// The function's: stacks.
    Stack = 10,
    /// The function's: other memory of its own.
    Anonymous = 11,
}

impl Owner {
    /// All, by their numbers.
    pub const ALL: [Self; 12] = [
        Self::Unknown,
        Self::Free,
        Self::Kernel,
        Self::PageTable,
        Self::PageCache,
        Self::Other,
        Self::Code,
        Self::File,
        Self::Data,
        Self::Heap,
        Self::Stack,
        Self::Anonymous,
    ];

    /// Name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Free => "free",
            Self::Kernel => "kernel",
            Self::PageTable => "page table",
            Self::PageCache => "page cache",
            Self::Other => "other",
            Self::Code => "code",
            Self::File => "file",
            Self::Data => "data",
            Self::Heap => "heap",
            Self::Stack => "stack",
            Self::Anonymous => "anonymous",
        }
    }
}

/// A table that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OwnersError {
    /// It ends within a run.
    #[error("the table of owners is cut off")]
    Cut,
    /// A number that is longer than it need be, or than any can be.
    #[error("byte {0} of the table of owners begins no number")]
    Number(usize),
    /// An owner that is not known.
    #[error("the table of owners names owner {0}, which is none")]
    Owner(u64),
    /// A run of no pages, or one that the run before should have been a part of.
    #[error("run {0} of the table of owners is empty, or goes on with the one before")]
    Run(usize),
    /// More pages than any machine has.
    #[error("the table of owners is of more than {MOST_PAGES} pages")]
    Pages,
    /// A part that is empty, or not hexadecimal.
    #[error("a part of the table of owners is empty, or no bytes")]
    Part,
    /// Too many parts.
    #[error("the table of owners is longer than {MOST_BYTES} bytes")]
    Long,
}

/// The owners of all pages, from page 0 on.
///
/// Invariant: no run is empty, no two neighbours have the same owner, and all have [`MOST_PAGES`] pages together at most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owners {
    /// First page behind each run, and the owner of the run.
    runs: Vec<(u64, Owner)>,
}

impl Owners {
    /// Of pages one by one. What lies beyond [`MOST_PAGES`] is left out.
    #[must_use]
    pub fn of(pages: &[Owner]) -> Self {
        let mut runs: Vec<(u64, Owner)> = Vec::new();
        for (end, owner) in (1..=MOST_PAGES).zip(pages) {
            match runs.last_mut() {
                Some(last) if last.1 == *owner => last.0 = end,
                _ => runs.push((end, *owner)),
            }
        }
        Self { runs }
    }

    /// Is nothing known?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Of how many pages it tells.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.runs.last().map_or(0, |(end, _)| *end)
    }

    /// Runs of pages of one owner each, in order, without gaps.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, Owner)> {
        let begins = std::iter::once(0).chain(self.runs.iter().map(|(end, _)| *end));
        (begins.zip(&self.runs)).map(|(begin, (end, owner))| (begin..*end, *owner))
    }

    /// Whom a page belongs to. A page of which nothing is said belongs to nobody that is known.
    #[must_use]
    pub fn of_page(&self, page: u64) -> Owner {
        let run = self.runs.partition_point(|(end, _)| *end <= page);
        (self.runs.get(run)).map_or(Owner::Unknown, |(_, owner)| *owner)
    }

    /// The table. The same owners always give the same bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (range, owner) in self.runs() {
            let mut number = (range.end - range.start) << 4 | owner as u64;
            while number >= 0x80 {
                bytes.push(number as u8 | 0x80);
                number >>= 7;
            }
            bytes.push(number as u8);
        }
        bytes
    }

    /// The table in parts, as hexadecimal digits: one message each.
    pub fn parts(&self) -> impl Iterator<Item = String> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digits = |byte: &u8| [byte >> 4, byte & 0xf].map(|half| DIGITS[usize::from(half)]);
        let bytes = self.encode();
        let parts: Vec<String> = (bytes.chunks(PART))
            .map(|part| part.iter().flat_map(digits).map(char::from).collect())
            .collect();
        parts.into_iter()
    }

    /// Reads a table.
    ///
    /// # Errors
    /// Whatever [`Self::encode`] would not have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, OwnersError> {
        let mut runs: Vec<(u64, Owner)> = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (number, length) = number(&bytes[at..]).ok_or(OwnersError::Cut)?;
            // The last byte of a number that is as short as it can be is not zero, unless it is the only one.
            if length > 4 || (length > 1 && bytes[at + length - 1] == 0) {
                return Err(OwnersError::Number(at));
            }
            at += length;
            let owner = number & 0xf;
            let owner = usize::try_from(owner)
                .ok()
                .and_then(|index| Owner::ALL.get(index).copied())
                .ok_or(OwnersError::Owner(owner))?;
            let (begin, before) = match runs.last() {
                Some((end, owner)) => (*end, Some(*owner)),
                None => (0, None),
            };
            let end = begin + (number >> 4);
            if end == begin || before == Some(owner) {
                return Err(OwnersError::Run(runs.len()));
            }
            if end > MOST_PAGES {
                return Err(OwnersError::Pages);
            }
            runs.push((end, owner));
        }
        Ok(Self { runs })
    }
}

/// A table of which parts have come.
#[derive(Debug, Default)]
pub struct Parts(Vec<u8>);

impl Parts {
    /// One more part. None is empty, so that there are not endlessly many.
    ///
    /// # Errors
    /// If it is no part, or the table becomes too long.
    pub fn push(&mut self, part: &str) -> Result<(), OwnersError> {
        let (pairs, rest) = part.as_bytes().as_chunks::<2>();
        if pairs.is_empty() || !rest.is_empty() {
            return Err(OwnersError::Part);
        }
        if self.0.len() + pairs.len() > MOST_BYTES {
            return Err(OwnersError::Long);
        }
        for [high, low] in pairs {
            let digit = |digit: u8| char::from(digit).to_digit(16).ok_or(OwnersError::Part);
            self.0.push((digit(*high)? << 4 | digit(*low)?) as u8);
        }
        Ok(())
    }

    /// The owners, when all parts have come. None at all: nothing is known.
    ///
    /// # Errors
    /// See [`Owners::decode`].
    pub fn finish(self) -> Result<Owners, OwnersError> {
        Owners::decode(&self.0)
    }
}

/// A number and how many bytes it takes; what it has beyond four bytes is not looked at. `None` if it does not end.
fn number(bytes: &[u8]) -> Option<(u64, usize)> {
    let last = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let value = (bytes[..=last].iter().take(4).rev())
        .fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, last + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages() -> impl Strategy<Value = Vec<Owner>> {
        let run = (prop::sample::select(Owner::ALL.to_vec()), 1_usize..300);
        prop::collection::vec(run, 0..40).prop_map(|runs| {
            (runs.into_iter())
                .flat_map(|(owner, pages)| std::iter::repeat_n(owner, pages))
                .collect()
        })
    }

    #[test]
    fn owners_have_the_numbers_of_their_places() {
        for (number, owner) in Owner::ALL.into_iter().enumerate() {
            assert_eq!(owner as usize, number);
        }
    }

    #[test]
    fn what_nobody_would_write_is_refused() {
        let cases: [(&[u8], OwnersError); 9] = [
            (&[0x80], OwnersError::Cut),
            (&[0x19, 0xff], OwnersError::Cut),
            (&[0x99, 0x00], OwnersError::Number(0)),
            (
                &[0x19, 0x80, 0x80, 0x80, 0x80, 0x01],
                OwnersError::Number(1),
            ),
            (&[0x1c], OwnersError::Owner(12)),
            (&[0x1f], OwnersError::Owner(15)),
            (&[0x09], OwnersError::Run(0)),
            (&[0x19, 0x2a, 0x1a], OwnersError::Run(2)),
            (&[0x19, 0x82, 0x80, 0x80, 0x08], OwnersError::Pages),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(Owners::decode(bytes), Err(wanted), "{bytes:?}");
        }
        // As large as it may be: each end of it.
        let whole = Owners::decode(&[0x82, 0x80, 0x80, 0x08]).expect("it fits");
        assert_eq!(whole.pages(), MOST_PAGES);
    }

    #[test]
    fn an_endless_memory_is_cut() {
        let pages = vec![Owner::Free; MOST_PAGES as usize + 1];
        assert_eq!(Owners::of(&pages).pages(), MOST_PAGES);
    }

    #[test]
    fn parts_are_bounded() {
        for part in ["", "1", "1g", "+1", "é", "123"] {
            assert_eq!(
                Parts::default().push(part),
                Err(OwnersError::Part),
                "{part}"
            );
        }
        let mut parts = Parts::default();
        let part = "00".repeat(MOST_BYTES);
        parts.push(&part).expect("it is just as long");
        assert_eq!(parts.push("00"), Err(OwnersError::Long));
    }

    #[test]
    fn a_table_of_many_parts_is_put_together() {
        let pages: Vec<Owner> = (0..3 * PART)
            .map(|page| Owner::ALL[page % Owner::ALL.len()])
            .collect();
        let owners = Owners::of(&pages);
        let mut parts = Parts::default();
        let mut count = 0;
        for part in owners.parts() {
            parts.push(&part).expect("it is a part");
            count += 1;
        }
        assert_eq!((count, parts.finish()), (3, Ok(owners)));
    }

    proptest! {
        #[test]
        fn a_table_says_what_each_page_is(pages in pages()) {
            let owners = Owners::of(&pages);
            let bytes = owners.encode();
            prop_assert!(bytes.len() <= pages.len());
            let read = Owners::decode(&bytes);
            prop_assert_eq!(read.as_ref(), Ok(&owners));
            for (page, owner) in pages.iter().enumerate() {
                prop_assert_eq!(owners.of_page(page as u64), *owner);
            }
            prop_assert_eq!(owners.of_page(pages.len() as u64), Owner::Unknown);
            let told: Vec<Owner> = owners
                .runs()
                .flat_map(|(range, owner)| range.map(move |_| owner))
                .collect();
            prop_assert_eq!(told, pages);
        }

        #[test]
        fn what_is_read_is_what_would_be_written(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(owners) = Owners::decode(&bytes) {
                prop_assert_eq!(owners.encode(), bytes);
            }
        }
    }
}
