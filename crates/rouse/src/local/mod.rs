//! A node in this process: what `serve`, `quickstart` and `bench` start, each the same way.
//!
//! The order is the point of [`Prepared`], which can only be made before there are threads:
//! 1. the host is checked, so that what is missing is said in one sentence;
//! 2. the lock on the state directory is taken, before anything in it is touched: a second node would otherwise clear
//!    the first one's control group;
//! 3. the runtime clients are installed, since sandboxes mount their directory;
//! 4. the spawner is forked, while this process has a single thread;
//! 5. only then comes the async runtime, with the node and its API.

mod embedded;
mod microvms;
mod spawner;
mod state_dir;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rouse_api::Router;
use rouse_node::boot::Sandboxes;
use rouse_node::{Node, NodeError};
use rouse_process::launcher::{Launcher, LauncherConfig, StartError as LauncherError};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::client::endpoint::Endpoint;
use crate::host::{self, HostError};
use crate::settings::ServeConfig;

pub use embedded::{Session, with_node};
pub use spawner::SpawnerEnd;
pub use state_dir::{Service, StateDir, StateDirError};

/// Why a node did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
pub enum LocalNodeError {
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The state directory cannot be used.
    #[error("the state directory cannot be used")]
    StateDir(#[from] StateDirError),
    /// The runtime clients could not be written.
    #[error("the runtime clients could not be installed")]
    Runtimes(#[source] io::Error),
    /// No sandboxes.
    #[error("sandboxes cannot be started")]
    Launcher(#[from] LauncherError),
    /// The async runtime did not start.
    #[error("the async runtime did not start")]
    Tokio(#[source] io::Error),
    /// The node did not start.
    #[error("the node did not start")]
    Node(#[from] NodeError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The HTTP server broke.
    #[error("the HTTP server broke")]
    Serve(#[source] io::Error),
    /// Signals cannot be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    /// No sandbox can be made any more.
    #[error("the spawner has ended, and all sandboxes with it; start the node again")]
    SpawnerEnded,
    /// The node's task panicked.
    #[error("the node ended by a panic")]
    Panic(#[source] tokio::task::JoinError),
}

/// How long the collector may take for the last traces.
const TRACES_PATIENCE: Duration = Duration::from_secs(3);

/// Everything that must exist before there are threads.
#[derive(Debug)]
pub struct Prepared {
    config: ServeConfig,
    launcher: Launcher,
    state_dir: StateDir,
}

impl Prepared {
    /// Checks the host, takes the lock and starts the spawner. The process must have a single thread.
    pub fn new(config: ServeConfig) -> Result<Self, LocalNodeError> {
        host::require()?;
        let state_dir = StateDir::lock(&config.node.state_dir)?;
        let runtime_dir = state_dir.path().join("runtime");
        warn_of_missing_interpreters(&config);
        rouse_runtimes::install(&runtime_dir).map_err(LocalNodeError::Runtimes)?;
        let launcher = Launcher::start(LauncherConfig {
            sandbox: config.sandbox(runtime_dir),
            clock_file: state_dir.path().join("clock"),
            store: state_dir.path().into(),
            ready_sandboxes: config.ready_sandboxes,
            most_ready_sandboxes: config.most_ready_sandboxes,
            ready_clones: config.ready_clones,
            record_order: config.node.memory.record_order,
            huge_pages: config.node.memory.huge_pages,
        })?;
        Ok(Self {
            config,
            launcher,
            state_dir,
        })
    }

    /// What will start the node's instances.
    pub fn launcher(&self) -> Launcher {
        self.launcher.clone()
    }

    /// The spawner, to be waited for at the end.
    pub fn spawner_end(&self) -> SpawnerEnd {
        SpawnerEnd::of(self.launcher.spawner_pid())
    }

    /// Serves until `stop` is ready, then drains: no new request is accepted, running ones get their time, and every
    /// instance has ended when this returns. `started` hears the endpoint as soon as it accepts connections.
    ///
    /// A node whose spawner has ended stops in the same way, and fails.
    pub async fn run(
        self,
        stop: impl Future<Output = ()> + Send + 'static,
        started: oneshot::Sender<Endpoint>,
    ) -> Result<(), LocalNodeError> {
        let spawner = self.spawner_end();
        let Self {
            config,
            launcher,
            state_dir,
        } = self;
        let microvms = microvms::start(&config, &state_dir, &launcher);
        let address = config.listen;
        let listen = |source| LocalNodeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let sandboxes = Sandboxes::new(launcher, microvms);
        let node = Node::start(config.node, sandboxes)?;
        let endpoint: Endpoint = format!("http://{address}")
            .parse()
            .expect("a socket address makes an endpoint");
        // Until the requests that run have been answered: meanwhile it says that the node is stopping.
        let metrics = match config.metrics_listen {
            None => None,
            Some(address) => Some(serve_metrics(&node, address, &state_dir).await?),
        };
        state_dir.publish(Service::Api, &endpoint)?;
        tracing::info!(endpoint = %endpoint, state_dir = %state_dir.path().display(), "accepting requests");
        // Whoever started us may have gone away.
        let _ = started.send(endpoint);
        let (crippled, mut is_crippled) = oneshot::channel();
        let stop = async move {
            tokio::select! {
                () = stop => {}
                Ok(()) = spawner.come() => {
                    tracing::error!("the spawner has ended, and all sandboxes with it; the node stops");
                    // Nobody listens any more when the server has ended by itself.
                    let _ = crippled.send(());
                }
            }
        };
        let router = match metrics {
            None => rouse_api::router(Arc::clone(&node)),
            Some(_) => rouse_api::router_without_metrics(Arc::clone(&node)),
        };
        let served = serve(&node, listener, router, stop, config.drain).await;
        state_dir.withdraw(Service::Api);
        if tokio::time::timeout(TRACES_PATIENCE, node.flush_traces())
            .await
            .is_err()
        {
            tracing::warn!("the last traces are lost: the collector did not take them in time");
        }
        if let Some(metrics) = metrics {
            state_dir.withdraw(Service::Metrics);
            metrics.abort();
        }
        // Requests that were cut off end their instances when the runtime is dropped, with the tasks that wait for them.
        node.end_instances();
        tracing::info!("stopped");
        served?;
        match is_crippled.try_recv() {
            Ok(()) => Err(LocalNodeError::SpawnerEnded),
            Err(_) => Ok(()),
        }
    }
}

/// A host may well have only one of the interpreters; functions of the other fail one by one, with this in the log.
fn warn_of_missing_interpreters(config: &ServeConfig) {
    let interpreters = &config.node.interpreters;
    for (runtime, path) in [
        ("python3", &interpreters.python3),
        ("nodejs", &interpreters.nodejs),
    ] {
        let on_host = config.root.join(path.strip_prefix("/").unwrap_or(path));
        if !on_host.exists() {
            tracing::warn!(runtime, path = %on_host.display(), "there is no interpreter for this runtime");
        }
    }
}

/// Serves metrics and health on an address of their own.
async fn serve_metrics(
    node: &Arc<Node>,
    address: SocketAddr,
    state_dir: &StateDir,
) -> Result<AbortHandle, LocalNodeError> {
    let listen = |source| LocalNodeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let router = rouse_api::metrics_router(Arc::clone(node));
    let task = tokio::spawn(async move {
        if let Err(error) = rouse_api::serve(listener, router, std::future::pending()).await {
            tracing::error!(%error, "metrics are not served any more");
        }
    });
    let endpoint: Endpoint = format!("http://{address}")
        .parse()
        .expect("a socket address makes an endpoint");
    state_dir.publish(Service::Metrics, &endpoint)?;
    tracing::info!(%endpoint, "serving metrics");
    Ok(task.abort_handle())
}

/// Serves until `stop`, and after it at most `drain` more.
async fn serve(
    node: &Arc<Node>,
    listener: TcpListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
    drain: Duration,
) -> Result<(), LocalNodeError> {
    let (stopping, stopped) = oneshot::channel();
    let draining = Arc::clone(node);
    let shutdown = async move {
        stop.await;
        draining.drain();
        tracing::info!("stopping: no new requests, waiting for running ones");
        draining.close();
        let _ = stopping.send(());
    };
    let deadline = async move {
        // An error means that the server ended by itself, so that its result decides.
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(drain).await;
    };
    let all_served = async {
        let served = rouse_api::serve(listener, router, shutdown).await;
        // Events are nobody's request.
        node.drained().await;
        served.map_err(LocalNodeError::Serve)
    };
    tokio::select! {
        served = all_served => served,
        () = deadline => {
            tracing::warn!(seconds = drain.as_secs(), "requests still run after the drain timeout; they are cut off");
            Ok(())
        }
    }
}
