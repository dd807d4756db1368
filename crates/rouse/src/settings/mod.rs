//! Settings of `rouse serve`: built-in defaults, then the file, then the environment, then flags.
//!
//! [`Settings`] is what was said, [`ServeConfig`] what is valid; only the latter leaves this module.
//! `docs/configuration.md` documents each key; a test keeps it in step with the struct.

#[cfg(test)]
mod document;
mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rouse_node::boot::microvm::MicroVmConfig;
use rouse_node::{
    BootPolicy, ConfigError, Interpreters, MemorySettings, NodeConfig, TraceSettings,
};
use rouse_sandbox::SandboxConfig;

pub use keys::{LogFormat, Settings};

/// The defaults, as a configuration file.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// Everything that `rouse serve` needs to start.
#[derive(Debug, Clone)]
pub struct ServeConfig {
    /// Where to listen; port 0 lets the kernel choose.
    pub listen: SocketAddr,
    /// Where metrics and health are served, if not with the API.
    pub metrics_listen: Option<SocketAddr>,
    /// How long running invocations may take to end at shutdown.
    pub drain: Duration,
    /// Form of the log on standard error.
    pub log_format: LogFormat,
    /// What is logged: a level, or `tracing` directives.
    pub log_level: String,
    /// Root that sandboxes see.
    pub root: PathBuf,
    /// Directories that sandboxes see empty, besides a built-in list.
    pub hidden: Vec<PathBuf>,
    /// Name of the node's cgroup.
    pub cgroup: String,
    /// First uid and gid of the sandboxes' range.
    pub uid_base: u32,
    /// Sandboxes kept ready for each set of limits.
    pub ready_sandboxes: usize,
    /// The same at most.
    pub most_ready_sandboxes: usize,
    /// Processes kept ready for microVMs.
    pub ready_microvms: usize,
    /// Clones kept ready for each template.
    pub ready_clones: usize,
    /// Settings of the node itself; its `state_dir` is absolute.
    pub node: NodeConfig,
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no TOML, or has an unknown key, or a value of the wrong type.
    #[error("the configuration file {} is wrong", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: toml::de::Error,
    },
    /// A path cannot be made absolute.
    #[error("{} cannot be made absolute", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A value that the node refuses.
    #[error("a setting is not valid")]
    Node(#[from] ConfigError),
    /// A value that is refused here.
    #[error("{key} {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        problem: String,
    },
}

impl Settings {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| SettingsError::Parse {
            path: path.to_owned(),
            source,
        })
    }

    /// The built-in defaults: every key is set.
    pub fn defaults() -> Self {
        toml::from_str(DEFAULTS).expect("the built-in defaults are parsed by a test")
    }
}

/// Users of the host that sandboxes of processes have.
const SANDBOX_IDS: u32 = 65_536;
/// With those of microVMs behind them.
const IDS: u32 = SANDBOX_IDS + MicroVmConfig::USERS;

/// A path that may be empty, for none.
fn optional(path: String) -> Result<Option<PathBuf>, SettingsError> {
    match path.is_empty() {
        true => Ok(None),
        false => absolute(path.into()).map(Some),
    }
}

impl ServeConfig {
    /// The first user of the host that a microVM may have.
    pub fn first_microvm_user(&self) -> u32 {
        self.uid_base + SANDBOX_IDS
    }

    /// Completes `settings` (flags and environment) with the file, if one is given, and the defaults, and checks all.
    pub fn resolve(settings: Settings, file: Option<&Path>) -> Result<Self, SettingsError> {
        let file = file.map(Settings::read).transpose()?.unwrap_or_default();
        Self::from_complete(settings.or(file).or(Settings::defaults()))
    }

    fn from_complete(settings: Settings) -> Result<Self, SettingsError> {
        let s = Complete(settings);
        let state_dir = absolute(s.get("state_dir", |s| s.state_dir.clone())?)?;
        let cgroup = match s.get("cgroup", |s| s.cgroup.clone())? {
            name if name.is_empty() => cgroup_name(&state_dir),
            name if is_cgroup_name(&name) => name,
            name => {
                return Err(SettingsError::Value {
                    key: "cgroup",
                    problem: format!("must be letters, digits, '-' and '_', not {name:?}"),
                });
            }
        };
        let uid_base = s.get("uid_base", |s| s.uid_base)?;
        if !(1000..=u32::MAX - IDS).contains(&uid_base) {
            return Err(SettingsError::Value {
                key: "uid_base",
                problem: format!(
                    "must leave the host's own users alone and room for {IDS} ids, not {uid_base}"
                ),
            });
        }
        let hidden: Vec<PathBuf> = s.get("hidden", |s| s.hidden.clone())?;
        if let Some(relative) = hidden.iter().find(|path| !path.is_absolute()) {
            return Err(SettingsError::Value {
                key: "hidden",
                problem: format!("must hold absolute paths, not {}", relative.display()),
            });
        }
        let log_level = s.get("log_level", |s| s.log_level.clone())?;
        if let Err(error) = log_level.parse::<tracing_subscriber::filter::EnvFilter>() {
            return Err(SettingsError::Value {
                key: "log_level",
                problem: format!("is no level and no list of directives: {error}"),
            });
        }
        let metrics_listen = match s.get("metrics_listen", |s| s.metrics_listen.clone())? {
            text if text.is_empty() => None,
            text => Some(text.parse().map_err(|error| SettingsError::Value {
                key: "metrics_listen",
                problem: format!("must be an address and a port, not {text:?}: {error}"),
            })?),
        };
        let ratio = s.get("traces_ratio", |s| s.traces_ratio)?;
        let traces =
            match s.get("traces_endpoint", |s| s.traces_endpoint.clone())? {
                url if url.is_empty() => None,
                url => Some(TraceSettings::to(&url, ratio).map_err(|problem| {
                    SettingsError::Value {
                        key: "traces_endpoint",
                        problem: format!("{problem}, not {url:?}"),
                    }
                })?),
            };
        let node = NodeConfig {
            state_dir,
            memory: MemorySettings {
                dram_bytes: s.get("memory_dram_bytes", |s| s.memory_dram_bytes)?,
                huge_pages: s.get("memory_huge_pages", |s| s.memory_huge_pages)?,
                far_node: s
                    .get("memory_far_node", |s| s.memory_far_node)?
                    .try_into()
                    .ok(),
                far_dir: match s.get("memory_far_dir", |s| s.memory_far_dir.clone())? {
                    path if path.is_empty() => None,
                    path => Some(path.into()),
                },
                far_bytes: s.get("memory_far_bytes", |s| s.memory_far_bytes)?,
                compressed_bytes: s
                    .get("memory_compressed_bytes", |s| s.memory_compressed_bytes)?,
                parked_bytes: s.get("memory_parked_bytes", |s| s.memory_parked_bytes)?,
                idle_s: s.get("memory_idle_s", |s| s.memory_idle_s)?,
                managed: s.get("memory_managed", |s| s.memory_managed)?,
                record_order: s.get("memory_record_order", |s| s.memory_record_order)?,
            },
            region: s.get("region", |s| s.region.clone())?,
            account: s.get("account", |s| s.account.clone())?,
            interpreters: Interpreters {
                python3: interpreter("python", s.get("python", |s| s.python.clone())?)?,
                nodejs: interpreter("node", s.get("node", |s| s.node.clone())?)?,
            },
            max_concurrency: s.get("max_concurrency", |s| s.max_concurrency)?,
            queue_max: s.get("queue_max", |s| s.queue_max)?,
            queue_total: s.get("queue_total", |s| s.queue_total)?,
            queue_wait_s: s.get("queue_wait_s", |s| s.queue_wait_s)?,
            max_starts: s.get("max_starts", |s| s.max_starts)?,
            admission_cpu_percent: s.get("admission_cpu_percent", |s| s.admission_cpu_percent)?,
            admission_memory_bytes: s
                .get("admission_memory_bytes", |s| s.admission_memory_bytes)?,
            max_async_concurrency: s.get("max_async_concurrency", |s| s.max_async_concurrency)?,
            boot: s.get("boot", |s| s.boot)?,
            isolation: s.get("isolation", |s| s.isolation)?,
            keep_alive_s: s.get("keep_alive_s", |s| s.keep_alive_s)?,
            keep_alive_histogram: s.get("keep_alive_histogram", |s| s.keep_alive_histogram)?,
            max_idle: s.get("max_idle", |s| s.max_idle)?,
            held_max: s.get("held_max", |s| s.held_max)?,
            held_keep_alive_s: s.get("held_keep_alive_s", |s| s.held_keep_alive_s)?,
            rewind: s.get("rewind", |s| s.rewind)?,
            parked_min: s.get("parked_min", |s| s.parked_min)?,
            parked_max: s.get("parked_max", |s| s.parked_max)?,
            init_timeout_s: s.get("init_timeout_s", |s| s.init_timeout_s)?,
            snapshot_init_timeout_s: s
                .get("snapshot_init_timeout_s", |s| s.snapshot_init_timeout_s)?,
            restore_timeout_s: s.get("restore_timeout_s", |s| s.restore_timeout_s)?,
            language_templates: s.get("language_templates", |s| s.language_templates)?,
            max_builds: s.get("max_builds", |s| s.max_builds)?,
            snapshot_point: s.get("snapshot_point", |s| s.snapshot_point)?,
            snapshot_auto_after: s.get("snapshot_auto_after", |s| s.snapshot_auto_after)?,
            snapshot_margin_percent: s
                .get("snapshot_margin_percent", |s| s.snapshot_margin_percent)?,
            snapshot_versions: s.get("snapshot_versions", |s| s.snapshot_versions)?,
            microvm_kernel: optional(s.get("microvm_kernel", |s| s.microvm_kernel.clone())?)?,
            microvm_root: optional(s.get("microvm_root", |s| s.microvm_root.clone())?)?,
            outbound_network: s.get("outbound_network", |s| s.outbound_network)?,
            pids: s.get("pids", |s| s.pids)?,
            max_zip_bytes: s.get("max_zip_bytes", |s| s.max_zip_bytes)?,
            max_unzipped_bytes: s.get("max_unzipped_bytes", |s| s.max_unzipped_bytes)?,
            max_entries: s.get("max_entries", |s| s.max_entries)?,
            async_max_pending: s.get("async_max_pending", |s| s.async_max_pending)?,
            async_retry_s: s.get("async_retry_s", |s| s.async_retry_s.clone())?,
            async_max_age_s: s.get("async_max_age_s", |s| s.async_max_age_s)?,
            log_file_bytes: s.get("log_file_bytes", |s| s.log_file_bytes)?,
            log_rate_bytes: s.get("log_rate_bytes", |s| s.log_rate_bytes)?,
            metrics_functions: s.get("metrics_functions", |s| s.metrics_functions)?,
            traces,
        };
        node.validate()?;
        Ok(Self {
            listen: s.get("listen", |s| s.listen)?,
            metrics_listen,
            drain: Duration::from_secs(s.get("drain_timeout_s", |s| s.drain_timeout_s)?),
            log_format: s.get("log_format", |s| s.log_format)?,
            log_level,
            root: absolute(s.get("root", |s| s.root.clone())?)?,
            hidden,
            cgroup,
            uid_base,
            ready_sandboxes: s.get("ready_sandboxes", |s| s.ready_sandboxes)?,
            most_ready_sandboxes: s.get("most_ready_sandboxes", |s| s.most_ready_sandboxes)?,
            ready_microvms: s.get("ready_microvms", |s| s.ready_microvms)?,
            ready_clones: s.get("ready_clones", |s| s.ready_clones)?,
            node,
        })
    }

    /// Configuration of the sandboxes; their runtime clients lie in `runtime_dir`.
    pub fn sandbox(&self, runtime_dir: PathBuf) -> SandboxConfig {
        SandboxConfig {
            root: self.root.clone(),
            runtime_dir,
            hidden: self.hidden.clone(),
            cgroup: self.cgroup.clone(),
            uid_base: self.uid_base,
            clock_offset: None,
            hand_over_memory_calls: false,
        }
    }
}

/// Settings of which every key should be set, since the defaults are below.
struct Complete(Settings);

impl Complete {
    fn get<T>(
        &self,
        key: &'static str,
        field: impl Fn(&Settings) -> Option<T>,
    ) -> Result<T, SettingsError> {
        field(&self.0).ok_or_else(|| SettingsError::Value {
            key,
            problem: "has no value and no default".to_owned(),
        })
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, SettingsError> {
    std::path::absolute(&path).map_err(|source| SettingsError::Path { path, source })
}

/// Interpreters are started by their path in the sandbox, where there is no `PATH` to search.
fn interpreter(key: &'static str, path: PathBuf) -> Result<PathBuf, SettingsError> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(SettingsError::Value {
            key,
            problem: format!("must be an absolute path, not {}", path.display()),
        })
    }
}

fn is_cgroup_name(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

/// A node clears its cgroup when it starts, so two nodes must never share one: the default is made from the
/// state directory, of which a node has the lock.
fn cgroup_name(state_dir: &Path) -> String {
    let hash = blake3::hash(state_dir.as_os_str().as_encoded_bytes());
    format!("rouse-{}", &hash.to_hex()[..12])
}

/// How a boot policy is written.
pub fn parse_boot_policy(text: &str) -> Result<BootPolicy, String> {
    match text {
        "fresh" => Ok(BootPolicy::Fresh),
        "restore" => Ok(BootPolicy::Restore),
        "cold" => Ok(BootPolicy::Cold),
        _ => Err("must be fresh, restore or cold".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(file: &str) -> Result<ServeConfig, SettingsError> {
        let settings: Settings = toml::from_str(file).expect("toml");
        ServeConfig::from_complete(settings.or(Settings::defaults()))
    }

    #[test]
    fn the_defaults_are_the_nodes_own() {
        let config = resolve("").expect("defaults");
        assert_eq!(config.node, NodeConfig::default());
        assert_eq!(config.listen.to_string(), "127.0.0.1:9000");
        assert!(config.cgroup.starts_with("rouse-"), "{}", config.cgroup);
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("rouse.toml");
        std::fs::write(&file, "pids = 77\nmax_idle = 3\n").expect("write");
        let flags = Settings {
            max_idle: Some(5),
            ..Settings::default()
        };
        let config = ServeConfig::resolve(flags, Some(&file)).expect("resolve");
        assert_eq!(
            (
                config.node.pids,
                config.node.max_idle,
                config.node.max_builds
            ),
            (77, 5, 1)
        );
    }

    #[test]
    fn a_wrong_file_is_refused_with_the_place() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("rouse.toml");
        std::fs::write(&file, "pids = 77\nmax_idel = 3\n").expect("write");
        let error =
            ServeConfig::resolve(Settings::default(), Some(&file)).expect_err("unknown key");
        let chain = crate::output::error::chain(&error).join("\n");
        assert!(
            chain.contains("max_idel") && chain.contains("line 2"),
            "{chain}"
        );
        assert!(matches!(
            Settings::read(&dir.path().join("none")),
            Err(SettingsError::Read { .. })
        ));
    }

    #[test]
    fn impossible_values_are_named() {
        for (file, key) in [
            ("cgroup = \"a/b\"", "cgroup"),
            ("uid_base = 0", "uid_base"),
            ("hidden = [\"etc\"]", "hidden"),
            ("python = \"python3\"", "python"),
            ("log_level = \"a=b=c\"", "log_level"),
            ("metrics_listen = \"9001\"", "metrics_listen"),
            ("traces_endpoint = \"127.0.0.1:4318\"", "traces_endpoint"),
        ] {
            match resolve(file) {
                Err(SettingsError::Value { key: named, .. }) => assert_eq!(named, key, "{file}"),
                other => panic!("{file}: {other:?}"),
            }
        }
        assert!(matches!(
            resolve("account = \"1\""),
            Err(SettingsError::Node(_))
        ));
    }

    #[test]
    fn two_state_directories_have_two_cgroups() {
        assert_ne!(cgroup_name(Path::new("/a")), cgroup_name(Path::new("/b")));
        assert_eq!(cgroup_name(Path::new("/a")), cgroup_name(Path::new("/a")));
    }
}
