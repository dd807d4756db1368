//! What an instance has touched, read from its page tables after it has answered.
//!
//! No fault has to be watched: a private mapping shows a page of its own where the function has
//! written, and a page of the pool or of a file where it has only read. Two things blur the picture:
//!
//! - pages that were *prepared* look like touched ones. An observation therefore says which were,
//!   and proves nothing about them; only the observation of a *blind* boot is exact;
//! - where a page of a file or of the pool is read, the kernel maps its neighbours in the same
//!   64 KiB as well, if they are in memory. So what is read is known in pieces of up to 16 pages; but for instances of
//!   which the pager was asked to keep the kernel from it, which costs them a fault for each page that they read.

use std::sync::Arc;

use rouse_snapshot::model::ProcessSnapshot;
use rouse_snapshot::working_set::{WorkingSet, contains, preparable};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::page_map::PageMap;

/// What one invocation has touched.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// Pages of its own, and pages of others that it has mapped.
    pub touched: WorkingSet,
    /// What had been prepared for this instance: `written` copied, `read` mapped.
    pub prepared: Arc<WorkingSet>,
    /// Is each page of the pool mapped only if it was touched itself?
    pub exact_reads: bool,
    /// Pages of pools in the order in which they were first touched, addresses. Empty unless that was recorded.
    pub order: Vec<u64>,
    /// Minor faults of its first process until it answered; restoring the memory counts in.
    pub minor_faults: u64,
}

impl Observation {
    /// Looks at a process that was restored from `snapshot` and has answered since.
    pub fn of(
        pid: i32,
        snapshot: &ProcessSnapshot,
        prepared: Arc<WorkingSet>,
        exact_reads: bool,
    ) -> Result<Self, CheckpointError> {
        let pages = PageMap::open(pid)?;
        let mut touched = WorkingSet::default();
        for mapping in snapshot.mappings.iter().filter(|m| preparable(m)) {
            if mapping.prot & libc::PROT_WRITE as u32 != 0 {
                touched.written.extend(pages.private_pages(&mapping.range)?);
            }
            touched.read.extend(pages.file_pages(&mapping.range)?);
        }
        Ok(Self {
            touched,
            prepared,
            exact_reads,
            order: Vec::new(),
            minor_faults: minor_faults(pid).unwrap_or(0),
        })
    }

    /// Was nothing prepared, so that all that is seen was touched?
    pub fn is_exact(&self) -> bool {
        self.prepared.is_empty()
    }

    pub(super) fn page(&self, address: u64) -> Seen {
        let written = contains(&self.touched.written, address);
        let touched = written || contains(&self.touched.read, address);
        // A copy that was made ahead hides both; an entry that was made ahead hides a read only.
        let copied = contains(&self.prepared.written, address);
        let mapped = contains(&self.prepared.read, address);
        Seen {
            written: (!copied).then_some(written),
            touched: match (copied, mapped) {
                (true, _) => None,
                (false, true) => written.then_some(true),
                (false, false) => Some(touched),
            },
        }
    }
}

/// What an observation proves about a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// Was it written, if that is known?
    pub written: Option<bool>,
    /// Was it read or written, if that is known?
    pub touched: Option<bool>,
}

fn minor_faults(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields after the name, which may hold spaces: state is field 3, minflt 10.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(7)?.parse().ok()
}
