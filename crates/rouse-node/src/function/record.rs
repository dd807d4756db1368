//! A function as it is stored.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::arn::LATEST;
use super::snapshot_point::SnapshotPointSettings;
use crate::events::policy::EventPolicy;
use crate::serving::policy::ServingPolicy;

/// Everything the store knows about one version of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionRecord {
    /// Name.
    pub name: String,
    /// `$LATEST` or a number.
    pub version: String,
    /// Settings.
    pub settings: FunctionSettings,
    /// Code.
    pub code: CodeRef,
    /// Changes with every update.
    pub revision_id: String,
    /// Milliseconds since the epoch.
    pub last_modified_ms: u64,
    /// `State`.
    pub state: State,
    /// `LastUpdateStatus`.
    pub last_update: State,
    /// Number of the next published version (only in `$LATEST`).
    pub next_version: u64,
    /// How it is served. Not a part of `settings`: nothing has to be built when it changes.
    #[serde(default, skip_serializing_if = "ServingPolicy::is_empty")]
    pub serving: ServingPolicy,
    /// What was decided about its asynchronous invocations.
    #[serde(default, skip_serializing_if = "EventPolicy::is_empty")]
    pub events: EventPolicy,
}

/// What can be configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionSettings {
    /// As given, for instance `python3.11`.
    pub runtime: String,
    /// Role's ARN; kept and given back.
    pub role: String,
    /// Handler.
    pub handler: String,
    /// Description.
    pub description: String,
    /// Seconds.
    pub timeout_s: u32,
    /// MiB.
    pub memory_mib: u32,
    /// MiB of `/tmp`.
    pub ephemeral_mib: u32,
    /// The function's own variables.
    pub environment: BTreeMap<String, String>,
    /// Were `Environment` variables ever given? Lambda leaves the member out otherwise.
    pub has_environment: bool,
    /// `x86_64`.
    pub architecture: String,
    /// `SnapStart.ApplyOn` as the client gave it; snapshots are taken in any case.
    pub snap_start: String,
    /// `TracingConfig.Mode`.
    pub tracing_mode: String,
    /// `LoggingConfig`.
    pub log_format: String,
    /// `LoggingConfig`, where given.
    pub application_log_level: Option<String>,
    /// `LoggingConfig`, where given.
    pub system_log_level: Option<String>,
    /// `LoggingConfig`.
    pub log_group: String,
    /// Tags.
    pub tags: BTreeMap<String, String>,
    /// When its snapshots are taken; `None` for the node's own setting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_point: Option<SnapshotPointSettings>,
}

/// A package that lies in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodeRef {
    /// SHA-256 of the zip, lower-case hexadecimal: its name in the state directory.
    pub sha256_hex: String,
    /// Size of the zip, bytes.
    pub size: u64,
}

/// Progress of a creation or update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// `Pending`, or `InProgress`.
    Busy,
    /// `Active`, or `Successful`.
    Done,
    /// `Failed`.
    Failed {
        /// For programs.
        code: String,
        /// For people.
        reason: String,
    },
}

impl FunctionRecord {
    /// Name and version as one key, `name` or `name:7`.
    pub fn key(&self) -> String {
        key(&self.name, &self.version)
    }
}

/// Key of a version of a function, in tables and maps.
pub fn key(name: &str, version: &str) -> String {
    if version == LATEST {
        name.to_owned()
    } else {
        format!("{name}:{version}")
    }
}

/// Name and version of a key.
pub fn key_parts(key: &str) -> (&str, &str) {
    key.split_once(':').unwrap_or((key, LATEST))
}

/// The snapshot of a revision, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRecord {
    /// Revision that the snapshot belongs to.
    pub revision_id: String,
    /// Where the runtime was parked.
    pub point: SnapshotPoint,
    /// Milliseconds since the epoch.
    pub taken_at_ms: u64,
    /// How long the function stood still, microseconds.
    pub pause_us: u64,
    /// Resident memory when it was stopped, bytes.
    pub resident_bytes: u64,
    /// Pages saved in the pool image.
    pub saved_pages: u64,
    /// Bytes on disk.
    pub disk_bytes: u64,
    /// How long init took until the runtime asked for work, microseconds.
    pub init_us: u64,
    /// The language template that it is a delta of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Counts the snapshots of a revision, from 1.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    pub version: u64,
    /// Why it was taken.
    #[serde(default)]
    pub because: Because,
    /// What the function had run when it was taken.
    #[serde(default)]
    pub warm_up: WarmUpDone,
}

impl SnapshotRecord {
    /// Name of its directory, below its function's.
    pub fn directory_name(&self) -> String {
        directory_name(&self.revision_id, self.version)
    }
}

/// Name of the directory of a revision's snapshot.
pub fn directory_name(revision_id: &str, version: u64) -> String {
    match version {
        1 => revision_id.to_owned(),
        version => format!("{revision_id}-{version}"),
    }
}

fn first() -> u64 {
    1
}

fn is_first(version: &u64) -> bool {
    *version == 1
}

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// The function was created or changed, or had no snapshot.
    #[default]
    Deployed,
    /// Somebody asked for another one.
    Asked,
    /// It was better than the one before.
    Auto,
    /// One before it was damaged.
    Damaged,
}

/// What a function had run when its snapshot was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WarmUpDone {
    /// Times that all events were run; 0 for a snapshot at the end of init.
    pub rounds: u32,
    /// Events that were run, all rounds together.
    pub events: u64,
    /// How long that took, microseconds.
    pub us: u64,
}

/// The request in which the runtime waits in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotPoint {
    /// `GET /runtime/restore/next`.
    RestoreNext,
    /// The same, of a runtime that takes its first event along with the answer (it says so with the header
    /// `Rouse-Restore-Accept: invocation`): the after-restore hooks run, then the handler, without another request.
    RestoreWithEvent,
    /// `GET /runtime/invocation/next`.
    InvocationNext,
}

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}
