//! A function as Lambda shows it.

use rouse_node::Node;
use rouse_node::control::code_sha256;
use rouse_node::function::arn::{LATEST, function_arn};
use rouse_node::function::record::{FunctionRecord, State};
use rouse_node::time::lambda_timestamp;
use serde_json::{Map, Value, json};

/// FunctionConfiguration. `qualifier` is what the client asked for, which the ARN repeats.
pub fn configuration(node: &Node, record: &FunctionRecord, qualifier: Option<&str>) -> Value {
    let settings = &record.settings;
    let config = node.config();
    let qualifier =
        qualifier.or(Some(record.version.as_str()).filter(|version| *version != LATEST));
    let mut value = json!({
        "FunctionName": record.name,
        "FunctionArn": function_arn(&config.region, &config.account, &record.name, qualifier),
        "Runtime": settings.runtime,
        "Role": settings.role,
        "Handler": settings.handler,
        "CodeSize": record.code.size,
        "Description": settings.description,
        "Timeout": settings.timeout_s,
        "MemorySize": settings.memory_mib,
        "LastModified": lambda_timestamp(record.last_modified_ms),
        "CodeSha256": code_sha256(&record.code),
        "Version": record.version,
        "TracingConfig": { "Mode": settings.tracing_mode },
        "RevisionId": record.revision_id,
        "PackageType": "Zip",
        "Architectures": [settings.architecture],
        "EphemeralStorage": { "Size": settings.ephemeral_mib },
        "SnapStart": { "ApplyOn": settings.snap_start, "OptimizationStatus": optimization(record) },
        "RuntimeVersionConfig": { "RuntimeVersionArn": format!("arn:aws:lambda:{}::runtime:{}", config.region, settings.runtime) },
        "LoggingConfig": logging(record),
    });
    if let Value::Object(members) = &mut value {
        if settings.has_environment {
            members.insert(
                "Environment".into(),
                json!({ "Variables": settings.environment }),
            );
        }
        if let Some(queue) = &record.events.dead_letters {
            members.insert(
                "DeadLetterConfig".into(),
                json!({ "TargetArn": queue.arn() }),
            );
        }
        state(members, record);
    }
    value
}

/// On for published versions of functions that asked for SnapStart, as clients expect. rouse takes snapshots in any case.
fn optimization(record: &FunctionRecord) -> &'static str {
    let on = record.version != LATEST
        && record.settings.snap_start == "PublishedVersions"
        && record.state == State::Done;
    if on { "On" } else { "Off" }
}

fn logging(record: &FunctionRecord) -> Value {
    let settings = &record.settings;
    let mut logging = json!({ "LogFormat": settings.log_format, "LogGroup": settings.log_group });
    if let Value::Object(members) = &mut logging {
        for (name, level) in [
            ("ApplicationLogLevel", &settings.application_log_level),
            ("SystemLogLevel", &settings.system_log_level),
        ] {
            if let Some(level) = level {
                members.insert(name.into(), json!(level));
            }
        }
    }
    logging
}

fn state(members: &mut Map<String, Value>, record: &FunctionRecord) {
    let mut put = |prefix: &str, name: &str, code: Option<&str>, reason: Option<&str>| {
        members.insert(prefix.into(), json!(name));
        if let Some(reason) = reason {
            members.insert(format!("{prefix}Reason"), json!(reason));
        }
        if let Some(code) = code {
            members.insert(format!("{prefix}ReasonCode"), json!(code));
        }
    };
    match &record.state {
        State::Busy => put(
            "State",
            "Pending",
            Some("Creating"),
            Some("The function is being created."),
        ),
        State::Done => put("State", "Active", None, None),
        State::Failed { code, reason } => put("State", "Failed", Some(code), Some(reason)),
    }
    match &record.last_update {
        State::Busy => put(
            "LastUpdateStatus",
            "InProgress",
            Some("Creating"),
            Some("The function is being updated."),
        ),
        State::Done => put("LastUpdateStatus", "Successful", None, None),
        State::Failed { code, reason } => {
            put("LastUpdateStatus", "Failed", Some(code), Some(reason))
        }
    }
}
