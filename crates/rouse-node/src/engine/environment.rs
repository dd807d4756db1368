//! What a function's processes see: command line, variables, limits.

use std::path::Path;

use rouse_process::instance::LaunchSpec;
use rouse_runtimes::{Runtime, command};
use rouse_sandbox::{Limits, Network};

use crate::config::NodeConfig;
use crate::function::record::{FunctionRecord, FunctionSettings};

/// MiB of memory for which Lambda gives one whole CPU.
const MIB_PER_CPU: u64 = 1769;

const INITIALIZATION_TYPE: &str = "AWS_LAMBDA_INITIALIZATION_TYPE";

/// How a function's instances are launched.
#[derive(Debug, Clone)]
pub struct Launches {
    /// For cold starts that serve requests: `on-demand`.
    pub cold: LaunchSpec,
    /// For the start that is snapshotted, and for its copies.
    pub snapshot: LaunchSpec,
    /// Does the runtime of `snapshot` park in `restore/next`?
    pub snapshotting: bool,
}

/// Derives command lines, variables and limits from a function's settings.
/// `None` when the runtime is unknown, which can only be when another version of rouse accepted it.
pub fn launches(config: &NodeConfig, record: &FunctionRecord, task_dir: &Path) -> Option<Launches> {
    let settings = &record.settings;
    let runtime = Runtime::parse(&settings.runtime)?;
    let interpreters = rouse_runtimes::Interpreters {
        python3: config.interpreters.python3.clone(),
        nodejs: config.interpreters.nodejs.clone(),
    };
    let command = command(runtime, &interpreters, task_dir, &settings.handler);
    let mut env = Variables(common_variables(config));
    for (name, value) in [
        ("_HANDLER", settings.handler.as_str()),
        ("AWS_LAMBDA_FUNCTION_NAME", &record.name),
        ("AWS_LAMBDA_FUNCTION_VERSION", &record.version),
        (
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
            &settings.memory_mib.to_string(),
        ),
        ("AWS_LAMBDA_LOG_GROUP_NAME", &settings.log_group),
        (
            "AWS_LAMBDA_LOG_STREAM_NAME",
            &format!("rouse/[{}]{}", record.version, record.revision_id),
        ),
        ("AWS_LAMBDA_LOG_FORMAT", &settings.log_format),
        (
            "AWS_EXECUTION_ENV",
            &format!("AWS_Lambda_{}", settings.runtime),
        ),
        (
            INITIALIZATION_TYPE,
            if runtime.snapstart() {
                "snap-start"
            } else {
                "on-demand"
            },
        ),
    ] {
        env.set(name, value);
    }
    if let Some(level) = &settings.application_log_level {
        env.set("AWS_LAMBDA_LOG_LEVEL", level);
    }
    // The client's variables beat ours, the function's beat both.
    for (name, value) in command
        .env
        .iter()
        .map(|(name, value)| (name, value))
        .chain(&settings.environment)
    {
        env.set(name, value);
    }
    let snapshotting = env.get(INITIALIZATION_TYPE) == Some("snap-start");
    let limits = limits(config, settings);
    let snapshot = LaunchSpec {
        argv: command.argv,
        env: env.0.clone(),
        task_dir: task_dir.to_owned(),
        cwd: "/var/task".into(),
        limits,
    };
    env.set(INITIALIZATION_TYPE, "on-demand");
    let cold = LaunchSpec {
        env: env.0,
        ..snapshot.clone()
    };
    Some(Launches {
        cold,
        snapshot,
        snapshotting,
    })
}

/// The limits of a function's instances.
pub fn limits(config: &NodeConfig, settings: &FunctionSettings) -> Limits {
    Limits {
        memory: u64::from(settings.memory_mib) << 20,
        pids: config.pids,
        // Lambda gives less than one CPU below 1769 MiB. Here an instance lives for one request and the
        // scheduler shares what there is, so a slow-motion CPU would only add latency.
        cpu_millis: u32::try_from((u64::from(settings.memory_mib) * 1000 / MIB_PER_CPU).max(1000))
            .unwrap_or(u32::MAX),
        tmp: u64::from(settings.ephemeral_mib) << 20,
        network: if config.outbound_network {
            Network::Outbound
        } else {
            Network::None
        },
    }
}

/// What all functions of a node have, unless they say otherwise.
pub fn common_variables(config: &NodeConfig) -> Vec<(String, String)> {
    [
        (
            "PATH",
            "/var/lang/bin:/usr/local/bin:/usr/bin:/bin:/opt/bin",
        ),
        ("LD_LIBRARY_PATH", "/var/task:/var/task/lib:/opt/lib"),
        ("LANG", "C.UTF-8"),
        ("TZ", ":UTC"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime"),
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"),
        ("AWS_REGION", &config.region),
        ("AWS_DEFAULT_REGION", &config.region),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

struct Variables(Vec<(String, String)>);

impl Variables {
    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value.to_owned(),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }
}
