//! Keeps the monotonic clocks of functions from running backwards.
//!
//! A snapshot remembers times of `CLOCK_MONOTONIC`, which starts anew when the host boots. All
//! sandboxes live in one time namespace whose clocks are the host's plus an offset; the offset is
//! chosen when the node starts, so that no function sees a time before one that it has seen:
//!
//! ```text
//!  boot 1:  host clock 0 ------> 500 s   snapshot knows 500 s         offset 0
//!  boot 2:  host clock 0 ->  20 s, node starts                        offset 480 s + margin
//! ```
//! The node keeps the latest time that any snapshot knows, and the offset of this boot, in a file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Added when an offset is chosen, so that a time is later, not equal.
const MARGIN_NS: i64 = 1_000_000;

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Record {
    boot_id: String,
    /// Of (monotonic, boottime), nanoseconds.
    offset: (i64, i64),
    /// Latest times that a snapshot knows, as functions see them.
    latest: (i64, i64),
}

/// The offset of this boot, and the latest time of any snapshot.
#[derive(Debug)]
pub struct FunctionClock {
    path: PathBuf,
    record: Mutex<Record>,
}

impl FunctionClock {
    /// Reads the file at `path`, which need not exist, and chooses the offset of this boot.
    pub fn open(path: &Path) -> io::Result<Self> {
        let stored: Record = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Record::default(),
            Err(error) => return Err(error),
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
            .trim()
            .to_owned();
        let record = on_boot(
            stored,
            boot_id,
            (now(ClockId::Monotonic), now(ClockId::Boottime)),
        );
        let clock = Self {
            path: path.to_path_buf(),
            record: Mutex::new(record.clone()),
        };
        clock.store(&record)?;
        Ok(clock)
    }

    /// Offset of (monotonic, boottime) for this boot, nanoseconds. `None` where none is needed.
    pub fn offset(&self) -> Option<(i64, i64)> {
        let record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        (record.offset != (0, 0)).then_some(record.offset)
    }

    /// Remembers that a snapshot knows these times, before the snapshot is used.
    pub fn saw(&self, monotonic_ns: u64, boottime_ns: u64) -> io::Result<()> {
        let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
        record.latest.0 = record.latest.0.max(monotonic_ns as i64);
        record.latest.1 = record.latest.1.max(boottime_ns as i64);
        self.store(&record)
    }

    fn store(&self, record: &Record) -> io::Result<()> {
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let file = std::fs::File::create(&temporary)?;
        serde_json::to_writer(&file, record)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &self.path)
    }
}

fn now(clock: ClockId) -> i64 {
    let now = clock_gettime(clock);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// The record for this boot: within one boot the offset must not change, since snapshots of it
/// may be compared with clocks that go on.
fn on_boot(stored: Record, boot_id: String, now: (i64, i64)) -> Record {
    if stored.boot_id == boot_id {
        return stored;
    }
    let offset = |latest: i64, now: i64| {
        if latest < now {
            0
        } else {
            latest - now + MARGIN_NS
        }
    };
    Record {
        boot_id,
        offset: (
            offset(stored.latest.0, now.0),
            offset(stored.latest.1, now.1),
        ),
        latest: stored.latest,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn after_a_reboot_clocks_go_on_where_the_latest_snapshot_was() {
        let first = on_boot(Record::default(), "a".into(), (500, 500));
        assert_eq!(first.offset, (0, 0));
        let stored = Record {
            latest: (9_000_000_000, 9_000_000_000),
            ..first
        };
        let second = on_boot(stored.clone(), "b".into(), (20, 10_000_000_000));
        assert_eq!(second.offset, (9_000_000_000 - 20 + MARGIN_NS, 0));
        assert_eq!(
            on_boot(second.clone(), "b".into(), (9999, 9999)),
            second,
            "one boot, one offset"
        );
    }

    #[test]
    fn the_latest_time_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let far = now(ClockId::Monotonic) as u64 + 1_000_000_000_000;
        FunctionClock::open(&path).unwrap().saw(far, 1).unwrap();
        let stored: Record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(stored.latest.0, far as i64);
    }
}
