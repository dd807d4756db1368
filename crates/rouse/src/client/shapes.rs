//! What travels between the command and a node, as types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a new function is, and what an update changes. `None` leaves Lambda's default or the present value.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct FunctionSettings {
    /// `python3.11`, `nodejs20.x`, `provided.al2023`, ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// `module.function`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handler: Option<String>,
    /// Memory limit, MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_size: Option<u32>,
    /// Limit of one invocation, seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// The function's environment variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
    /// When its snapshots are taken, as rouse's own API has it.
    #[serde(rename = "RouseSnapshotPoint", skip_serializing_if = "Option::is_none")]
    pub snapshot_point: Option<Value>,
    /// How it is served, as rouse's own API has it.
    #[serde(rename = "RouseServing", skip_serializing_if = "Option::is_none")]
    pub serving: Option<Value>,
}

/// Lambda's wrapper around environment variables.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Environment {
    /// Names and values.
    #[serde(rename = "Variables", default)]
    pub variables: BTreeMap<String, String>,
}

/// The members of Lambda's FunctionConfiguration that are shown or waited for.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Configuration {
    /// Name.
    pub function_name: String,
    /// Runtime, absent for images.
    #[serde(default)]
    pub runtime: String,
    /// Handler.
    #[serde(default)]
    pub handler: String,
    /// Size of the code's zip, bytes.
    #[serde(default)]
    pub code_size: u64,
    /// Memory limit, MiB.
    #[serde(default)]
    pub memory_size: u64,
    /// Limit of one invocation, seconds.
    #[serde(default)]
    pub timeout: u64,
    /// When code or configuration changed last.
    #[serde(default)]
    pub last_modified: String,
    /// `Pending`, `Active`, `Inactive` or `Failed`.
    #[serde(default)]
    pub state: String,
    /// Why the state is what it is.
    #[serde(default)]
    pub state_reason: Option<String>,
    /// `InProgress`, `Successful` or `Failed`.
    #[serde(default)]
    pub last_update_status: String,
    /// Why the update is where it is.
    #[serde(default)]
    pub last_update_status_reason: Option<String>,
    /// Environment variables.
    #[serde(default)]
    pub environment: Option<Environment>,
}

/// How to invoke.
#[derive(Debug, Clone, Copy, Default)]
pub struct InvokeOptions<'a> {
    /// Boot path to insist on: `cold`, `restore`, `fork` or `warm`.
    pub boot: Option<&'a str>,
    /// Do not wait for the answer (`Event`).
    pub asynchronous: bool,
    /// Ask for the last 4 KiB of the log.
    pub tail: bool,
    /// The instance that is to answer.
    pub instance: Option<&'a str>,
}

/// An invocation that the node carried out (or, for `Event`, took on).
#[derive(Debug, Clone)]
pub struct Invocation {
    /// HTTP status: 200, or 202 for `Event`.
    pub status: u16,
    /// The function's answer, or its error as JSON.
    pub payload: Vec<u8>,
    /// `X-Amz-Function-Error`: the function failed, and `payload` says how.
    pub function_error: Option<String>,
    /// Boot path that was taken.
    pub boot: Option<String>,
    /// Stages of the boot: name and milliseconds.
    pub stages: Vec<(String, f64)>,
    /// Last 4 KiB of the log, if asked for.
    pub log_tail: Option<String>,
    /// The node's id of the request.
    pub request_id: Option<String>,
}

/// What rouse knows of a function beyond Lambda's configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Description {
    /// Lambda's configuration, as GetFunctionConfiguration gives it.
    pub configuration: Value,
    /// The function's snapshot.
    pub snapshot: SnapshotView,
    /// How it is served.
    pub serving: ServingView,
    /// How many instances were started on each boot path.
    pub boots: BTreeMap<String, u64>,
    /// Instances that exist now: `busy` and `idle`.
    pub instances: BTreeMap<String, u64>,
}

/// How a function is served.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ServingView {
    /// What its owner has decided.
    pub policy: BTreeMap<String, Value>,
    /// What holds.
    pub effective: BTreeMap<String, Value>,
}

/// The snapshot that a snapshot is a delta of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ParentView {
    /// Name of the language template.
    pub template: String,
    /// Pages that are mapped from it.
    pub pages: u64,
}

/// A function's snapshot.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct SnapshotView {
    /// `pending`, `ready` or `failed`.
    pub state: String,
    /// Why it is not ready, or why it was taken again.
    pub reason: Option<String>,
    /// Why the function is not forked, if so.
    pub fork_problem: Option<String>,
    pub far_problem: Option<String>,
    /// What it is a delta of.
    pub parent: Option<ParentView>,
    /// Where the function was parked: `restore/next` or `invocation/next`.
    pub point: Option<String>,
    /// When it was taken, RFC 3339.
    pub taken_at: Option<String>,
    /// Pages of the function's memory.
    pub pages: Option<u64>,
    /// Pages that the snapshot itself holds; the rest are zero or files' own.
    pub saved_pages: Option<u64>,
    /// Resident memory of the function when it was stopped, bytes.
    pub resident_bytes: Option<u64>,
    /// Bytes on disk.
    pub bytes: Option<u64>,
    /// How long the function stood still, microseconds.
    pub pause_us: Option<u64>,
    /// How well the pages that an invocation touches are predicted.
    pub working_set: Option<WorkingSetView>,
}

/// How well the pages that an invocation touches are predicted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WorkingSetView {
    /// Counts the sets that were predicted.
    pub version: u64,
    /// Are boots prepared with it?
    pub on: bool,
    /// Pages that are predicted to be written.
    pub predicted_written: u64,
    /// Pages that are predicted to be read only.
    pub predicted_read: u64,
    /// How it did in the last blind boot.
    pub last_blind: Option<OutcomeView>,
    /// Pages that were touched though not predicted, in the last observation.
    pub missed: Option<u64>,
    /// The same, on average.
    pub residual: f64,
    /// Microseconds that it saves an invocation.
    pub gain_us: f64,
    /// Invocations that answered.
    pub invocations: u64,
    /// Of these, observed since the node started.
    pub observations: u64,
    /// Times that it was recorded anew since the node started.
    pub recordings: u64,
    /// Is it being recorded anew?
    pub recording: bool,
    /// Why what was stored could not be used, if so.
    pub problem: Option<String>,
}

/// How a set did in one invocation, pages.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct OutcomeView {
    /// Predicted.
    pub predicted: u64,
    /// Of these, touched.
    pub used: u64,
    /// Of these, not touched.
    pub wasted: u64,
    /// Touched without being predicted.
    pub missed: u64,
}

/// What the memory of a function's snapshot is made of.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MemoryView {
    /// Bytes in a page.
    pub page_size: u64,
    /// Pages of each class.
    pub classes: Vec<ClassView>,
    /// All mappings, by address.
    pub mappings: Vec<MappingView>,
    /// Pages of the pool by tier.
    pub tiers: BTreeMap<String, u64>,
    /// What is predicted, and how well.
    pub working_set: WorkingSetView,
}

/// Pages of one class.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ClassView {
    /// `written`, `read`, `cold`, `parent`, `file` or `zero`.
    pub class: String,
    /// Pages.
    pub pages: u64,
    /// Bytes.
    pub bytes: u64,
    /// Pages by where their contents lie.
    pub tiers: BTreeMap<String, u64>,
}

/// One mapping.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MappingView {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// As in `/proc/PID/maps`.
    pub protection: String,
    /// What it shows; empty when anonymous.
    pub name: String,
    /// Pages and their class, from the first address on.
    pub runs: Vec<(u64, String)>,
}

/// One line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct LogLine {
    /// When the node read it, milliseconds since the epoch.
    pub timestamp: u64,
    /// The line, without its end.
    pub message: String,
}
