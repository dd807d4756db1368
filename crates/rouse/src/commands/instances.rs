//! `rouse start`, `rouse fork`, `rouse ps` and `rouse end`: instances that can be named.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use console::style;
use serde::Deserialize;
use serde_json::{Value, json};

use super::NodeArgs;
use crate::client::api::decode;
use crate::output::error::Outcome;
use crate::output::table::{Align, Table};
use crate::output::{print_json, print_line, quantity};

/// Starts instances of a function that only answer when they are named, and keep their state
///
/// Prints their names, one a line. `rouse invoke NAME --instance INSTANCE` lets one answer.
#[derive(Debug, clap::Args)]
pub struct StartArgs {
    /// Function
    name: String,
    #[command(flatten)]
    wish: WishArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Makes copies of an instance that waits: each goes on from where the original is, which goes on, too
///
/// Prints their names, one a line. Copies share the original's memory until they write to it.
#[derive(Debug, clap::Args)]
pub struct ForkArgs {
    /// Instance to copy, as `rouse ps` lists it
    instance: String,
    #[command(flatten)]
    wish: WishArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// How many, and for how long.
#[derive(Debug, clap::Args)]
pub struct WishArgs {
    /// How many
    #[arg(long, short = 'n', default_value_t = 1, value_name = "N")]
    count: u32,
    /// Seconds that each is held while nobody uses it, instead of the node's `held_keep_alive_s`
    #[arg(long, value_name = "SECONDS")]
    keep_alive: Option<u64>,
}

impl WishArgs {
    fn as_json(&self) -> Value {
        json!({ "count": self.count, "keep_alive_s": self.keep_alive })
    }
}

/// Lists the instances that can be named
#[derive(Debug, clap::Args)]
pub struct PsArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// Ends instances: at once, or when they have answered
#[derive(Debug, clap::Args)]
pub struct EndArgs {
    /// Instances, as `rouse ps` lists them
    #[arg(required = true)]
    instances: Vec<String>,
    #[command(flatten)]
    node: NodeArgs,
}

/// An instance, as the node describes it.
#[derive(Debug, Deserialize)]
struct View {
    id: String,
    function: String,
    version: String,
    kind: String,
    state: String,
    #[serde(default)]
    from: Option<String>,
    since_ms: u64,
    answered: u64,
}

/// What a fork has made.
#[derive(Debug, Deserialize)]
struct ForkView {
    #[serde(default)]
    instances: Vec<View>,
    pause_us: u64,
    copied_pages: u64,
    total_us: u64,
}

/// An answer with instances.
#[derive(Debug, Deserialize)]
struct Instances {
    instances: Vec<View>,
}

/// Runs `rouse start`.
pub fn start(args: &StartArgs) -> Outcome {
    let made = (args.node.client()).start_instances(&args.name, &args.wish.as_json())?;
    if args.node.json {
        print_json(&made)?;
    } else {
        let made: Instances = decode("start", made)?;
        print_names(&made.instances)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `rouse fork`.
pub fn fork(args: &ForkArgs) -> Outcome {
    let made = (args.node.client()).fork_instance(&args.instance, &args.wish.as_json())?;
    if args.node.json {
        print_json(&made)?;
        return Ok(ExitCode::SUCCESS);
    }
    let made: ForkView = decode("fork", made)?;
    #[expect(
        clippy::cast_precision_loss,
        reason = "microseconds of one request fit 52 bits"
    )]
    let time = |us: u64| quantity::microseconds(us as f64);
    eprintln!(
        "{} {} in {}; the original stood still for {}, and {} of it were copied, once",
        style("✔").green().for_stderr(),
        match made.instances.len() {
            1 => "1 copy".to_owned(),
            count => format!("{count} copies"),
        },
        time(made.total_us),
        time(made.pause_us),
        quantity::bytes(made.copied_pages * 4096),
    );
    print_names(&made.instances)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `rouse ps`.
pub fn list(args: &PsArgs) -> Outcome {
    let found = args.node.client().instances()?;
    if args.node.json {
        print_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let found: Instances = decode("instances", found)?;
    if found.instances.is_empty() {
        print_line("no instances that can be named: start one with `rouse start FUNCTION`")?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new([
        ("instance", Align::Left),
        ("function", Align::Left),
        ("version", Align::Left),
        ("kind", Align::Left),
        ("state", Align::Left),
        ("age", Align::Right),
        ("answered", Align::Right),
        ("copy of", Align::Left),
    ]);
    let now = SystemTime::now();
    for one in found.instances {
        let since = UNIX_EPOCH + Duration::from_millis(one.since_ms);
        let age = now.duration_since(since).unwrap_or_default();
        table.row([
            one.id,
            one.function,
            one.version,
            one.kind,
            one.state,
            format!("{} s", age.as_secs()),
            one.answered.to_string(),
            one.from.unwrap_or_default(),
        ]);
    }
    print_line(table)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `rouse end`.
pub fn end(args: &EndArgs) -> Outcome {
    let client = args.node.client();
    for instance in &args.instances {
        client.end_instance(instance)?;
    }
    if args.node.json {
        print_json(&json!({ "ended": args.instances }))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_names(instances: &[View]) -> std::io::Result<()> {
    for one in instances {
        print_line(&one.id)?;
    }
    Ok(())
}
