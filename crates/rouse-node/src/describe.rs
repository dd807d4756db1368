//! What rouse itself has to say about a function.

use std::collections::BTreeMap;
use std::sync::Arc;

use rouse_process::memory_report::MemoryReport;
use rouse_process::working_set::WorkingSetReport;
use serde::Serialize;

use crate::engine::function::{Function, SnapshotStatus, StoredSnapshot};
use crate::engine::invoke::no_snapshot;
use crate::events::policy::EventPolicy;
use crate::function::arn::{FunctionRef, LATEST};
use crate::function::record::{FunctionRecord, SnapshotPoint};
use crate::node::Node;
use crate::refusal::Refusal;
use crate::serving::control::ServingDescription;
use crate::time::rfc3339_ms;
use crate::versions::describe::VersionsDescription;

/// A function beyond Lambda's configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Description {
    /// As stored; shown in Lambda's shape by the API.
    #[serde(skip)]
    pub record: Arc<FunctionRecord>,
    /// Its snapshot.
    pub snapshot: SnapshotDescription,
    /// When its snapshots are taken, and which versions there are.
    pub snapshots: VersionsDescription,
    /// Invocations by the path they took.
    pub boots: BTreeMap<&'static str, u64>,
    /// How it is served.
    pub serving: ServingDescription,
    /// What was decided about its asynchronous invocations.
    pub events: EventPolicy,
    /// Instances that exist now.
    pub instances: Instances,
    /// Invocations since the node started.
    pub invocations: u64,
    /// Of these, ended with a function error.
    pub errors: u64,
    /// Requests answered 429.
    pub throttles: u64,
    /// Instances that ended by themselves, by reason: `exit`, `signal` or `out_of_memory`.
    pub deaths: BTreeMap<&'static str, u64>,
    /// Lines of log that were dropped and are not yet reported in the log.
    pub dropped_log_lines: u64,
}

/// Instances that exist now.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Instances {
    /// Handling a request, starting or ending.
    pub busy: usize,
    /// Waiting to be used again.
    pub idle: usize,
    /// Made ahead, waiting for their one request.
    pub parked: usize,
    /// Held for who knows their names, and waiting.
    pub held: usize,
}

/// A function's snapshot.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SnapshotDescription {
    /// `pending`, `ready` or `failed`.
    pub state: &'static str,
    /// Why it is not ready, or why it was taken again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How much of it is in memory: `resident` (all), `loaded` (what was touched), `stored` (nothing).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residency: Option<&'static str>,
    /// Why the function is not forked, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork_problem: Option<String>,
    /// Why its pages had to leave far memory, the last time they had to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub far_problem: Option<String>,
    /// The request in which the runtime was parked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point: Option<&'static str>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<String>,
    /// Pages of address space that it maps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages: Option<u64>,
    /// Pages whose contents it holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saved_pages: Option<u64>,
    /// Resident memory of the function when it was stopped, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Bytes on disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long the function stood still, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    /// How long init took, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_us: Option<u64>,
    /// What it is a delta of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<ParentDescription>,
    /// How well the pages that an invocation touches are predicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set: Option<WorkingSetReport>,
}

/// The snapshot that a function's snapshot is a delta of.
#[derive(Debug, Clone, Serialize)]
pub struct ParentDescription {
    /// Name of the language template.
    pub template: String,
    /// Pages that the function maps from it, and shares with all others that do.
    pub pages: u64,
}

impl SnapshotPoint {
    /// Name in descriptions.
    pub fn name(self) -> &'static str {
        match self {
            SnapshotPoint::RestoreNext | SnapshotPoint::RestoreWithEvent => "restore/next",
            SnapshotPoint::InvocationNext => "invocation/next",
        }
    }
}

/// What a node holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Functions, versions not counted.
    pub functions: usize,
    /// Bytes of zipped code, each version counted.
    pub code_bytes: u64,
    /// Snapshots that are being taken or loaded.
    pub snapshots_pending: usize,
}

impl Node {
    /// What the node holds.
    pub fn usage(&self) -> Usage {
        let functions = self.all();
        let pending = |function: &Arc<Function>| match function.serving() {
            Some(revision) => match revision.snapshot() {
                SnapshotStatus::Pending { .. } => true,
                SnapshotStatus::Stored(stored) => !stored.is_checked,
                SnapshotStatus::Ready(_) | SnapshotStatus::Failed { .. } => false,
            },
            None => true,
        };
        Usage {
            functions: functions
                .iter()
                .filter(|function| function.record().version == LATEST)
                .count(),
            code_bytes: functions
                .iter()
                .map(|function| function.record().code.size)
                .sum(),
            snapshots_pending: functions
                .iter()
                .filter(|function| pending(function))
                .count(),
        }
    }

    /// Instances of a function that start, answer or end now.
    pub(crate) fn busy_of(&self, function: &Function) -> usize {
        let (_, waiting) = self.instances.held_of(&function.key);
        function.busy_count().saturating_sub(waiting)
    }

    /// Instances of a function that exist now.
    pub(crate) fn instances_of(&self, function: &Function) -> Instances {
        let revision = function.serving();
        let parked = revision.map_or(0, |revision| match revision.snapshot() {
            SnapshotStatus::Ready(ready) => ready.image.parked_count(),
            _ => 0,
        });
        Instances {
            busy: self.busy_of(function),
            idle: function.idle_count(),
            parked,
            held: self.instances.held_of(&function.key).1,
        }
    }

    /// Describes a function.
    pub fn describe(&self, target: &FunctionRef) -> Result<Description, Refusal> {
        let function = self.find(target)?;
        let revision = function.serving();
        let snapshot = match revision.as_ref().map(|revision| revision.snapshot()) {
            None => pending("The function is being built.".into()),
            Some(SnapshotStatus::Pending { reason }) => pending(reason),
            Some(SnapshotStatus::Failed { reason }) => SnapshotDescription {
                state: "failed",
                reason: Some(reason),
                ..SnapshotDescription::default()
            },
            Some(SnapshotStatus::Stored(stored)) => stored_snapshot(&stored),
            Some(SnapshotStatus::Ready(ready)) => SnapshotDescription {
                state: "ready",
                residency: Some(match ready.image.is_resident() {
                    true => "resident",
                    false => "loaded",
                }),
                reason: ready.rebuilt_because.clone(),
                fork_problem: revision
                    .as_ref()
                    .and_then(|revision| revision.fork_problem()),
                far_problem: ready.image.far_problem(),
                point: Some(ready.record.point.name()),
                taken_at: Some(rfc3339_ms(ready.record.taken_at_ms)),
                pages: Some(ready.image.mapped_pages),
                saved_pages: Some(ready.record.saved_pages),
                resident_bytes: Some(ready.record.resident_bytes),
                bytes: Some(ready.record.disk_bytes),
                pause_us: Some(ready.record.pause_us),
                init_us: Some(ready.record.init_us),
                parent: ready
                    .record
                    .parent
                    .clone()
                    .map(|template| ParentDescription {
                        template,
                        pages: ready.image.parent_pages,
                    }),
                working_set: ready.image.working_set(),
            },
        };
        let counters = &function.counters;
        Ok(Description {
            record: function.record(),
            serving: self.describe_serving(&function),
            events: function.record().events.clone(),
            snapshot,
            snapshots: self.describe_versions(&function, revision.as_ref()),
            boots: counters.own().boots(),
            instances: self.instances_of(&function),
            invocations: counters.own().invocations(),
            errors: counters.own().errors().values().sum(),
            throttles: counters.own().throttles(),
            deaths: counters.own().deaths(),
            dropped_log_lines: function.log.dropped(),
        })
    }
}

impl Node {
    /// What the memory of a function's snapshot is made of.
    pub async fn describe_memory(
        self: &Arc<Self>,
        target: &FunctionRef,
    ) -> Result<MemoryReport, Refusal> {
        let function = self.find(target)?;
        let Some(revision) = function.serving() else {
            return Err(Refusal::SnapStartNotReady(
                "The function has no snapshot. The function is being built.".into(),
            ));
        };
        let found = self.usable_snapshot(&function, &revision).await;
        let ready = found.ok_or_else(|| no_snapshot(&revision))?;
        let image = ready.image.clone();
        let report = tokio::task::spawn_blocking(move || image.memory()).await;
        report.ok().flatten().ok_or_else(|| {
            Refusal::Service("This kind of sandbox does not tell about its memory.".into())
        })
    }
}

fn pending(reason: String) -> SnapshotDescription {
    SnapshotDescription {
        state: "pending",
        reason: Some(reason),
        ..SnapshotDescription::default()
    }
}

fn stored_snapshot(stored: &StoredSnapshot) -> SnapshotDescription {
    let record = &stored.record;
    SnapshotDescription {
        state: match stored.is_checked {
            true => "ready",
            false => "pending",
        },
        residency: Some("stored"),
        reason: match stored.is_checked {
            true => stored.rebuilt_because.clone(),
            false => Some("It has to be verified first, as a call would do.".into()),
        },
        point: Some(record.point.name()),
        taken_at: Some(rfc3339_ms(record.taken_at_ms)),
        pages: stored.mapped_pages,
        saved_pages: Some(record.saved_pages),
        resident_bytes: Some(record.resident_bytes),
        bytes: Some(record.disk_bytes),
        pause_us: Some(record.pause_us),
        init_us: Some(record.init_us),
        parent: (record.parent.clone()).map(|template| ParentDescription {
            template,
            pages: stored.parent_pages,
        }),
        working_set: stored.working_set.clone(),
        ..SnapshotDescription::default()
    }
}
