//! `rouse deploy`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use rouse_node::PointPolicy;
use serde_json::Value;

use super::NodeArgs;
use super::configure::ServingArgs;
use super::describe::snapshot_lines;
use super::snapshots::EventsError;
use crate::client::api::{
    ApiError, Client, Configuration, Description, Environment, FunctionSettings, SnapshotView,
    decode,
};
use crate::output::error::Outcome;
use crate::output::progress::{Progress, Step};
use crate::output::{print_json, print_line, quantity};
use crate::package::detect::DetectError;
use crate::package::{Package, PackageError};

/// How often the node is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// Creates a function from a directory or a zip, or updates it, and waits until it is ready
///
/// Runtime and handler are guessed from the entry file: app.py, lambda_function.py, main.py, index.js, index.mjs,
/// index.cjs or bootstrap. `.git`, `.hg`, `.svn` and `__pycache__` are left out of a directory's package.
#[derive(Debug, clap::Args)]
pub struct DeployArgs {
    /// Directory with the function's code, or its zip
    path: PathBuf,
    /// Name of the function; made from the path if missing
    #[arg(long)]
    name: Option<String>,
    /// For instance python3, nodejs or provided
    #[arg(long)]
    runtime: Option<String>,
    /// MODULE.FUNCTION, as in Lambda
    #[arg(long)]
    handler: Option<String>,
    /// Memory limit, MiB
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// Limit of one invocation, seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// An environment variable; replaces all that the function had
    #[arg(long = "env", short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    environment: Vec<(String, String)>,
    #[command(flatten)]
    point: SnapshotPointArgs,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// When snapshots are taken.
#[derive(Debug, clap::Args)]
pub struct SnapshotPointArgs {
    /// When snapshots are taken: `init`, `warm` (after warm-up events) or `auto[:N]` (a later one is tried after N
    /// invocations, and kept if it is better)
    #[arg(long, value_name = "POLICY", value_parser = parse_policy)]
    snapshot_point: Option<Policy>,
    /// JSON array of events to run before a snapshot; the package's rouse-warm-up.json if missing
    #[arg(long, value_name = "FILE", requires = "snapshot_point")]
    warm_up: Option<PathBuf>,
    /// Times that all warm-up events are run, with `warm`
    #[arg(long, value_name = "N", requires = "snapshot_point")]
    warm_up_rounds: Option<u32>,
}

/// `warm`, `auto:50`, ...
#[derive(Debug, Clone, PartialEq, Eq)]
struct Policy {
    name: PointPolicy,
    after: Option<u64>,
}

fn parse_policy(text: &str) -> Result<Policy, String> {
    let (name, after) = match text.split_once(':') {
        Some((name, after)) => (name, Some(after)),
        None => (text, None),
    };
    let name: PointPolicy = name.parse()?;
    let after = match after {
        None => None,
        Some(_) if name != PointPolicy::Auto => {
            return Err("only auto takes a number of invocations".to_owned());
        }
        Some(after) => match after.parse() {
            Ok(after) if after > 0 => Some(after),
            _ => return Err(format!("{after:?} is no number of invocations")),
        },
    };
    Ok(Policy { name, after })
}

impl SnapshotPointArgs {
    /// As the API wants it; `None` when nothing was said.
    pub fn settings(&self) -> Result<Option<Value>, EventsError> {
        let Some(policy) = &self.snapshot_point else {
            return Ok(None);
        };
        let mut settings = serde_json::json!({ "policy": policy.name.name() });
        if let Some(after) = policy.after {
            settings["after"] = after.into();
        }
        if let Some(rounds) = self.warm_up_rounds {
            settings["rounds"] = rounds.into();
        }
        if let Some(path) = &self.warm_up {
            let text = std::fs::read(path).map_err(|source| EventsError::Read {
                path: path.clone(),
                source,
            })?;
            let events: Vec<Value> =
                serde_json::from_slice(&text).map_err(|source| EventsError::Json {
                    path: path.clone(),
                    source,
                })?;
            settings["events"] = events.into();
        }
        Ok(Some(settings))
    }
}

/// Why a function could not be deployed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    /// There is no package.
    #[error("there is nothing to deploy")]
    Package(#[from] PackageError),
    /// The path gives no name.
    #[error("{} gives no name: say --name", path.display())]
    Name {
        /// The path.
        path: PathBuf,
    },
    /// Runtime or handler are not known.
    #[error("runtime and handler cannot be guessed")]
    Guess(#[from] DetectError),
    /// The node refused.
    #[error("the node could not deploy {name}")]
    Api {
        /// The function.
        name: String,
        /// Why.
        source: ApiError,
    },
    /// The function could not be initialised.
    #[error("{name} failed: {reason}")]
    Failed {
        /// The function.
        name: String,
        /// What the node says.
        reason: String,
    },
}

/// A function to be made or updated.
#[derive(Debug)]
pub struct Deployment<'a> {
    /// Name.
    pub name: &'a str,
    /// Its zip.
    pub zip: &'a [u8],
    /// Its settings.
    pub settings: &'a FunctionSettings,
}

/// A function that is ready.
#[derive(Debug)]
pub struct Deployed {
    /// Whether it is new.
    pub created: bool,
    /// rouse's description of it.
    pub description: Value,
    /// Its snapshot.
    pub snapshot: SnapshotView,
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// Runs the command.
pub fn run(args: &DeployArgs) -> Outcome {
    let progress = Progress::new(args.node.json);
    let step = progress.spinner(format!("packing {}", args.path.display()));
    let package = Package::open(&args.path).map_err(DeployError::from)?;
    step.done(quantity::bytes(package.zip.len() as u64));
    let name = args
        .name
        .clone()
        .or(package.name)
        .ok_or_else(|| DeployError::Name {
            path: args.path.clone(),
        })?;
    let mut settings = FunctionSettings {
        runtime: args.runtime.clone(),
        handler: args.handler.clone(),
        memory_size: args.memory,
        timeout: args.timeout,
        environment: (!args.environment.is_empty()).then(|| Environment {
            variables: args.environment.iter().cloned().collect(),
        }),
        snapshot_point: args.point.settings()?,
        serving: args.serving.patch(),
    };
    if settings.runtime.is_none() || settings.handler.is_none() {
        let guess = package.guess.map_err(DeployError::from)?;
        settings
            .runtime
            .get_or_insert_with(|| guess.runtime.to_owned());
        settings.handler.get_or_insert(guess.handler);
    }
    let deployed = deploy(
        &args.node.client(),
        &Deployment {
            name: &name,
            zip: &package.zip,
            settings: &settings,
        },
        &progress,
    )?;
    if args.node.json {
        print_json(&deployed.description)?;
    } else {
        let configuration: Configuration = decode(
            "describe",
            deployed
                .description
                .get("configuration")
                .cloned()
                .unwrap_or_default(),
        )?;
        let verb = if deployed.created {
            "created"
        } else {
            "updated"
        };
        print_line(format_args!(
            "{verb} {name} ({}, {})",
            configuration.runtime, configuration.handler
        ))?;
        print_line(format_args!("snapshot: {}", deployed.snapshot.state))?;
        for (key, text) in snapshot_lines(&deployed.snapshot) {
            print_line(format_args!("{key}: {text}"))?;
        }
        print_line(format_args!("try it: rouse invoke {name}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates or updates the function, and waits until it and its snapshot are ready or have failed.
pub fn deploy(
    client: &Client,
    deployment: &Deployment<'_>,
    progress: &Progress,
) -> Result<Deployed, DeployError> {
    let api = |source| DeployError::Api {
        name: deployment.name.to_owned(),
        source,
    };
    let step = progress.spinner(format!("deploying {}", deployment.name));
    step.message("sending");
    let created = match client.create_function(deployment.name, deployment.settings, deployment.zip)
    {
        Ok(_) => true,
        Err(error) if error.is_conflict() => {
            update(client, deployment, &step)?;
            false
        }
        Err(error) => return Err(api(error)),
    };
    wait(client, deployment.name, &step)?;
    let (description, snapshot) = wait_for_snapshot(client, deployment.name, &step)?;
    match snapshot.state.as_str() {
        "ready" => step.done(format_args!(
            "snapshot ready, {}",
            quantity::bytes(snapshot.bytes.unwrap_or(0))
        )),
        state => step.warn(format_args!(
            "no snapshot ({state}): {}; it starts cold",
            snapshot.reason.as_deref().unwrap_or("no reason given")
        )),
    }
    Ok(Deployed {
        created,
        description,
        snapshot,
    })
}

/// Code first, then configuration, each waited for: the node takes one change at a time.
fn update(client: &Client, deployment: &Deployment<'_>, step: &Step) -> Result<(), DeployError> {
    let api = |source| DeployError::Api {
        name: deployment.name.to_owned(),
        source,
    };
    wait(client, deployment.name, step)?;
    step.message("updating the code");
    client
        .update_code(deployment.name, deployment.zip)
        .map_err(api)?;
    wait(client, deployment.name, step)?;
    step.message("updating the configuration");
    client
        .update_configuration(deployment.name, deployment.settings)
        .map_err(api)?;
    Ok(())
}

/// Waits until neither the function nor its last update is on its way.
fn wait(client: &Client, name: &str, step: &Step) -> Result<(), DeployError> {
    loop {
        let now = client
            .configuration(name)
            .map_err(|source| DeployError::Api {
                name: name.to_owned(),
                source,
            })?;
        if now.state == "Pending" || now.last_update_status == "InProgress" {
            step.message(
                now.state_reason
                    .as_deref()
                    .unwrap_or("initialising and taking the snapshot"),
            );
            thread::sleep(POLL);
            continue;
        }
        let failed = if now.state == "Failed" {
            now.state_reason
        } else if now.last_update_status == "Failed" {
            now.last_update_status_reason
        } else {
            return Ok(());
        };
        return Err(DeployError::Failed {
            name: name.to_owned(),
            reason: failed.unwrap_or_else(|| "the node gives no reason".to_owned()),
        });
    }
}

/// Waits until the snapshot's state is final.
fn wait_for_snapshot(
    client: &Client,
    name: &str,
    step: &Step,
) -> Result<(Value, SnapshotView), DeployError> {
    let api = |source| DeployError::Api {
        name: name.to_owned(),
        source,
    };
    loop {
        let value = client.describe(name).map_err(api)?;
        let description: Description = decode("describe", value.clone()).map_err(api)?;
        match description.snapshot.state.as_str() {
            "pending" => {
                step.message("taking the snapshot");
                thread::sleep(POLL);
            }
            _ => return Ok((value, description.snapshot)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Policy, parse_policy, parse_variable};
    use rouse_node::PointPolicy;

    #[test]
    fn policies_are_named_and_only_auto_counts() {
        let policy = |name, after| Ok(Policy { name, after });
        assert_eq!(parse_policy("init"), policy(PointPolicy::Init, None));
        assert_eq!(parse_policy("warm"), policy(PointPolicy::Warm, None));
        assert_eq!(parse_policy("auto"), policy(PointPolicy::Auto, None));
        assert_eq!(parse_policy("auto:7"), policy(PointPolicy::Auto, Some(7)));
        for bad in ["", "later", "auto:", "auto:0", "auto:x", "warm:3"] {
            assert!(parse_policy(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_have_a_name_and_may_hold_equals_signs() {
        assert_eq!(
            parse_variable("A=b=c"),
            Ok(("A".to_owned(), "b=c".to_owned()))
        );
        assert_eq!(parse_variable("A="), Ok(("A".to_owned(), String::new())));
        assert!(parse_variable("=x").is_err());
        assert!(parse_variable("A").is_err());
    }
}
