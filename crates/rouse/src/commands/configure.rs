//! `rouse configure`: how a function is served.

use std::process::ExitCode;

use rouse_node::{Isolation, KeepAlive, OnDisconnect, SandboxChoice};
use serde_json::{Map, Value};

use super::NodeArgs;
use crate::client::api::decode;
use crate::client::shapes::ServingView;
use crate::output::error::Outcome;
use crate::output::{print_json, print_line};

/// Changes how a function is served; its snapshot and its instances stay
///
/// What is not named stays as it is. Without any flag the policy is only shown.
#[derive(Debug, clap::Args)]
pub struct ConfigureArgs {
    /// Function, or NAME:VERSION
    name: String,
    #[command(flatten)]
    serving: ServingArgs,
    /// Leave these to the node again, for instance `isolation,keep-alive`
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', value_parser = parse_name)]
    reset: Vec<String>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Declares the flags and the members of the policy from one list, so that they cannot drift apart.
macro_rules! serving {
    ($($(#[doc = $doc:literal])+ $(#[arg($($arg:tt)*)])? $name:ident: $type:ty,)*) => {
        /// How a function is served.
        #[derive(Debug, Clone, Default, clap::Args)]
        pub struct ServingArgs {
            $($(#[doc = $doc])+ #[arg(long, $($($arg)*)?)] $name: Option<$type>,)*
        }

        /// Names of the policy's members.
        const MEMBERS: &[&str] = &[$(stringify!($name)),*];

        impl ServingArgs {
            fn members(&self) -> Map<String, Value> {
                let mut members = Map::new();
                $(if let Some(value) = &self.$name {
                    members.insert(stringify!($name).into(), serde_json::json!(value));
                })*
                members
            }
        }
    };
}

serving! {
    /// What its instances run in: `process` (namespaces and a filter of system calls), or `microvm` (a virtual machine)
    #[arg(value_name = "KIND")]
    sandbox: SandboxChoice,
    /// Whether instances that have answered are used again: `request` (never), `instance` (as in Lambda) or `auto` (only
    /// without a snapshot)
    #[arg(value_name = "WHO")]
    isolation: Isolation,
    /// Instances that exist at any time
    #[arg(value_name = "N")]
    min_instances: u32,
    /// Instances that exist at most, those of all versions together
    #[arg(value_name = "N")]
    max_instances: u32,
    /// Requests that may run at the same time, and that others leave room for; 0 lets none run
    #[arg(value_name = "N")]
    reserved_concurrency: u32,
    /// Requests that may wait
    #[arg(value_name = "N")]
    queue_max: u32,
    /// Whose function it is; tenants share the node alike
    #[arg(value_name = "NAME")]
    tenant: String,
    /// Instances that are ready before their requests come
    #[arg(value_name = "N")]
    provisioned: u32,
    /// What comes of a running request whose client goes away: `end` or `finish`
    #[arg(value_name = "WHAT")]
    on_disconnect: OnDisconnect,
    /// How long idle instances are kept: seconds, or `histogram` (as the function's own pauses suggest)
    #[arg(value_name = "SECONDS")]
    keep_alive: KeepAlive,
    /// Instances that are kept parked, at least
    #[arg(value_name = "N")]
    parked_min: u32,
    /// The same at most; in between the rate of requests decides
    #[arg(value_name = "N")]
    parked_max: u32,
}

impl ServingArgs {
    /// As the API wants it; `None` when nothing was said.
    pub fn patch(&self) -> Option<Value> {
        let members = self.members();
        (!members.is_empty()).then_some(Value::Object(members))
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    let name = text.replace('-', "_");
    match MEMBERS.contains(&name.as_str()) {
        true => Ok(name),
        false => Err(format!("there are {}", MEMBERS.join(", "))),
    }
}

/// Runs the command.
pub fn run(args: &ConfigureArgs) -> Outcome {
    let mut patch = args.serving.members();
    for name in &args.reset {
        patch.insert(name.clone(), Value::Null);
    }
    let value = (args.node.client()).set_serving(&args.name, &Value::Object(patch))?;
    if args.node.json {
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view: ServingView = decode("serving", value)?;
    for (name, text) in lines(&view) {
        print_line(format_args!("{name}: {text}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What holds, one line for each member, and whether the function's owner has decided it.
pub fn lines(view: &ServingView) -> Vec<(&str, String)> {
    let text = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    (view.effective.iter())
        .map(|(name, value)| {
            let whose = match view.policy.contains_key(name) {
                true => "",
                false => " (the node's)",
            };
            (name.as_str(), format!("{}{whose}", text(value)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rouse_node::ServingPolicy;

    #[test]
    fn every_member_of_a_policy_has_a_flag() {
        let all = ServingArgs {
            sandbox: Some(SandboxChoice::Microvm),
            isolation: Some(Isolation::Instance),
            min_instances: Some(1),
            max_instances: Some(1),
            reserved_concurrency: Some(1),
            queue_max: Some(1),
            tenant: Some("t".into()),
            provisioned: Some(1),
            on_disconnect: Some(OnDisconnect::Finish),
            keep_alive: Some(KeepAlive::Histogram),
            parked_min: Some(1),
            parked_max: Some(1),
        };
        let patch = all.patch().expect("something was said");
        let policy = ServingPolicy::default().patched(&patch).expect("valid");
        let stored = serde_json::to_value(&policy).expect("JSON");
        assert_eq!(stored, patch);
        assert_eq!(ServingArgs::default().patch(), None);
        assert_eq!(parse_name("keep-alive"), Ok("keep_alive".to_owned()));
        assert!(parse_name("timeout").is_err());
    }
}
