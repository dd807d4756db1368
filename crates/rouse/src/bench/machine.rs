//! The machine that figures belong to.

use std::fmt;
use std::fs;

use serde::Serialize;

/// What matters for comparing figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Machine {
    /// Model name of the first CPU.
    pub cpu: String,
    /// CPUs that may be used.
    pub cores: usize,
    /// Memory, KiB.
    pub memory_kib: u64,
    /// `uname -r`.
    pub kernel: String,
    /// Frequency governor of the first CPU, if it has one.
    pub governor: Option<String>,
    /// Version of rouse.
    pub rouse: &'static str,
    /// `release` or `debug`: figures of the latter mean nothing.
    pub build: &'static str,
    /// Load averages (1, 5, 15 minutes) at the start.
    pub load_start: [f64; 3],
    /// Load averages at the end.
    pub load_end: [f64; 3],
}

impl Machine {
    /// Looks around. `load_end` is the load at the start until [`Machine::finish`].
    pub fn look() -> Self {
        let load = load();
        Self {
            cpu: value(&read("/proc/cpuinfo"), "model name")
                .unwrap_or_else(|| "unknown".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_kib: value(&read("/proc/meminfo"), "MemTotal")
                .and_then(|text| text.trim_end_matches("kB").trim().parse().ok())
                .unwrap_or(0),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            governor: fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
                .ok()
                .map(|text| text.trim().to_owned()),
            rouse: env!("CARGO_PKG_VERSION"),
            build: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            load_start: load,
            load_end: load,
        }
    }

    /// Notes the load at the end.
    pub fn finish(&mut self) {
        self.load_end = load();
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}, {} cores, Linux {}, {} build, load {:.2} to {:.2}",
            self.cpu, self.cores, self.kernel, self.build, self.load_start[0], self.load_end[0]
        )
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn load() -> [f64; 3] {
    let text = read("/proc/loadavg");
    let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or(0.0));
    std::array::from_fn(|_| numbers.next().unwrap_or(0.0))
}

/// Value of the first line `name : value`.
fn value(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}
