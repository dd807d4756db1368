//! What every benchmark is told about the host.

use std::path::PathBuf;

/// Interpreters, where packages are kept, what is logged.
#[derive(Debug, clap::Args)]
pub struct HostArgs {
    /// Directory in which installed Python packages are kept between runs
    #[arg(long, env = "ROUSE_BENCH_CACHE", value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// Python 3 interpreter
    #[arg(
        long,
        env = "ROUSE_PYTHON",
        default_value = "/usr/bin/python3",
        value_name = "FILE"
    )]
    pub python: PathBuf,
    /// Node.js interpreter
    #[arg(
        long,
        env = "ROUSE_NODE",
        default_value = "/usr/bin/node",
        value_name = "FILE"
    )]
    pub node: PathBuf,
    /// What the node logs on standard error
    #[arg(
        long,
        env = "ROUSE_LOG_LEVEL",
        default_value = "error",
        value_name = "LEVEL"
    )]
    pub log_level: String,
}
