//! From what a client sent to valid settings, or to the error that Lambda would answer.

use std::collections::BTreeMap;

use rouse_runtimes::Runtime;

use super::record::FunctionSettings;
use super::request::{CreateFunction, Settings};
use crate::refusal::Refusal;

/// Variables that Lambda sets and that a function's configuration must not name.
const RESERVED: [&str; 21] = [
    "_HANDLER",
    "_X_AMZN_TRACE_ID",
    "AWS_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_DEFAULT_REGION",
    "AWS_EXECUTION_ENV",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_MAX_CONCURRENCY",
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECRET_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "LAMBDA_RUNTIME_DIR",
    "LAMBDA_TASK_ROOT",
];

/// Collects what does not match the API's model, and says it all at once as Lambda does.
#[derive(Default)]
struct Violations(Vec<String>);

impl Violations {
    fn add(&mut self, value: &dyn std::fmt::Display, member: &str, constraint: &str) {
        self.0.push(format!(
            "Value '{value}' at '{member}' failed to satisfy constraint: {constraint}"
        ));
    }

    fn missing(&mut self, member: &str) {
        self.0.push(format!(
            "Value null at '{member}' failed to satisfy constraint: Member must not be null"
        ));
    }

    fn range(&mut self, value: Option<i64>, member: &str, low: i64, high: i64) {
        match value {
            Some(n) if n < low => self.add(
                &n,
                member,
                &format!("Member must have value greater than or equal to {low}"),
            ),
            Some(n) if n > high => self.add(
                &n,
                member,
                &format!("Member must have value less than or equal to {high}"),
            ),
            _ => {}
        }
    }

    fn one_of(&mut self, value: Option<&str>, member: &str, allowed: &[&str]) {
        if let Some(value) = value.filter(|value| !allowed.contains(value)) {
            self.add(
                &value,
                member,
                &format!(
                    "Member must satisfy enum value set: [{}]",
                    allowed.join(", ")
                ),
            );
        }
    }

    fn finish(self) -> Result<(), Refusal> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(Refusal::Validation(format!(
                "1 validation error detected: {}",
                self.0[0]
            ))),
            n => Err(Refusal::Validation(format!(
                "{n} validation errors detected: {}",
                self.0.join("; ")
            ))),
        }
    }
}

/// Settings of a new function.
pub fn create(request: &CreateFunction, name: &str) -> Result<FunctionSettings, Refusal> {
    let mut violations = Violations::default();
    if request.role.is_none() {
        violations.missing("role");
    }
    if request.code.is_none() {
        violations.missing("code");
    }
    violations.one_of(
        request.package_type.as_deref(),
        "packageType",
        &["Zip", "Image"],
    );
    model(&mut violations, request.role.as_deref(), &request.settings);
    violations.finish()?;
    if request.package_type.as_deref() == Some("Image") {
        return Err(Refusal::InvalidParameterValue(
            "Container images are not supported by this node; use PackageType Zip.".into(),
        ));
    }
    architecture(request.architectures.as_deref())?;
    let mut settings = FunctionSettings {
        runtime: String::new(),
        role: request.role.clone().unwrap_or_default(),
        handler: String::new(),
        description: String::new(),
        timeout_s: 3,
        memory_mib: 128,
        ephemeral_mib: 512,
        environment: BTreeMap::new(),
        has_environment: false,
        architecture: "x86_64".into(),
        snap_start: "None".into(),
        tracing_mode: "PassThrough".into(),
        log_format: "Text".into(),
        application_log_level: None,
        system_log_level: None,
        log_group: format!("/aws/lambda/{name}"),
        tags: request.tags.clone().unwrap_or_default(),
        snapshot_point: None,
    };
    merge(&mut settings, &request.settings)?;
    if settings.runtime.is_empty() {
        return Err(Refusal::InvalidParameterValue(
            "Runtime is mandatory for functions created with deployment packages.".into(),
        ));
    }
    if settings.handler.is_empty() {
        return Err(Refusal::InvalidParameterValue(
            "Handler is mandatory for functions created with deployment packages.".into(),
        ));
    }
    Ok(settings)
}

/// Settings after an update: members that the request does not name stay as they are.
pub fn update(
    old: &FunctionSettings,
    role: Option<&str>,
    request: &Settings,
) -> Result<FunctionSettings, Refusal> {
    let mut violations = Violations::default();
    model(&mut violations, role, request);
    violations.finish()?;
    let mut settings = old.clone();
    if let Some(role) = role {
        settings.role = role.to_owned();
    }
    merge(&mut settings, request)?;
    Ok(settings)
}

/// `x86_64`, or nothing.
pub fn architecture(asked: Option<&[String]>) -> Result<(), Refusal> {
    match asked {
        None | Some([]) => Ok(()),
        Some([one]) if one == "x86_64" => Ok(()),
        Some([one]) if one == "arm64" => Err(Refusal::InvalidParameterValue(
            "Architecture arm64 is not supported by this node.".into(),
        )),
        Some(other) => Err(Refusal::Validation(format!(
            "1 validation error detected: Value '[{}]' at 'architectures' failed to satisfy constraint: Member must satisfy constraint: [Member must satisfy enum value set: [x86_64, arm64]]",
            other.join(", ")
        ))),
    }
}

fn model(violations: &mut Violations, role: Option<&str>, settings: &Settings) {
    if let Some(role) = role.filter(|role| !is_role(role)) {
        violations.add(
            &role,
            "role",
            r"Member must satisfy regular expression pattern: arn:(aws[a-zA-Z-]*)?:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
        );
    }
    violations.range(settings.timeout, "timeout", 1, 5400);
    violations.range(settings.memory_size, "memorySize", 128, 32768);
    violations.range(
        settings.ephemeral_storage.as_ref().and_then(|e| e.size),
        "ephemeralStorage.size",
        512,
        32768,
    );
    if settings
        .ephemeral_storage
        .as_ref()
        .is_some_and(|e| e.size.is_none())
    {
        violations.missing("ephemeralStorage.size");
    }
    if let Some(handler) = &settings.handler {
        if handler.len() > 128 {
            violations.add(
                handler,
                "handler",
                "Member must have length less than or equal to 128",
            );
        } else if handler.contains(char::is_whitespace) || handler.is_empty() {
            violations.add(
                handler,
                "handler",
                r"Member must satisfy regular expression pattern: [^\s]+",
            );
        }
    }
    if let Some(text) = settings
        .description
        .as_ref()
        .filter(|text| text.chars().count() > 256)
    {
        violations.add(
            text,
            "description",
            "Member must have length less than or equal to 256",
        );
    }
    violations.one_of(
        settings
            .snap_start
            .as_ref()
            .and_then(|s| s.apply_on.as_deref()),
        "snapStart.applyOn",
        &["PublishedVersions", "None"],
    );
    violations.one_of(
        settings
            .tracing_config
            .as_ref()
            .and_then(|t| t.mode.as_deref()),
        "tracingConfig.mode",
        &["Active", "PassThrough"],
    );
    violations.one_of(
        settings
            .logging_config
            .as_ref()
            .and_then(|l| l.log_format.as_deref()),
        "loggingConfig.logFormat",
        &["JSON", "Text"],
    );
    for name in settings
        .environment
        .iter()
        .flat_map(|e| e.variables.iter().flatten())
        .map(|(name, _)| name)
    {
        let mut bytes = name.bytes();
        let ok = name.len() >= 2
            && bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !ok && !RESERVED.contains(&name.as_str()) {
            violations.add(
                name,
                "environment.variables",
                "Map keys must satisfy constraint: [Member must satisfy regular expression pattern: [a-zA-Z]([a-zA-Z0-9_])+]",
            );
        }
    }
}

fn merge(settings: &mut FunctionSettings, request: &Settings) -> Result<(), Refusal> {
    unsupported(request)?;
    if let Some(runtime) = &request.runtime {
        if Runtime::parse(runtime).is_none() {
            return Err(Refusal::InvalidParameterValue(format!(
                "Value {runtime} at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: [python3, python3.8, python3.9, python3.10, python3.11, python3.12, python3.13, python3.14, nodejs, nodejs18.x, nodejs20.x, nodejs22.x, provided, provided.al2, provided.al2023] or be a valid ARN"
            )));
        }
        settings.runtime = runtime.clone();
    }
    if let Some(handler) = &request.handler {
        settings.handler = handler.clone();
    }
    if let Some(description) = &request.description {
        settings.description = description.clone();
    }
    // The ranges have been checked, so the casts lose nothing.
    if let Some(timeout) = request.timeout {
        settings.timeout_s = timeout as u32;
    }
    if let Some(memory) = request.memory_size {
        settings.memory_mib = memory as u32;
    }
    if let Some(size) = request.ephemeral_storage.as_ref().and_then(|e| e.size) {
        settings.ephemeral_mib = size as u32;
    }
    if let Some(environment) = &request.environment {
        let variables = environment.variables.clone().unwrap_or_default();
        check_environment(&variables)?;
        settings.has_environment = !variables.is_empty();
        settings.environment = variables;
    }
    if let Some(apply_on) = request
        .snap_start
        .as_ref()
        .and_then(|s| s.apply_on.as_ref())
    {
        settings.snap_start = apply_on.clone();
    }
    if let Some(mode) = request
        .tracing_config
        .as_ref()
        .and_then(|t| t.mode.as_ref())
    {
        settings.tracing_mode = mode.clone();
    }
    if let Some(point) = &request.rouse_snapshot_point {
        point.validate()?;
        settings.snapshot_point = Some(point.clone());
    }
    if let Some(logging) = &request.logging_config {
        if let Some(format) = &logging.log_format {
            settings.log_format = format.clone();
        }
        if let Some(group) = &logging.log_group {
            settings.log_group = group.clone();
        }
        if settings.log_format == "Text"
            && (logging.application_log_level.is_some() || logging.system_log_level.is_some())
        {
            return Err(Refusal::InvalidParameterValue(
                "To specify the application log level or the system log level, the log format must be JSON.".into(),
            ));
        }
        settings.application_log_level = logging
            .application_log_level
            .clone()
            .or(settings.application_log_level.take());
        settings.system_log_level = logging
            .system_log_level
            .clone()
            .or(settings.system_log_level.take());
    }
    Ok(())
}

fn check_environment(variables: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let reserved: Vec<&str> = variables
        .keys()
        .map(String::as_str)
        .filter(|name| RESERVED.contains(name))
        .collect();
    if !reserved.is_empty() {
        return Err(Refusal::InvalidParameterValue(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: {}",
            reserved.join(", ")
        )));
    }
    if let Some((name, _)) = variables.iter().find(|(_, value)| value.contains('\0')) {
        return Err(Refusal::InvalidParameterValue(format!(
            "Lambda was unable to configure your environment variables because the value of {name} contains a NUL character."
        )));
    }
    let bytes: usize = variables
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if bytes > 4096 {
        let text = serde_json::to_string(variables).unwrap_or_default();
        return Err(Refusal::InvalidParameterValue(format!(
            "Lambda was unable to configure your environment variables because the environment variables you have provided exceeded the 4KB limit. String measured: {text}"
        )));
    }
    Ok(())
}

/// Features that would silently not work are refused by name.
fn unsupported(request: &Settings) -> Result<(), Refusal> {
    let filled = |value: &Option<serde_json::Value>, member: &str| {
        value
            .as_ref()
            .and_then(|v| v.get(member))
            .is_some_and(|v| match v {
                serde_json::Value::Array(items) => !items.is_empty(),
                serde_json::Value::String(text) => !text.is_empty(),
                other => !other.is_null(),
            })
    };
    let name = if request.layers.as_ref().is_some_and(|l| !l.is_empty()) {
        "Layers"
    } else if filled(&request.vpc_config, "SubnetIds")
        || filled(&request.vpc_config, "SecurityGroupIds")
    {
        "VpcConfig"
    } else if request
        .file_system_configs
        .as_ref()
        .is_some_and(|f| !f.is_empty())
    {
        "FileSystemConfigs"
    } else if ["EntryPoint", "Command", "WorkingDirectory"]
        .iter()
        .any(|member| filled(&request.image_config, member))
    {
        "ImageConfig"
    } else {
        return Ok(());
    };
    Err(Refusal::InvalidParameterValue(format!(
        "{name} is not supported by this node."
    )))
}

fn is_role(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("arn:") else {
        return false;
    };
    let Some((partition, rest)) = rest.split_once(":iam::") else {
        return false;
    };
    let Some((account, rest)) = rest.split_once(":role") else {
        return false;
    };
    let path = rest.strip_prefix('/').unwrap_or(rest);
    (partition.is_empty() || partition.starts_with("aws"))
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && !path.is_empty()
        && path
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"+=,.@-_/".contains(&b))
}

#[cfg(test)]
#[path = "validate_tests.rs"]
mod tests;
