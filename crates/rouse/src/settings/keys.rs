//! The keys, each at once a key of the file, a flag and an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use rouse_node::traces::ratio::Ratio;
use rouse_node::{BootPolicy, Isolation, PointPolicy};
use serde::Deserialize;

use super::parse_boot_policy;

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Declares [`Settings`] from one list, so that a key cannot be a flag but no key of the file, or be forgotten
/// when sources are merged.
macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $(#[arg($($arg:tt)*)])? $name:ident: $type:ty = $env:literal,)*) => {
        /// Settings as they were given; `None` where nothing was said.
        #[derive(Debug, Clone, Default, PartialEq, Deserialize, clap::Args)]
        #[serde(deny_unknown_fields, default)]
        pub struct Settings {
            $($(#[doc = $doc])+ #[arg(long, env = $env, $($($arg)*)?)] pub $name: Option<$type>,)*
        }

        impl Settings {
            /// These settings, completed by `below` where nothing was said.
            pub fn or(self, below: Self) -> Self {
                Self { $($name: self.$name.or(below.$name),)* }
            }
        }
    };
}

settings! {
    /// Address and port of the HTTP API; port 0 lets the kernel choose
    #[arg(value_name = "ADDR:PORT")]
    listen: SocketAddr = "ROUSE_LISTEN",
    /// Directory that holds functions, snapshots, logs and the node's lock
    #[arg(value_name = "DIR")]
    state_dir: PathBuf = "ROUSE_STATE_DIR",
    /// Python 3 interpreter, an absolute path below `root`
    #[arg(value_name = "FILE")]
    python: PathBuf = "ROUSE_PYTHON",
    /// Node.js interpreter, an absolute path below `root`
    #[arg(value_name = "FILE")]
    node: PathBuf = "ROUSE_NODE",
    /// How a function with a snapshot is started when the request does not say: `fresh`, `restore` or `cold`
    #[arg(value_name = "POLICY", value_parser = parse_boot_policy)]
    boot: BootPolicy = "ROUSE_BOOT",
    /// Invocations that may run at the same time; more have to wait
    #[arg(value_name = "N")]
    max_concurrency: usize = "ROUSE_MAX_CONCURRENCY",
    /// Invocations of one function that may wait; more are answered 429
    #[arg(value_name = "N")]
    queue_max: u32 = "ROUSE_QUEUE_MAX",
    /// Invocations that may wait, all functions together
    #[arg(value_name = "N")]
    queue_total: u32 = "ROUSE_QUEUE_TOTAL",
    /// Seconds that an invocation waits at most before it is answered 429
    #[arg(value_name = "SECONDS")]
    queue_wait_s: u64 = "ROUSE_QUEUE_WAIT_S",
    /// Instances that may be started at the same time for requests; 0 for four for each processor, at least 8
    #[arg(value_name = "N")]
    max_starts: u32 = "ROUSE_MAX_STARTS",
    /// Per cent of the processors that running invocations may be expected to use before a function that runs already has to wait; 0 for no limit
    #[arg(value_name = "PERCENT")]
    admission_cpu_percent: u32 = "ROUSE_ADMISSION_CPU_PERCENT",
    /// Bytes that running invocations may be expected to use before others have to wait; 0 for half of the host's memory
    #[arg(value_name = "BYTES")]
    admission_memory_bytes: u64 = "ROUSE_ADMISSION_MEMORY_BYTES",
    /// Asynchronous invocations that may run at the same time
    #[arg(value_name = "N")]
    max_async_concurrency: usize = "ROUSE_MAX_ASYNC_CONCURRENCY",
    /// Idle instances that are kept for one function; more are ended once they have been idle for a second
    #[arg(value_name = "N")]
    max_idle: usize = "ROUSE_MAX_IDLE",
    /// Instances that may be held for who knows their names, on the whole node
    #[arg(value_name = "N")]
    held_max: usize = "ROUSE_HELD_MAX",
    /// Seconds that such an instance is held while nobody uses it
    #[arg(value_name = "SECONDS")]
    held_keep_alive_s: u64 = "ROUSE_HELD_KEEP_ALIVE_S",
    /// Puts instances that have answered back to their snapshot, for later requests, instead of ending them
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    rewind: bool = "ROUSE_REWIND",
    /// Whether instances that have answered are used again: `request` (never), `instance` (as in Lambda) or `auto` (only without a snapshot)
    #[arg(value_name = "WHO")]
    isolation: Isolation = "ROUSE_ISOLATION",
    /// Seconds that an idle instance is kept, where instances are used again
    #[arg(value_name = "SECONDS")]
    keep_alive_s: u64 = "ROUSE_KEEP_ALIVE_S",
    /// Keeps idle instances as long as each function's own pauses suggest, and makes one again before the next request is expected
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    keep_alive_histogram: bool = "ROUSE_KEEP_ALIVE_HISTOGRAM",
    /// Instances that are kept parked for each function whose pages are all in memory, at least
    #[arg(value_name = "N")]
    parked_min: usize = "ROUSE_PARKED_MIN",
    /// The same at most; in between the rate of its requests decides, and 0 parks none
    #[arg(value_name = "N")]
    parked_max: usize = "ROUSE_PARKED_MAX",
    /// Sandboxes that are kept ready for each set of limits in use, at least
    #[arg(value_name = "N")]
    ready_sandboxes: usize = "ROUSE_READY_SANDBOXES",
    /// The same at most; in between as many as were lately taken at a time
    #[arg(value_name = "N")]
    most_ready_sandboxes: usize = "ROUSE_MOST_READY_SANDBOXES",
    /// Processes for microVMs that are kept ready, jailed and without a machine, once a microVM was started
    #[arg(value_name = "N")]
    ready_microvms: usize = "ROUSE_READY_MICROVMS",
    /// Clones that are kept ready for each function that is forked
    #[arg(value_name = "N")]
    ready_clones: usize = "ROUSE_READY_CLONES",
    /// Makes functions of templates whose interpreter runs already, so that they share its memory
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    language_templates: bool = "ROUSE_LANGUAGE_TEMPLATES",
    /// Bytes of functions' pages that are kept in DRAM; 0 for a quarter of the host's memory
    #[arg(value_name = "BYTES")]
    memory_dram_bytes: u64 = "ROUSE_MEMORY_DRAM_BYTES",
    /// Gives functions' pages that are all in near memory, and stay, the form of pages of 2 MiB
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    memory_huge_pages: bool = "ROUSE_MEMORY_HUGE_PAGES",
    /// NUMA node of far memory, such as a CXL expander, for functions' pages; -1 for none
    #[arg(value_name = "NODE", allow_negative_numbers = true)]
    memory_far_node: i32 = "ROUSE_MEMORY_FAR_NODE",
    /// Directory of far memory, such as a DAX mount, in the place of a NUMA node; empty for none
    #[arg(value_name = "DIRECTORY")]
    memory_far_dir: String = "ROUSE_MEMORY_FAR_DIR",
    /// Bytes of functions' pages that are kept in far memory; 0 for three quarters of what it has
    #[arg(value_name = "BYTES")]
    memory_far_bytes: u64 = "ROUSE_MEMORY_FAR_BYTES",
    /// Bytes of functions' pages that are kept in DRAM as they are on disk, compressed; 0 for none
    #[arg(value_name = "BYTES")]
    memory_compressed_bytes: u64 = "ROUSE_MEMORY_COMPRESSED_BYTES",
    /// Bytes that all parked instances may take together
    #[arg(value_name = "BYTES")]
    memory_parked_bytes: u64 = "ROUSE_MEMORY_PARKED_BYTES",
    /// Seconds after which nothing of a function that is not called stays in memory
    #[arg(value_name = "SECONDS")]
    memory_idle_s: u64 = "ROUSE_MEMORY_IDLE_S",
    /// Moves functions' pages by how often they are called; without it nothing moves but what a call brings in, as measurements need it
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    memory_managed: bool = "ROUSE_MEMORY_MANAGED",
    /// Records in which order functions first touch their pages, when nothing is prepared for a boot, so that they lie on disk in that order
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    memory_record_order: bool = "ROUSE_MEMORY_RECORD_ORDER",
    /// Snapshots that are built at the same time
    #[arg(value_name = "N")]
    max_builds: usize = "ROUSE_MAX_BUILDS",
    /// When snapshots are taken of functions that do not say so and bring warm-up events: `init`, `warm` or `auto`
    #[arg(value_name = "POLICY")]
    snapshot_point: PointPolicy = "ROUSE_SNAPSHOT_POINT",
    /// Invocations between two trials of a later snapshot, with the policy `auto`
    #[arg(value_name = "N")]
    snapshot_auto_after: u64 = "ROUSE_SNAPSHOT_AUTO_AFTER",
    /// Per cent by which a later snapshot must be better to be kept
    #[arg(value_name = "PERCENT")]
    snapshot_margin_percent: u32 = "ROUSE_SNAPSHOT_MARGIN_PERCENT",
    /// Versions of a function's snapshot that are kept, the one in use included
    #[arg(value_name = "N")]
    snapshot_versions: usize = "ROUSE_SNAPSHOT_VERSIONS",
    /// Directory of the kernel that microVMs boot, as `rouse kernel import` makes it; empty for no microVMs
    #[arg(value_name = "DIR")]
    microvm_kernel: String = "ROUSE_MICROVM_KERNEL",
    /// Image of the root that microVMs see, as `rouse image build` makes it; empty for no microVMs
    #[arg(value_name = "FILE")]
    microvm_root: String = "ROUSE_MICROVM_ROOT",
    /// Lets functions open connections to the outside: needs `slirp4netns`
    #[arg(value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    outbound_network: bool = "ROUSE_OUTBOUND_NETWORK",
    /// Seconds that a cold start may take until the runtime asks for work
    #[arg(value_name = "SECONDS")]
    init_timeout_s: u64 = "ROUSE_INIT_TIMEOUT_S",
    /// Seconds that init may take when a snapshot is built
    #[arg(value_name = "SECONDS")]
    snapshot_init_timeout_s: u64 = "ROUSE_SNAPSHOT_INIT_TIMEOUT_S",
    /// Seconds from the start of a restored instance until it asks for work
    #[arg(value_name = "SECONDS")]
    restore_timeout_s: u64 = "ROUSE_RESTORE_TIMEOUT_S",
    /// Seconds that running invocations get to end at shutdown
    #[arg(value_name = "SECONDS")]
    drain_timeout_s: u64 = "ROUSE_DRAIN_TIMEOUT_S",
    /// Processes and threads of one instance
    #[arg(value_name = "N")]
    pids: u32 = "ROUSE_PIDS",
    /// Bytes of the largest package, zipped
    #[arg(value_name = "BYTES")]
    max_zip_bytes: u64 = "ROUSE_MAX_ZIP_BYTES",
    /// Bytes of the largest package, unzipped
    #[arg(value_name = "BYTES")]
    max_unzipped_bytes: u64 = "ROUSE_MAX_UNZIPPED_BYTES",
    /// Files and directories in a package
    #[arg(value_name = "N")]
    max_entries: usize = "ROUSE_MAX_ENTRIES",
    /// Asynchronous invocations that may be accepted and not done; more are answered 429
    #[arg(value_name = "N")]
    async_max_pending: usize = "ROUSE_ASYNC_MAX_PENDING",
    /// Seconds before each retry of a failed asynchronous invocation
    #[arg(value_name = "SECONDS,...", value_delimiter = ',')]
    async_retry_s: Vec<u64> = "ROUSE_ASYNC_RETRY_S",
    /// Seconds after which an undelivered asynchronous invocation is given up
    #[arg(value_name = "SECONDS")]
    async_max_age_s: u64 = "ROUSE_ASYNC_MAX_AGE_S",
    /// Bytes at which a function's log file is rotated
    #[arg(value_name = "BYTES")]
    log_file_bytes: u64 = "ROUSE_LOG_FILE_BYTES",
    /// Bytes a second that one function may log on average
    #[arg(value_name = "BYTES")]
    log_rate_bytes: u64 = "ROUSE_LOG_RATE_BYTES",
    /// Address and port of the metrics, which then are not served with the API; empty to serve them with it
    #[arg(value_name = "ADDR:PORT")]
    metrics_listen: String = "ROUSE_METRICS_LISTEN",
    /// Functions, each version counted, that have metrics of their own; those beyond count together as `other`
    #[arg(value_name = "N")]
    metrics_functions: usize = "ROUSE_METRICS_FUNCTIONS",
    /// URL of an OpenTelemetry collector that gets traces of invocations by OTLP over HTTP; empty for none
    #[arg(value_name = "URL")]
    traces_endpoint: String = "ROUSE_TRACES_ENDPOINT",
    /// Share of the invocations that is traced, from 0 to 1, where the caller has not decided it
    #[arg(value_name = "RATIO")]
    traces_ratio: Ratio = "ROUSE_TRACES_RATIO",
    /// Region in ARNs and in the functions' environment
    region: String = "ROUSE_REGION",
    /// Account in ARNs, 12 digits
    account: String = "ROUSE_ACCOUNT",
    /// Directory that sandboxes see as `/`, read-only
    #[arg(value_name = "DIR")]
    root: PathBuf = "ROUSE_ROOT",
    /// Directories that sandboxes see empty, besides a built-in list
    #[arg(value_name = "DIR,...", value_delimiter = ',')]
    hidden: Vec<PathBuf> = "ROUSE_HIDDEN",
    /// Name of the node's cgroup; made from the state directory when empty
    #[arg(value_name = "NAME")]
    cgroup: String = "ROUSE_CGROUP",
    /// First host uid and gid of the 69632 given to sandboxes, the last 4096 of them to microVMs
    #[arg(value_name = "ID")]
    uid_base: u32 = "ROUSE_UID_BASE",
    /// Form of the node's own log: `text` or `json`
    #[arg(value_name = "FORMAT")]
    log_format: LogFormat = "ROUSE_LOG_FORMAT",
    /// What the node logs: `error`, `warn`, `info`, `debug`, `trace`, or directives such as `rouse_node=debug,info`
    #[arg(value_name = "LEVEL")]
    log_level: String = "ROUSE_LOG_LEVEL",
}
