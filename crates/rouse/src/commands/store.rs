//! `rouse gc` and `rouse fsck`: the snapshots of a node, while it runs or not.

use std::path::PathBuf;
use std::process::ExitCode;

use rouse_pool::SnapshotStore;
use rouse_pool::key::{NODE_KEY_FILE, NodeKey};
use rouse_pool::snapshot_store::{FsckReport, GcOptions};

use crate::output::error::{FAILURE, Outcome};
use crate::output::{print_json, print_line};
use crate::settings::Settings;

/// What both commands take.
#[derive(Debug, clap::Args)]
pub struct StoreArgs {
    /// State directory of the node, as `rouse serve` was given it
    #[arg(long, env = "ROUSE_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Gives back the room of snapshots that were removed
#[derive(Debug, clap::Args)]
pub struct GcArgs {
    #[command(flatten)]
    store: StoreArgs,
}

/// Checks every byte of every snapshot, and names what is damaged and what nobody needs
///
/// Changes nothing. A function whose snapshot is damaged is served cold and built again when the node loads it.
#[derive(Debug, clap::Args)]
pub struct FsckArgs {
    #[command(flatten)]
    store: StoreArgs,
}

impl StoreArgs {
    /// A state directory without a key has no snapshots: none is made here.
    fn open(&self) -> Result<SnapshotStore, Box<dyn std::error::Error + Send + Sync>> {
        let root = match &self.state_dir {
            Some(root) => root.clone(),
            None => Settings::defaults()
                .state_dir
                .ok_or("the state directory has no default: give --state-dir")?,
        };
        let root = std::path::absolute(root)?;
        let key = NodeKey::load(&root.join(NODE_KEY_FILE))?;
        Ok(SnapshotStore::open(&root, key)?)
    }
}

/// Runs `rouse gc`.
pub fn gc(args: &GcArgs) -> Outcome {
    let report = args.store.open()?.gc(GcOptions::default())?;
    if args.store.json {
        print_json(&serde_json::json!({
            "removedPacks": report.removed_packs,
            "rewrittenPacks": report.rewritten_packs,
            "removedDictionaries": report.removed_dictionaries,
            "removedLeftovers": report.removed_leftovers,
            "freedBytes": report.freed_bytes,
            "unreadable": report.unreadable,
        }))?;
    } else {
        print_line(&report)?;
        for name in &report.unreadable {
            print_line(format_args!(
                "the page map of {name} cannot be read: no pack is removed until it is gone"
            ))?;
        }
    }
    Ok(exit(report.unreadable.is_empty()))
}

/// Runs `rouse fsck`.
pub fn fsck(args: &FsckArgs) -> Outcome {
    let report = args.store.open()?.fsck()?;
    if args.store.json {
        print_json(&as_json(&report))?;
    } else {
        print(&report)?;
    }
    Ok(exit(report.is_clean()))
}

fn exit(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FAILURE)
    }
}

fn print(report: &FsckReport) -> std::io::Result<()> {
    for damage in &report.damages {
        let whose = match &damage.snapshots[..] {
            [] => "no snapshot".to_owned(),
            names => names.join(", "),
        };
        print_line(format_args!("damaged: {} (affects {whose})", damage.what))?;
    }
    for orphan in &report.orphans {
        print_line(format_args!(
            "orphaned: {} bytes at byte {} of pack {}",
            orphan.stored_len, orphan.offset, orphan.pack
        ))?;
    }
    for path in &report.leftovers {
        print_line(format_args!("left over: {path}"))?;
    }
    print_line(format_args!(
        "{} snapshots, {} packs, {} chunks: {} damaged, {} orphaned; {} snapshots affected",
        report.snapshots,
        report.packs,
        report.chunks,
        report.damages.len(),
        report.orphans.len(),
        report.affected().len()
    ))
}

fn as_json(report: &FsckReport) -> serde_json::Value {
    let damages: Vec<_> = report
        .damages
        .iter()
        .map(|damage| serde_json::json!({ "what": damage.what, "snapshots": damage.snapshots }))
        .collect();
    let orphans: Vec<_> = report
        .orphans
        .iter()
        .map(|orphan| {
            serde_json::json!({
                "pack": orphan.pack.to_string(),
                "offset": orphan.offset,
                "storedBytes": orphan.stored_len,
            })
        })
        .collect();
    serde_json::json!({
        "snapshots": report.snapshots,
        "packs": report.packs,
        "chunks": report.chunks,
        "damages": damages,
        "affected": report.affected(),
        "orphans": orphans,
        "leftovers": report.leftovers,
    })
}
