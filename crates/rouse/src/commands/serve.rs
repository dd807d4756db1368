//! `rouse serve`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use crate::host;
use crate::local::{LocalNodeError, Prepared};
use crate::output::error::Outcome;
use crate::settings::{LogFormat, ServeConfig, Settings};

/// Runs a node until SIGTERM or Ctrl-C
///
/// Each setting is taken from its flag, else from its environment variable, else from the configuration file, else from
/// the built-in default. The node writes its URL to STATE_DIR/endpoint as soon as it accepts requests.
#[derive(Debug, clap::Args)]
pub struct ServeArgs {
    /// TOML file with settings
    #[arg(long, env = "ROUSE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command. The process must have a single thread.
pub fn run(args: ServeArgs) -> Outcome {
    let config = ServeConfig::resolve(args.settings, args.config.as_deref())?;
    start_log(config.log_format, &config.log_level)?;
    tracing::info!("microVMs: {}", host::microvms());
    let prepared = Prepared::new(config)?;
    let spawner = prepared.spawner_end();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(LocalNodeError::Tokio)?;
    let served = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(LocalNodeError::Signals)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(LocalNodeError::Signals)?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let (started, _endpoint) = oneshot::channel();
        prepared.run(stop, started).await
    });
    drop(runtime);
    spawner.wait();
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Starts the log on standard error.
pub fn start_log(
    format: LogFormat,
    level: &str,
) -> Result<(), tracing_subscriber::filter::ParseError> {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(level)?)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
