//! What an operator can set on a node. The `rouse` command reads files and flags; this is the result.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::engine::admission::Capacity;
use crate::function::snapshot_point::PointPolicy;
use crate::residency::host_memory;
use crate::serving::policy::Isolation;
use crate::traces::TraceSettings;

/// Settings of a node. Every key has a default but the state directory's, which is `/var/lib/rouse`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Directory that holds everything the node must find again after a restart.
    pub state_dir: PathBuf,
    /// What memory may hold.
    pub memory: MemorySettings,
    /// Region in ARNs and in the functions' environment.
    pub region: String,
    /// Account in ARNs, 12 digits.
    pub account: String,
    /// Interpreters on the host, as paths in the sandbox.
    pub interpreters: Interpreters,
    /// Invocations that may run at the same time on the node; more have to wait.
    pub max_concurrency: usize,
    /// Invocations of one function that may wait; more are answered 429.
    pub queue_max: u32,
    /// Invocations that may wait, all functions together.
    pub queue_total: u32,
    /// Seconds that an invocation waits at most before it is answered 429.
    pub queue_wait_s: u64,
    /// Instances that may be started at the same time for requests; 0 for four for each processor, at least 8.
    pub max_starts: u32,
    /// Per cent of the host's processors that running invocations may be expected to use before a function that runs
    /// already has to wait; 0 for no limit.
    pub admission_cpu_percent: u32,
    /// Bytes that running invocations may be expected to use before others have to wait; 0 for half of the host's memory.
    pub admission_memory_bytes: u64,
    /// Asynchronous invocations that may run at the same time.
    pub max_async_concurrency: usize,
    /// How a function with a ready snapshot is started when the request does not say.
    pub boot: BootPolicy,
    /// Whether functions that do not say so use instances again that have answered.
    pub isolation: Isolation,
    /// Seconds that an idle instance is kept, where instances are used again.
    pub keep_alive_s: u64,
    /// Whether that follows from each function's own pauses instead.
    pub keep_alive_histogram: bool,
    /// Idle instances kept for one function.
    pub max_idle: usize,
    /// Instances that may be held for who knows their names, on the whole node.
    pub held_max: usize,
    /// Seconds that such an instance is held without an event, if nothing else was said.
    pub held_keep_alive_s: u64,
    /// Whether instances that are not to be used again as they are, are put back to their snapshot and then used again.
    pub rewind: bool,
    /// Instances that wait, parked, for the requests of each function that has all its pages in memory, at least.
    pub parked_min: usize,
    /// At most; in between the rate of its requests decides. 0 parks none.
    pub parked_max: usize,
    /// Seconds that a cold start may take until the runtime asks for work, when a request waits for it.
    /// A function with a longer timeout gets as long as its timeout.
    pub init_timeout_s: u64,
    /// Seconds that init may take when a snapshot is built.
    pub snapshot_init_timeout_s: u64,
    /// Seconds from a restored instance's start until it asks for work (the after-restore hooks run in between).
    pub restore_timeout_s: u64,
    /// Are functions made of language templates where that is possible? They then share the template's memory, and with
    /// it its layout and hash seed.
    pub language_templates: bool,
    /// Snapshots built at the same time.
    pub max_builds: usize,
    /// When functions' snapshots are taken that do not say so themselves, and whose package brings warm-up events.
    pub snapshot_point: PointPolicy,
    /// Invocations between two trials of a later snapshot, with the policy `auto`.
    pub snapshot_auto_after: u64,
    /// Per cent by which a later snapshot must be better to be kept.
    pub snapshot_margin_percent: u32,
    /// Versions of a function's snapshot that are kept, the one in use included.
    pub snapshot_versions: usize,
    /// The prepared kernel of microVMs, a directory; without it there are none.
    pub microvm_kernel: Option<PathBuf>,
    /// The image of their root; without it there are none.
    pub microvm_root: Option<PathBuf>,
    /// May functions open connections to the outside? They never reach the host's own loopback.
    pub outbound_network: bool,
    /// Processes and threads of one instance.
    pub pids: u32,
    /// Bytes of the largest package, zipped.
    pub max_zip_bytes: u64,
    /// Bytes of the largest package, unzipped.
    pub max_unzipped_bytes: u64,
    /// Files and directories in a package.
    pub max_entries: usize,
    /// Asynchronous invocations that may be accepted and not done; more are answered 429.
    pub async_max_pending: usize,
    /// Seconds between the attempts of an asynchronous invocation; its length is the number of retries.
    pub async_retry_s: Vec<u64>,
    /// Seconds after which an asynchronous invocation that could not be delivered is given up.
    pub async_max_age_s: u64,
    /// Bytes of a function's log file at which it is rotated; one older file is kept.
    pub log_file_bytes: u64,
    /// Bytes that one function may log in a second on average; more is dropped, and counted.
    pub log_rate_bytes: u64,
    /// Functions, each version counted, that have metrics of their own; those beyond count together as `other`.
    pub metrics_functions: usize,
    /// Where traces of invocations are sent, if they are.
    pub traces: Option<TraceSettings>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        NodeConfig {
            state_dir: PathBuf::from("/var/lib/rouse"),
            memory: MemorySettings::default(),
            region: "us-east-1".into(),
            account: "000000000000".into(),
            interpreters: Interpreters::default(),
            max_concurrency: 256,
            queue_max: 100,
            queue_total: 1000,
            queue_wait_s: 10,
            max_starts: 0,
            admission_cpu_percent: 200,
            admission_memory_bytes: 0,
            max_async_concurrency: 32,
            boot: BootPolicy::Fresh,
            isolation: Isolation::Auto,
            keep_alive_s: 60,
            keep_alive_histogram: false,
            max_idle: 16,
            held_max: 1000,
            held_keep_alive_s: 600,
            rewind: false,
            parked_min: 0,
            parked_max: 0,
            init_timeout_s: 10,
            snapshot_init_timeout_s: 130,
            restore_timeout_s: 10,
            language_templates: false,
            max_builds: 1,
            snapshot_point: PointPolicy::Init,
            snapshot_auto_after: 100,
            snapshot_margin_percent: 10,
            snapshot_versions: 3,
            microvm_kernel: None,
            microvm_root: None,
            outbound_network: false,
            pids: 1024,
            max_zip_bytes: 52_428_800,
            max_unzipped_bytes: 262_144_000,
            max_entries: 100_000,
            async_max_pending: 100_000,
            async_retry_s: vec![60, 120],
            async_max_age_s: 6 * 3600,
            log_file_bytes: 16 << 20,
            log_rate_bytes: 4 << 20,
            metrics_functions: 256,
            traces: None,
        }
    }
}

/// What may be held of functions' snapshots, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MemorySettings {
    /// Bytes of pages in DRAM; 0 for a quarter of the host's memory.
    pub dram_bytes: u64,
    /// Whether functions' pages that are all in near memory get the form of pages of 2 MiB.
    pub huge_pages: bool,
    /// NUMA node of far memory, if there is one.
    pub far_node: Option<u32>,
    /// Directory of far memory, best on a DAX mount, if there is one.
    pub far_dir: Option<PathBuf>,
    /// Bytes of pages in far memory; 0 for three quarters of what it has.
    pub far_bytes: u64,
    /// Bytes of compressed pieces in DRAM; 0 switches this tier off.
    pub compressed_bytes: u64,
    /// Bytes that all parked instances may take together.
    pub parked_bytes: u64,
    /// Seconds after which nothing of a function that is not called stays in memory.
    pub idle_s: u64,
    /// Whether pages are moved by how often functions are called. Without it nothing moves but what a call brings in.
    pub managed: bool,
    /// Whether it is recorded in which order functions first touch their pages, when nothing is prepared for a boot.
    pub record_order: bool,
}

impl Default for MemorySettings {
    fn default() -> Self {
        Self {
            dram_bytes: 0,
            huge_pages: false,
            far_node: None,
            far_dir: None,
            far_bytes: 0,
            compressed_bytes: 1 << 30,
            parked_bytes: 256 << 20,
            idle_s: 600,
            managed: true,
            record_order: false,
        }
    }
}

/// Where the interpreters are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Interpreters {
    /// Python 3.
    pub python3: PathBuf,
    /// Node.js.
    pub nodejs: PathBuf,
}

impl Default for Interpreters {
    fn default() -> Self {
        Interpreters {
            python3: "/usr/bin/python3".into(),
            nodejs: "/usr/bin/node".into(),
        }
    }
}

/// How a function with a ready snapshot is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootPolicy {
    /// A fresh instance for each invocation: a fork where the template works, else a restore.
    Fresh,
    /// A fresh instance for each invocation, always by restore.
    Restore,
    /// Snapshots are not used: cold starts, and idle instances are used again.
    Cold,
}

/// A setting that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not 12 digits.
    #[error("account must be 12 digits, not {0:?}")]
    Account(String),
    /// Not like `us-east-1`.
    #[error("region must look like us-east-1, not {0:?}")]
    Region(String),
    /// Nothing can be better by all.
    #[error("snapshot_margin_percent must be less than 100, not {0}")]
    Margin(u32),
    /// Must not be zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
}

impl NodeConfig {
    /// What the node takes on at the same time.
    pub(crate) fn capacity(&self) -> Capacity {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        Capacity {
            running: count(self.max_concurrency),
            starting: match self.max_starts {
                0 => u32::try_from(4 * processors).unwrap_or(u32::MAX).max(8),
                starts => starts,
            },
            cpu_milli: match self.admission_cpu_percent {
                0 => u64::MAX,
                percent => 10 * u64::from(percent) * processors,
            },
            memory: match self.admission_memory_bytes {
                0 => host_memory() / 2,
                bytes => bytes,
            },
            queued: self.queue_total,
        }
    }

    /// Events that are delivered at the same time. Those that wait are on disk.
    pub(crate) fn event_capacity(&self) -> Capacity {
        Capacity {
            running: u32::try_from(self.max_async_concurrency).unwrap_or(u32::MAX),
            starting: u32::MAX,
            cpu_milli: u64::MAX,
            memory: u64::MAX,
            queued: u32::MAX,
        }
    }

    /// Checks what serde cannot.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.account.len() != 12 || !self.account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ConfigError::Account(self.account.clone()));
        }
        if !crate::function::arn::is_region(&self.region) {
            return Err(ConfigError::Region(self.region.clone()));
        }
        let counts = [
            ("max_concurrency", self.max_concurrency as u64),
            ("max_async_concurrency", self.max_async_concurrency as u64),
            ("max_builds", self.max_builds as u64),
            ("snapshot_auto_after", self.snapshot_auto_after),
            (
                "snapshot_margin_percent",
                u64::from(self.snapshot_margin_percent),
            ),
            ("snapshot_versions", self.snapshot_versions as u64),
            ("pids", u64::from(self.pids)),
            ("init_timeout_s", self.init_timeout_s),
            ("snapshot_init_timeout_s", self.snapshot_init_timeout_s),
            ("restore_timeout_s", self.restore_timeout_s),
            ("log_file_bytes", self.log_file_bytes),
            ("log_rate_bytes", self.log_rate_bytes),
        ];
        if self.snapshot_margin_percent >= 100 {
            return Err(ConfigError::Margin(self.snapshot_margin_percent));
        }
        match counts.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(ConfigError::Zero(name)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_unknown_keys_are_refused() {
        assert_eq!(NodeConfig::default().validate(), Ok(()));
        assert!(serde_json::from_str::<NodeConfig>(r#"{"max_concurency": 3}"#).is_err());
        let one = serde_json::from_str::<NodeConfig>(r#"{"boot": "restore"}"#).unwrap();
        assert_eq!(one.boot, BootPolicy::Restore);
        assert_eq!(one.max_concurrency, 256);
    }

    #[test]
    fn impossible_settings_are_named() {
        let bad = NodeConfig {
            account: "1".into(),
            ..NodeConfig::default()
        };
        assert_eq!(bad.validate(), Err(ConfigError::Account("1".into())));
        let bad = NodeConfig {
            max_builds: 0,
            ..NodeConfig::default()
        };
        assert_eq!(bad.validate(), Err(ConfigError::Zero("max_builds")));
    }
}
