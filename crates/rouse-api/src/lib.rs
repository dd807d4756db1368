//! HTTP for a node: the control plane and Invoke of AWS Lambda, and rouse's own routes.
//!
//! [`router`] is the whole API as a tower service, [`serve`] runs it on a listener until told to stop. The handlers only
//! translate: what is allowed and what happens is decided by [`rouse_node::Node`]. `docs/api.md` lists the operations,
//! the headers and the differences to Lambda.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod configuration;
mod control;
mod errors;
mod events;
mod extract;
mod invoke;
mod own;
mod routes;
mod serving;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::serve::ListenerExt;
use rouse_node::Node;
use tokio::net::TcpListener;

pub use routes::router;

/// Serves the API until `shutdown` is ready; then no connection is accepted any more, and this returns when the
/// requests that run have been answered. A caller that does not want to wait that long drops the future.
pub async fn serve(
    node: Arc<Node>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // Small answers must not wait for the client's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    let served = axum::serve(listener, router(Arc::clone(&node)))
        .with_graceful_shutdown(shutdown)
        .await;
    node.end_instances();
    served
}
