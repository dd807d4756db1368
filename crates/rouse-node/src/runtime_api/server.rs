//! Connections of one runtime: those that it opens, and those that it brings along out of its snapshot.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::boot::{ApiListener, Carried, ParkedStream};

use super::answers::{WakesAs, event_to};
use super::routes::handle;
use super::session::{Event, Session};

/// The X-Ray cause alone may have 1 MiB; hyper wants the whole head in its buffer.
pub(super) const MAX_HEAD: usize = 2 << 20;

/// Has a task of `tasks` answer every connection of a runtime.
pub fn spawn(
    listener: ApiListener,
    session: Arc<Session>,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    match listener {
        ApiListener::Loopback(listener) => {
            listener.set_nonblocking(true)?;
            tasks.spawn(accept(TcpListener::from_std(listener)?, session));
        }
        ApiListener::Carried(connections) => {
            tasks.spawn(take(connections, session));
        }
    }
    Ok(())
}

/// As [`accept`], of connections that are carried here.
async fn take(mut connections: mpsc::Receiver<Carried>, session: Arc<Session>) {
    let mut served = JoinSet::new();
    while let Some(Carried { port, stream }) = connections.recv().await {
        while served.try_join_next().is_some() {}
        let stream = stream
            .set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(stream));
        match stream {
            Ok(stream) => drop(served.spawn(serve_on(stream, port, Arc::clone(&session)))),
            Err(error) => tracing::warn!(%error, "cannot take a runtime's connection"),
        }
    }
    // No more come; those that are open go on.
    while served.join_next().await.is_some() {}
}

/// Answers every connection to `listener` until dropped; its connections end with it.
pub async fn accept(listener: TcpListener, session: Arc<Session>) {
    let mut connections = JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                while connections.try_join_next().is_some() {}
                connections.spawn(serve(stream, peer.port(), Arc::clone(&session)));
            }
            Err(error) => {
                // Too many open files, for instance: wait for it to pass instead of spinning.
                tracing::warn!(%error, "cannot accept a runtime's connection");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the request that was parked in the snapshot, then serves the connection as any other.
///
/// The bytes go out before anything is read, so the answer may lie in the socket before the copy runs.
/// `port` is the client's; it matters only if a snapshot of the copy is to be taken.
pub async fn serve_parked(stream: ParkedStream, port: u16, answer: Bytes, session: Arc<Session>) {
    let error = match stream {
        ParkedStream::Loopback(stream) => match TcpStream::from_std(stream) {
            Ok(mut stream) => match stream.write_all(&answer).await {
                Ok(()) => return serve(stream, port, session).await,
                Err(error) => error,
            },
            Err(error) => error,
        },
        ParkedStream::Carried(carried) => match UnixStream::from_std(carried.stream) {
            Ok(mut stream) => match stream.write_all(&answer).await {
                Ok(()) => return serve_on(stream, port, session).await,
                Err(error) => error,
            },
            Err(error) => error,
        },
    };
    tracing::debug!(%error, "a restored runtime is gone before its answer");
}

/// Serves a runtime that has waited for its next event since before it was copied. Nothing is read until there is one: the
/// request was made by the process that it is a copy of.
pub async fn serve_waiting(
    stream: ParkedStream,
    port: u16,
    event: oneshot::Receiver<Event>,
    wakes_as: WakesAs,
    session: Arc<Session>,
) {
    // Another request of the same runtime has taken its place otherwise.
    if let Ok(event) = event.await {
        serve_parked(stream, port, event_to(&event, wakes_as), session).await;
    }
}

async fn serve(stream: TcpStream, port: u16, session: Arc<Session>) {
    // Small answers must not wait for the client's acknowledgement.
    let _ = stream.set_nodelay(true);
    serve_on(stream, port, session).await;
}

async fn serve_on(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    port: u16,
    session: Arc<Session>,
) {
    let service = service_fn(move |request| {
        let session = Arc::clone(&session);
        async move { Ok::<_, Infallible>(handle(request, port, &session).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    // Without half-close, a client that goes away while it is parked is noticed, and its event kept for the next request.
    builder
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .header_read_timeout(None);
    if let Err(error) = builder
        .serve_connection(TokioIo::new(stream), service)
        .await
    {
        tracing::debug!(%error, "a runtime's connection ended");
    }
}
