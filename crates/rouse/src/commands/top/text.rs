//! The figures as words, for the screen and for pipes.

use super::rates::{FunctionRates, Rates};
use crate::output::quantity;
use crate::output::table::{Align, Table};

/// Columns of the table of functions.
pub const COLUMNS: [(&str, Align); 12] = [
    ("function", Align::Left),
    ("calls/s", Align::Right),
    ("errors/s", Align::Right),
    ("429/s", Align::Right),
    ("p50", Align::Right),
    ("p99", Align::Right),
    ("busy", Align::Right),
    ("idle", Align::Right),
    ("parked", Align::Right),
    ("held", Align::Right),
    ("queue", Align::Right),
    ("paths", Align::Left),
];

/// One interval as text.
pub fn page(rates: &Rates) -> String {
    let mut lines = header(rates);
    lines.push(String::new());
    let mut table = Table::new(COLUMNS);
    for one in &rates.functions {
        table.row(cells(one));
    }
    lines.push(table.to_string());
    lines.join("\n")
}

/// The node in a few lines.
pub fn header(rates: &Rates) -> Vec<String> {
    let requests = &rates.requests;
    let mut lines = vec![
        format!(
            "rouse {}  up {}  {} calls/s  {} errors/s  node {:.2} cpus, {}",
            rates.version,
            duration(rates.uptime_s),
            number(rates.calls_per_s),
            number(rates.errors_per_s),
            rates.cpus,
            quantity::bytes(rates.resident_bytes)
        ),
        format!(
            "requests  running {} of {}  starting {}  queue {}  events {}",
            requests.running,
            requests.limit,
            requests.starting,
            requests.waiting,
            rates.events_pending
        ),
    ];
    let tiers = ["dram", "far", "compressed", "disk"].into_iter();
    let tiers: Vec<String> = tiers
        .filter_map(|name| {
            let tier = rates.tiers.get(name)?;
            let used = quantity::bytes(tier.used);
            match tier.budget {
                // It is off.
                Some(0) => None,
                Some(budget) => Some(format!("{name} {used} of {}", quantity::bytes(budget))),
                None => Some(format!("{name} {used}")),
            }
        })
        .collect();
    lines.push(format!("tiers     {}", tiers.join("  ")));
    let sandboxes = &rates.sandboxes;
    lines.push(format!(
        "sandboxes ready {}  taken/s {}  missed/s {}",
        sandboxes.ready,
        number(sandboxes.taken_per_s),
        number(sandboxes.misses_per_s)
    ));
    lines.push(match &rates.pager {
        Some(pager) => format!(
            "pager     faults/s {}  pages/s {}  read {}/s  evicted/s {}",
            number(pager.faults_per_s),
            number(pager.filled_pages_per_s),
            quantity::bytes(pager.read_bytes_per_s as u64),
            number(pager.evicted_pages_per_s)
        ),
        None => "pager     none".to_owned(),
    });
    lines
}

/// A row of the table of functions.
pub fn cells(one: &FunctionRates) -> [String; COLUMNS.len()] {
    let name = match one.version.as_str() {
        "$LATEST" => one.name.clone(),
        version => format!("{}:{version}", one.name),
    };
    let time = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| quantity::microseconds(ms * 1e3));
    let mut paths: Vec<(&String, &f64)> = one.paths.iter().collect();
    paths.sort_by(|a, b| b.1.total_cmp(a.1));
    let paths: Vec<String> = paths
        .into_iter()
        .map(|(path, share)| format!("{path} {:.0}%", share * 100.0))
        .collect();
    [
        name,
        number(one.calls_per_s),
        number(one.errors_per_s),
        number(one.throttles_per_s),
        time(one.p50_ms),
        time(one.p99_ms),
        one.instances.busy.to_string(),
        one.instances.idle.to_string(),
        one.instances.parked.to_string(),
        one.instances.held.to_string(),
        one.waiting.map_or("-".to_owned(), |n| n.to_string()),
        paths.join(" "),
    ]
}

fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}
