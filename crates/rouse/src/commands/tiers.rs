//! `rouse tiers`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use console::style;
use serde::Deserialize;

use super::NodeArgs;
use crate::client::api::decode;
use crate::output::error::{Failed, Outcome};
use crate::output::table::{Align, Table};
use crate::output::{print_json, print_line, quantity};

/// Shows in which tier each function's memory is, and what things cost on the node's host
#[derive(Debug, clap::Args)]
pub struct TiersArgs {
    #[command(flatten)]
    node: NodeArgs,
}

/// What the node says.
#[derive(Debug, Deserialize)]
struct TiersView {
    inputs: InputsView,
    /// Older nodes do not say.
    measured: Option<MeasuredView>,
    choices: ChoicesView,
    far_problem: Option<String>,
    tiers: BTreeMap<String, TierView>,
    functions: Vec<PlaceView>,
    templates: Vec<PlaceView>,
}

#[derive(Debug, Deserialize)]
struct InputsView {
    map_ahead_ns: f64,
    map_fault_ns: f64,
    copy_ahead_ns: f64,
    copy_fault_ns: f64,
    recopy_ns: f64,
    lone_map_fault_ns: f64,
    lone_copy_fault_ns: f64,
    mapping_ns: f64,
    read_ns: f64,
    handler_fault_ns: f64,
    fill_ns: f64,
    copy_bytes_per_s: f64,
    codecs: Vec<CodecView>,
    disk: TransferView,
    far: Option<TransferView>,
}

#[derive(Debug, Deserialize)]
struct MeasuredView {
    at_s: u64,
    times: u32,
}

#[derive(Debug, Deserialize)]
struct ChoicesView {
    restore_unwritten: Option<u64>,
    restore_written: u64,
    template_written: Option<u64>,
    template_pages: u64,
    hole_pages: u64,
}

#[derive(Debug, Deserialize)]
struct CodecView {
    codec: String,
    encode_ns: f64,
    decode_ns: f64,
}

#[derive(Debug, Deserialize)]
struct TransferView {
    latency_ns: f64,
    bytes_per_s: f64,
}

#[derive(Debug, Deserialize)]
struct TierView {
    budget: Option<u64>,
    used: u64,
    functions: u64,
}

#[derive(Debug, Deserialize)]
struct PlaceView {
    name: String,
    residency: String,
    tier: String,
    target: String,
    heat: f64,
    pages: u64,
    hot_pages: u64,
    dram_bytes: u64,
    far_bytes: u64,
    compressed_bytes: u64,
    disk_bytes: u64,
}

/// From the fastest to the slowest.
const TIERS: [&str; 4] = ["dram", "far", "compressed", "disk"];

/// Runs the command.
pub fn run(args: &TiersArgs) -> Outcome {
    let value = args.node.client().tiers()?;
    if args.node.json {
        print_json(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view: TiersView = decode("tiers", value)?;
    print_tiers(&view)?;
    if let Some(problem) = &view.far_problem {
        print_line(format_args!("far memory is not used: {problem}"))?;
    }
    print_line("")?;
    print_functions(&view)?;
    print_line("")?;
    print_line(measured(view.measured.as_ref()))?;
    print_inputs(&view.inputs)?;
    print_line("")?;
    print_choices(&view.choices)?;
    Ok(ExitCode::SUCCESS)
}

fn print_tiers(view: &TiersView) -> Result<(), Failed> {
    let mut table = Table::new([
        ("tier", Align::Left),
        ("used", Align::Right),
        ("budget", Align::Right),
        ("functions", Align::Right),
    ]);
    for name in TIERS {
        let Some(tier) = view.tiers.get(name) else {
            continue;
        };
        let budget = match tier.budget {
            Some(0) => "off".to_owned(),
            Some(bytes) => quantity::bytes(bytes),
            None => "-".to_owned(),
        };
        table.row([
            name.to_owned(),
            quantity::bytes(tier.used),
            budget,
            tier.functions.to_string(),
        ]);
    }
    print_line(table)?;
    Ok(())
}

fn print_functions(view: &TiersView) -> Result<(), Failed> {
    if view.functions.is_empty() {
        print_line("no function has a snapshot")?;
        return Ok(());
    }
    let mut table = Table::new([
        ("function", Align::Left),
        ("tier", Align::Left),
        ("wanted", Align::Left),
        ("calls/min", Align::Right),
        ("pages", Align::Right),
        ("hot", Align::Right),
        ("dram", Align::Right),
        ("far", Align::Right),
        ("compressed", Align::Right),
        ("disk", Align::Right),
        ("", Align::Left),
    ]);
    for place in view.functions.iter().chain(&view.templates) {
        table.row([
            place.name.clone(),
            place.tier.clone(),
            place.target.clone(),
            format!("{:.1}", place.heat * 60.0),
            place.pages.to_string(),
            place.hot_pages.to_string(),
            quantity::bytes(place.dram_bytes),
            quantity::bytes(place.far_bytes),
            quantity::bytes(place.compressed_bytes),
            quantity::bytes(place.disk_bytes),
            style(&place.residency).dim().to_string(),
        ]);
    }
    print_line(table)?;
    Ok(())
}

/// When the inputs were measured.
fn measured(measured: Option<&MeasuredView>) -> String {
    let Some(MeasuredView { at_s, times }) = measured else {
        return "costs are defaults: they are not measured yet".to_owned();
    };
    if *times == 0 {
        return "costs are defaults in part: memory or disk could not be measured".to_owned();
    }
    let ago = UNIX_EPOCH
        .checked_add(Duration::from_secs(*at_s))
        .and_then(|at| SystemTime::now().duration_since(at).ok())
        .unwrap_or_default()
        .as_secs();
    let ago = match ago {
        0..120 => format!("{ago} s"),
        120..7200 => format!("{} min", ago / 60),
        7200..172_800 => format!("{} h", ago / 3600),
        _ => format!("{} days", ago / 86_400),
    };
    format!("costs measured {ago} ago, best of {times}")
}

fn print_inputs(inputs: &InputsView) -> Result<(), Failed> {
    let ns = |ns: f64| format!("{:.2} us", ns / 1000.0);
    let rate = |rate: f64| format!("{:.2} GB/s", rate / 1e9);
    let mut lines = vec![
        (
            "map a page",
            format!(
                "{} ahead, {} by a fault, {} by one that comes alone",
                ns(inputs.map_ahead_ns),
                ns(inputs.map_fault_ns),
                ns(inputs.lone_map_fault_ns)
            ),
        ),
        (
            "copy a page",
            format!(
                "{} ahead ({} if it is mapped), {} by a fault, {} by one that comes alone, memory at {}",
                ns(inputs.copy_ahead_ns),
                ns(inputs.recopy_ns),
                ns(inputs.copy_fault_ns),
                ns(inputs.lone_copy_fault_ns),
                rate(inputs.copy_bytes_per_s)
            ),
        ),
        (
            "a mapping",
            format!(
                "{} to have one more; {} to read a page instead",
                ns(inputs.mapping_ns),
                ns(inputs.read_ns)
            ),
        ),
        (
            "bring a page",
            format!(
                "{} by a handler, {} to fill it",
                ns(inputs.handler_fault_ns),
                ns(inputs.fill_ns)
            ),
        ),
        (
            "disk",
            format!(
                "{} for a read, then {}",
                ns(inputs.disk.latency_ns),
                rate(inputs.disk.bytes_per_s)
            ),
        ),
    ];
    if let Some(far) = &inputs.far {
        let text = format!(
            "{} for a read, then {}",
            ns(far.latency_ns),
            rate(far.bytes_per_s)
        );
        lines.push(("far", text));
    }
    for (name, text) in lines {
        print_line(format_args!(
            "{}  {text}",
            style(format!("{name:<12}")).bold()
        ))?;
    }
    for codec in &inputs.codecs {
        let name = style(format!("{:<12}", codec.codec)).bold().to_string();
        let (encode, decode) = (ns(codec.encode_ns), ns(codec.decode_ns));
        print_line(format_args!(
            "{name}  {decode} to decode a page, {encode} to encode it"
        ))?;
    }
    Ok(())
}

/// What follows from the inputs for pages that a boot may map or copy.
fn print_choices(choices: &ChoicesView) -> Result<(), Failed> {
    let up_to = |pages: Option<u64>, what: &str| match pages {
        Some(pages) => format!("if at most {pages} of its pages are {what}"),
        None => "never".to_owned(),
    };
    let lines = [
        (
            "restore",
            format!(
                "copies a piece between others {}; up to {} pages that all are",
                up_to(choices.restore_unwritten, "not written"),
                choices.restore_written
            ),
        ),
        (
            "template",
            format!(
                "copies a piece between others {}; up to {} pages",
                up_to(choices.template_written, "written"),
                choices.template_pages
            ),
        ),
        (
            "snapshot",
            format!(
                "saves zeros between other pages if they are fewer than {}",
                choices.hole_pages
            ),
        ),
    ];
    for (name, text) in lines {
        print_line(format_args!(
            "{}  {text}",
            style(format!("{name:<12}")).bold()
        ))?;
    }
    Ok(())
}
