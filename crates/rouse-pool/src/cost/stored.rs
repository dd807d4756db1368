//! What was measured, kept for the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::{CostInputs, measure};

/// File in the state directory.
pub const COSTS_FILE: &str = "costs.json";

/// Changes when what is measured changes, so that older files are not taken for the same.
const VERSION: u32 = 3;

/// So often a host is measured, each time when a node starts or has nothing to do. The best of each number is kept: load
/// makes a number worse, never better. The first measurement alone may have met a host that was busy from end to end.
pub const MEASUREMENTS: u32 = 5;

/// What things cost here, and how that is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The best of all measurements.
    pub inputs: CostInputs,
    /// When the last one was, seconds since 1970.
    pub at_s: u64,
    /// How many there were. 0: memory or disk could not be measured, and some numbers are defaults.
    pub times: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// On which host it was measured.
    host: String,
    at_s: u64,
    times: u32,
    inputs: CostInputs,
}

impl Measured {
    /// What was measured on this host before, however well it is known.
    pub fn kept(state: &Path) -> Option<Self> {
        load(&state.join(COSTS_FILE), &host(state))
    }

    /// Measures, together with what was measured on this host before and kept in the directory `state`, unless that was often
    /// enough.
    ///
    /// Never fails: a file that cannot be used or written only means that it is measured again.
    pub fn load_or_measure(state: &Path) -> Self {
        let path = state.join(COSTS_FILE);
        let host = host(state);
        let before = load(&path, &host);
        if let Some(enough) = before.clone().filter(Self::is_settled) {
            return enough;
        }
        let mut inputs = before
            .as_ref()
            .map_or_else(CostInputs::default, |m| m.inputs.clone());
        let is_whole = measure::measure(state, &mut inputs);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let measured = match (before, is_whole) {
            // It would be taken for a measurement, and be better than any: the next one begins anew.
            (None, false) => {
                return Self {
                    inputs,
                    at_s: now,
                    times: 0,
                };
            }
            (Some(before), false) => return before,
            (None, true) => Self {
                inputs,
                at_s: now,
                times: 1,
            },
            (Some(before), true) => Self {
                inputs: before.inputs.better(&inputs),
                at_s: now,
                times: before.times.saturating_add(1),
            },
        };
        if let Err(error) = store(&path, &host, &measured) {
            tracing::warn!(path = %path.display(), %error, "what was measured cannot be kept");
        }
        measured
    }

    /// Is nothing to be gained from another measurement?
    pub fn is_settled(&self) -> bool {
        self.times >= MEASUREMENTS
    }
}

fn load(path: &Path, host: &str) -> Option<Measured> {
    let bytes = fs::read(path).ok()?;
    let stored: Stored = serde_json::from_slice(&bytes).ok()?;
    let is_ours = stored.version == VERSION && stored.host == host && stored.times > 0;
    let measured = Measured {
        inputs: stored.inputs,
        at_s: stored.at_s,
        times: stored.times,
    };
    Some(measured).filter(|measured| is_ours && measured.inputs.is_plausible())
}

fn store(path: &Path, host: &str, measured: &Measured) -> io::Result<()> {
    let stored = Stored {
        version: VERSION,
        host: host.into(),
        at_s: measured.at_s,
        times: measured.times,
        inputs: measured.inputs.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&stored)?;
    let temporary: PathBuf = path.with_extension("tmp");
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // A full disk leaves half of it.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// What costs depend on: kernel, processors, memory nodes, and the device of the store.
fn host(state: &Path) -> String {
    use std::os::unix::fs::MetadataExt;
    let name = rustix::system::uname();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(": "))
        .map_or("", |(_, model)| model);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let device = fs::metadata(state).map_or(0, |found| found.dev());
    let build = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    format!(
        "{} {}; {model} x{processors}; nodes {}; device {device:x}; {build}",
        name.release().to_string_lossy(),
        name.version().to_string_lossy(),
        read("/sys/devices/system/node/online").trim(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_kept_and_damage_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let first = Measured::load_or_measure(dir.path());
        assert!(first.inputs.is_plausible(), "{first:?}");
        assert_eq!((first.inputs.codecs.len(), first.times), (4, 1));
        assert!(first.at_s > 0);
        assert_eq!(Measured::kept(dir.path()).unwrap().times, 1);
        let path = dir.path().join(COSTS_FILE);
        let host = host(dir.path());
        // As if that host had been busy in every way.
        let mut busy = load(&path, &host).unwrap();
        busy.inputs.fill_ns = 1e12;
        busy.inputs.disk.bytes_per_s = 1.0;
        busy.inputs.codecs[1].decode_ns = 1e12;
        store(&path, &host, &busy).unwrap();
        let second = Measured::load_or_measure(dir.path());
        assert_eq!(second.times, 2);
        assert!(second.inputs.fill_ns < 1e9 && second.inputs.disk.bytes_per_s > 1.0);
        assert!(second.inputs.codecs[1].decode_ns < 1e9);
        assert_eq!(load("/nowhere".as_ref(), &host), None);
        assert_eq!(load(&path, "another host"), None);
        // Often enough: kept as it is, whatever it says.
        busy.times = MEASUREMENTS;
        store(&path, &host, &busy).unwrap();
        let kept = Measured::load_or_measure(dir.path());
        assert_eq!(kept, load(&path, &host).unwrap());
        assert!(kept.is_settled() && kept.inputs.fill_ns > 1e11);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, b"{").unwrap();
        assert_eq!(load(&path, &host), None);
    }

    #[test]
    fn a_disk_that_cannot_be_measured_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        let measured = Measured::load_or_measure(&missing);
        assert!(measured.inputs.is_plausible() && measured.times == 0);
        assert_eq!(measured.inputs.disk, CostInputs::default().disk);
    }
}
