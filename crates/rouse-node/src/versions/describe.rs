//! What there is to say about the versions of a snapshot.

use std::sync::Arc;

use serde::Serialize;

use super::policy::{Comparison, Outcome};
use crate::engine::function::{Function, Revision};
use crate::function::arn::FunctionRef;
use crate::function::record::{Because, SnapshotRecord, WarmUpDone};
use crate::function::snapshot_point::{PointPolicy, SnapshotPointSettings};
use crate::node::Node;
use crate::refusal::Refusal;
use crate::time::rfc3339_ms;

/// When a function's snapshots are taken, and those that there are.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VersionsDescription {
    /// `init`, `warm` or `auto`.
    pub policy: &'static str,
    /// Warm-up events that were given for the function; `None` when they are the package's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<usize>,
    /// For `warm`: times that all events are run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rounds: Option<u32>,
    /// For `auto`: invocations between two trials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// Number of the version in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// Was it chosen by a rollback? Then `auto` tries nothing else.
    pub is_pinned: bool,
    /// Why the snapshot was not taken where it should have been, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// All versions, the newest first.
    pub versions: Vec<VersionDescription>,
    /// What trials of later snapshots came to, the latest first.
    pub decisions: Vec<DecisionDescription>,
}

/// One version of a snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct VersionDescription {
    /// Number.
    pub version: u64,
    /// Is it in use?
    pub is_current: bool,
    /// RFC 3339.
    pub taken_at: String,
    /// Why.
    pub because: Because,
    /// What the function had run.
    pub warm_up: WarmUpDone,
    /// How long init took without it, microseconds.
    pub init_us: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Pages whose contents it holds.
    pub saved_pages: u64,
    /// Resident memory of the function when it was stopped, bytes.
    pub resident_bytes: u64,
}

/// What came of the trial of a later snapshot.
#[derive(Debug, Clone, Serialize)]
pub struct DecisionDescription {
    /// RFC 3339.
    pub at: String,
    /// Number of the new version.
    pub version: u64,
    /// Number of the one that was in use.
    pub against: u64,
    /// Times that all warm-up events were run for it.
    pub rounds: u32,
    /// What came of it.
    pub outcome: Outcome,
    /// What was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// In a sentence.
    pub reason: String,
}

impl Node {
    /// When a function's snapshots are taken, and those that there are.
    pub fn snapshots(&self, target: &FunctionRef) -> Result<VersionsDescription, Refusal> {
        let function = self.find(target)?;
        let revision = function.serving();
        Ok(self.describe_versions(&function, revision.as_ref()))
    }

    pub(crate) fn describe_versions(
        &self,
        function: &Function,
        revision: Option<&Arc<Revision>>,
    ) -> VersionsDescription {
        let point = self.point_of(&function.record());
        let described = self.describe_point(&point);
        let Some(revision) = revision else {
            return described;
        };
        let status = revision.snapshot();
        let current = status.record();
        let history = revision.with_history(|history| history.clone());
        let mut versions: Vec<VersionDescription> = (history.kept.iter())
            .map(|record| version(record, false))
            .chain(current.map(|record| version(record, true)))
            .collect();
        versions.sort_by_key(|one| std::cmp::Reverse(one.version));
        let decisions = history.decisions.into_iter().rev();
        VersionsDescription {
            current: current.map(|record| record.version),
            is_pinned: history.is_pinned,
            problem: history.problem,
            versions,
            decisions: decisions
                .map(|decision| DecisionDescription {
                    at: rfc3339_ms(decision.at_ms),
                    version: decision.version,
                    against: decision.against,
                    rounds: decision.rounds,
                    outcome: decision.outcome,
                    comparison: decision.comparison,
                    reason: decision.reason,
                })
                .collect(),
            ..described
        }
    }

    fn describe_point(&self, point: &SnapshotPointSettings) -> VersionsDescription {
        let is = |policy| point.policy == policy;
        VersionsDescription {
            policy: point.policy.name(),
            events: point.events.as_ref().map(Vec::len),
            rounds: is(PointPolicy::Warm).then(|| point.rounds.unwrap_or(1)),
            after: is(PointPolicy::Auto)
                .then(|| point.after.unwrap_or(self.config.snapshot_auto_after)),
            ..VersionsDescription::default()
        }
    }
}

fn version(record: &SnapshotRecord, is_current: bool) -> VersionDescription {
    VersionDescription {
        version: record.version,
        is_current,
        taken_at: rfc3339_ms(record.taken_at_ms),
        because: record.because,
        warm_up: record.warm_up.clone(),
        init_us: record.init_us,
        bytes: record.disk_bytes,
        saved_pages: record.saved_pages,
        resident_bytes: record.resident_bytes,
    }
}
