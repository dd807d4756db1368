//! What is stored of the versions of a snapshot beside the current one.

use serde::{Deserialize, Serialize};

use super::policy::{Comparison, Outcome};
use crate::function::record::SnapshotRecord;

/// Most decisions that are remembered.
const MAX_DECISIONS: usize = 16;

/// The versions of one revision's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Revision that the versions belong to.
    pub revision_id: String,
    /// Number of the next version.
    pub next: u64,
    /// Versions that can be rolled back to, by number; the current one is not among them.
    pub kept: Vec<SnapshotRecord>,
    /// What trials of later snapshots came to, the latest last.
    pub decisions: Vec<Decision>,
    /// Somebody has chosen the current version: nothing else replaces it.
    pub is_pinned: bool,
    /// Why the current version was not taken where it should have been, if so.
    pub problem: Option<String>,
}

/// What came of the trial of a later snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// Milliseconds since the epoch.
    pub at_ms: u64,
    /// Number of the new version.
    pub version: u64,
    /// Number of the one that was in use.
    pub against: u64,
    /// Times that all warm-up events were run for it.
    pub rounds: u32,
    /// What came of it.
    pub outcome: Outcome,
    /// What was measured.
    pub comparison: Option<Comparison>,
    /// In a sentence.
    pub reason: String,
}

impl History {
    /// Of a revision that has no snapshot yet.
    pub fn new(revision_id: &str) -> Self {
        History {
            revision_id: revision_id.to_owned(),
            next: 1,
            kept: Vec::new(),
            decisions: Vec::new(),
            is_pinned: false,
            problem: None,
        }
    }

    /// Of a revision whose snapshot was stored by a version of rouse that kept no others.
    pub fn of(current: &SnapshotRecord) -> Self {
        History {
            next: current.version + 1,
            ..History::new(&current.revision_id)
        }
    }

    /// A number that no snapshot of this revision had or will have.
    pub fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// Keeps what was current, and gives back the oldest ones that are too many when `max` versions may be there, the
    /// current one included.
    pub fn retire(&mut self, current: SnapshotRecord, max: usize) -> Vec<SnapshotRecord> {
        self.kept.retain(|one| one.version != current.version);
        self.kept.push(current);
        self.kept.sort_by_key(|one| one.version);
        let surplus = (self.kept.len() + 1).saturating_sub(max.max(1));
        self.kept.drain(..surplus).collect()
    }

    /// Takes out the version to roll back to: that one, or the newest before `current`.
    pub fn take(&mut self, version: Option<u64>, current: u64) -> Option<SnapshotRecord> {
        let at = match version {
            Some(version) => self.kept.iter().position(|one| one.version == version),
            None => self.kept.iter().rposition(|one| one.version < current),
        }?;
        Some(self.kept.remove(at))
    }

    /// Takes out what replaces a damaged version: the newest before it, else the newest.
    pub fn fall_back(&mut self, damaged: u64) -> Option<SnapshotRecord> {
        self.kept.retain(|one| one.version != damaged);
        self.take(None, damaged).or_else(|| self.kept.pop())
    }

    /// Remembers a decision.
    pub fn decide(&mut self, decision: Decision) {
        self.decisions.push(decision);
        let surplus = self.decisions.len().saturating_sub(MAX_DECISIONS);
        self.decisions.drain(..surplus);
    }

    /// What trials came to, as the search wants it.
    pub fn trials(&self) -> Vec<(u32, Outcome)> {
        self.decisions
            .iter()
            .map(|decision| (decision.rounds, decision.outcome))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::function::record::{Because, SnapshotPoint, WarmUpDone};

    fn record(version: u64) -> SnapshotRecord {
        SnapshotRecord {
            revision_id: "r".into(),
            point: SnapshotPoint::RestoreNext,
            taken_at_ms: 0,
            pause_us: 0,
            resident_bytes: 0,
            saved_pages: 0,
            disk_bytes: 0,
            init_us: 0,
            parent: None,
            version,
            because: Because::Deployed,
            warm_up: WarmUpDone::default(),
        }
    }

    #[test]
    fn a_rollback_leads_to_the_version_before() {
        let mut history = History::new("r");
        for _ in 0..2 {
            let number = history.number();
            assert!(history.retire(record(number), 3).is_empty());
        }
        assert_eq!(history.take(None, 3).unwrap().version, 2);
        assert_eq!(history.take(None, 2).unwrap().version, 1);
        assert_eq!(history.take(None, 1), None);
    }

    #[test]
    fn a_damaged_version_is_replaced_by_an_older_one_first() {
        let mut history = History::new("r");
        history.kept = vec![record(1), record(2), record(4)];
        assert_eq!(history.fall_back(3).unwrap().version, 2);
        assert_eq!(history.fall_back(2).unwrap().version, 1);
        assert_eq!(history.fall_back(1).unwrap().version, 4);
        assert_eq!(history.fall_back(4), None);
    }

    #[test]
    fn a_record_without_versions_can_be_read() {
        let text = r#"{"revision_id":"r","point":"restore-next","taken_at_ms":1,"pause_us":2,"resident_bytes":3,"saved_pages":4,"disk_bytes":5,"init_us":6}"#;
        let record: SnapshotRecord = serde_json::from_str(text).unwrap();
        assert_eq!((record.version, record.directory_name().as_str()), (1, "r"));
    }

    proptest! {
        /// Whatever is done: as many versions as may be, each once, none twice, and every one either kept, current or given back.
        #[test]
        fn no_version_is_lost_or_there_twice(steps in proptest::collection::vec(0u8..4, 0..60), max in 1usize..5) {
            let mut history = History::new("r");
            let mut current = record(history.number());
            let mut alive = std::collections::BTreeSet::from([1]);
            for step in steps {
                match step {
                    0 | 1 => {
                        let number = history.number();
                        prop_assert!(alive.insert(number), "{number} was there before");
                        for gone in history.retire(current, max) {
                            prop_assert!(alive.remove(&gone.version));
                        }
                        current = record(number);
                    }
                    2 => if let Some(back) = history.take(None, current.version) {
                        prop_assert!(back.version < current.version);
                        prop_assert!(history.retire(current, max).is_empty());
                        current = back;
                    },
                    _ => if let Some(back) = history.fall_back(current.version) {
                        prop_assert!(alive.remove(&current.version));
                        current = back;
                    },
                }
                let mut seen: Vec<u64> = history.kept.iter().map(|one| one.version).collect();
                seen.push(current.version);
                prop_assert!(seen.len() <= max.max(1));
                seen.sort_unstable();
                prop_assert_eq!(seen, alive.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
