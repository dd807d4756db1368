//! HTTP for a node: the control plane and Invoke of AWS Lambda, and rouse's own routes.
//!
//! [`router`] is the whole API as a tower service, [`serve`] runs one on a listener until told to stop. The handlers only
//! translate: what is allowed and what happens is decided by [`rouse_node::Node`]. `docs/api.md` lists the operations,
//! the headers and the differences to Lambda.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod configuration;
mod control;
mod errors;
mod events;
mod extract;
mod instances;
mod invoke;
mod own;
mod routes;
mod serving;
mod unread;

use axum::serve::ListenerExt;
use std::future::Future;
use std::io;
use tokio::net::TcpListener;

pub use axum::Router;
pub use routes::{metrics_router, router, router_without_metrics};

/// Serves `router` until `shutdown` is ready; then no connection is accepted any more, and this returns when the
/// requests that run have been answered. A caller that does not want to wait that long drops the future.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = listener.tap_io(|stream| {
        // Small answers must not wait for the client's acknowledgement.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
    });
    axum::serve(listener, router)
        .with_graceful_shutdown(shutdown)
        .await
}
