//! What was measured, kept for the next start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CostInputs, measure};

/// File in the state directory.
pub const COSTS_FILE: &str = "costs.json";

/// Changes when what is measured changes, so that older files are not taken for the same.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// On which host it was measured.
    host: String,
    inputs: CostInputs,
}

impl CostInputs {
    /// What was measured on this host before, or what is measured now, and kept in the directory `state`.
    ///
    /// Never fails: a file that cannot be used or written only means that it is measured again.
    pub fn load_or_measure(state: &Path) -> Self {
        let path = state.join(COSTS_FILE);
        let host = host(state);
        if let Some(inputs) = load(&path, &host) {
            return inputs;
        }
        let inputs = measure::measure(state);
        if let Err(error) = store(&path, &host, &inputs) {
            tracing::warn!(path = %path.display(), %error, "what was measured cannot be kept");
        }
        inputs
    }
}

fn load(path: &Path, host: &str) -> Option<CostInputs> {
    let bytes = fs::read(path).ok()?;
    let stored: Stored = serde_json::from_slice(&bytes).ok()?;
    let is_ours = stored.version == VERSION && stored.host == host;
    Some(stored.inputs).filter(|inputs| is_ours && inputs.is_plausible())
}

fn store(path: &Path, host: &str, inputs: &CostInputs) -> io::Result<()> {
    let stored = Stored {
        version: VERSION,
        host: host.into(),
        inputs: inputs.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&stored)?;
    let temporary: PathBuf = path.with_extension("tmp");
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, path)
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
        let measured = CostInputs::load_or_measure(dir.path());
        assert!(measured.is_plausible(), "{measured:?}");
        assert_eq!(measured.codecs.len(), 4);
        let path = dir.path().join(COSTS_FILE);
        // Reading a number may change its last bit, so what was read once is compared with what is read again.
        let kept = load(&path, &host(dir.path())).unwrap();
        assert_eq!(kept.codecs.len(), measured.codecs.len());
        assert!((kept.fill_ns - measured.fill_ns).abs() < 1e-3);
        assert_eq!(CostInputs::load_or_measure(dir.path()), kept);
        assert_eq!(load(&path, "another host"), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        fs::write(&path, b"{").unwrap();
        assert_eq!(load(&path, &host(dir.path())), None);
    }
}
