//! Bodies of control-plane requests, as clients send them. Nothing in here is checked yet; see [`super::validate`].

use std::collections::BTreeMap;

use serde::Deserialize;

use super::snapshot_point::SnapshotPointSettings;

/// Body of CreateFunction.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct CreateFunction {
    pub function_name: Option<String>,
    pub role: Option<String>,
    pub code: Option<FunctionCode>,
    pub publish: Option<bool>,
    pub package_type: Option<String>,
    pub architectures: Option<Vec<String>>,
    pub tags: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    pub settings: Settings,
}

/// Where a function's code comes from.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct FunctionCode {
    /// Base64 of the package.
    pub zip_file: Option<String>,
    pub s3_bucket: Option<String>,
    pub s3_key: Option<String>,
    pub image_uri: Option<String>,
}

/// Body of UpdateFunctionCode.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct UpdateCode {
    #[serde(flatten)]
    pub code: FunctionCode,
    pub architectures: Option<Vec<String>>,
    pub publish: Option<bool>,
    pub dry_run: Option<bool>,
    pub revision_id: Option<String>,
}

/// Body of UpdateFunctionConfiguration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct UpdateConfiguration {
    pub role: Option<String>,
    pub revision_id: Option<String>,
    #[serde(flatten)]
    pub settings: Settings,
}

/// Body of PublishVersion.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct PublishVersion {
    pub code_sha256: Option<String>,
    pub description: Option<String>,
    pub revision_id: Option<String>,
}

/// Members that CreateFunction and UpdateFunctionConfiguration share.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct Settings {
    pub runtime: Option<String>,
    pub handler: Option<String>,
    pub description: Option<String>,
    pub timeout: Option<i64>,
    pub memory_size: Option<i64>,
    pub environment: Option<Environment>,
    pub ephemeral_storage: Option<EphemeralStorage>,
    pub snap_start: Option<SnapStart>,
    pub tracing_config: Option<TracingConfig>,
    pub logging_config: Option<LoggingConfig>,
    pub layers: Option<Vec<String>>,
    pub vpc_config: Option<serde_json::Value>,
    pub file_system_configs: Option<Vec<serde_json::Value>>,
    pub image_config: Option<serde_json::Value>,
    pub dead_letter_config: Option<DeadLetterConfig>,
    /// Ours.
    pub rouse_snapshot_point: Option<SnapshotPointSettings>,
    /// Ours: a JSON merge patch of the serving policy.
    pub rouse_serving: Option<serde_json::Value>,
}

/// Where events go that were given up.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct DeadLetterConfig {
    pub target_arn: Option<String>,
}

/// Body of PutFunctionEventInvokeConfig and UpdateFunctionEventInvokeConfig.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct EventInvokeConfig {
    pub maximum_retry_attempts: Option<u32>,
    pub maximum_event_age_in_seconds: Option<u64>,
    pub destination_config: Option<DestinationConfig>,
}

/// Who is told how events end.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct DestinationConfig {
    pub on_success: Option<DestinationArn>,
    pub on_failure: Option<DestinationArn>,
}

/// One of them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct DestinationArn {
    pub destination: Option<String>,
}

/// Environment variables.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct Environment {
    pub variables: Option<BTreeMap<String, String>>,
}

/// Size of `/tmp`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct EphemeralStorage {
    pub size: Option<i64>,
}

/// When snapshots are taken, in Lambda.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct SnapStart {
    pub apply_on: Option<String>,
}

/// Kept and given back.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct TracingConfig {
    pub mode: Option<String>,
}

/// Kept and given back.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs, reason = "named after the members of the API")]
pub struct LoggingConfig {
    pub log_format: Option<String>,
    pub application_log_level: Option<String>,
    pub system_log_level: Option<String>,
    pub log_group: Option<String>,
}
