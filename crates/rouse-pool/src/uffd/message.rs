//! `struct uffd_msg`.

/// Bytes of a message.
pub(super) const LEN: usize = 32;

const _: () = {
    assert!(size_of::<libc::c_ulonglong>() == 8);
    // The union starts behind the event number and seven reserved bytes.
    assert!(LEN == 8 + 3 * 8);
};

/// Flag of a fault on a page that is present.
const FLAG_MINOR: u64 = 1 << 2;

/// What happened in a watched process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A thread touched an absent page, or one that is not mapped, and waits.
    Fault {
        /// The page's address.
        address: u64,
        /// The thread's number, in its own pid namespace.
        thread: u32,
        /// Is the page there, and only not mapped yet? Reported only where that was asked for.
        present: bool,
    },
    /// The process forked: the child's memory is watched by this new descriptor.
    Fork {
        /// Number of the descriptor in the caller's table.
        fd: i32,
    },
    /// Memory was moved by `mremap`.
    Remap {
        /// Old address.
        from: u64,
        /// New address.
        to: u64,
        /// Bytes.
        len: u64,
    },
    /// Memory was dropped by `madvise`; it stays mapped.
    Remove {
        /// First byte.
        start: u64,
        /// Behind the last.
        end: u64,
    },
    /// Memory was unmapped.
    Unmap {
        /// First byte.
        start: u64,
        /// Behind the last.
        end: u64,
    },
}

/// `None` for an event that was not asked for.
pub(super) fn parse(message: &[u8; LEN]) -> Option<Event> {
    let (words, _) = message.as_chunks::<8>();
    let word = |i: usize| u64::from_ne_bytes(words[i]);
    Some(match message[0] {
        0x12 => Event::Fault {
            address: word(2) & !(super::PAGE - 1),
            thread: word(3) as u32,
            present: word(1) & FLAG_MINOR != 0,
        },
        0x13 => Event::Fork {
            fd: word(1) as u32 as i32,
        },
        0x14 => Event::Remap {
            from: word(1),
            to: word(2),
            len: word(3),
        },
        0x15 => Event::Remove {
            start: word(1),
            end: word(2),
        },
        0x16 => Event::Unmap {
            start: word(1),
            end: word(2),
        },
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn message(event: u8, words: [u64; 3]) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[0] = event;
        for (i, word) in words.iter().enumerate() {
            bytes[8 * (i + 1)..8 * (i + 2)].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    #[test]
    fn each_event_is_told_from_the_others() {
        assert_eq!(
            parse(&message(0x12, [5, 0x7000_1234, 9])).unwrap(),
            Event::Fault {
                address: 0x7000_1000,
                thread: 9,
                present: true,
            }
        );
        let absent = parse(&message(0x12, [1, 0x7000_1234, 9]));
        assert!(matches!(absent, Some(Event::Fault { present: false, .. })));
        assert_eq!(
            parse(&message(0x13, [17, 0, 0])).unwrap(),
            Event::Fork { fd: 17 }
        );
        let (start, end) = (0x1000, 0x3000);
        assert_eq!(
            parse(&message(0x14, [start, end, 4096])).unwrap(),
            Event::Remap {
                from: start,
                to: end,
                len: 4096
            }
        );
        assert_eq!(
            parse(&message(0x15, [start, end, 0])).unwrap(),
            Event::Remove { start, end }
        );
        assert_eq!(
            parse(&message(0x16, [start, end, 0])).unwrap(),
            Event::Unmap { start, end }
        );
        assert_eq!(parse(&message(0x99, [0; 3])), None);
    }
}
