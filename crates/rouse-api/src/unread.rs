//! What a handler left unread of a request.
//!
//! A request that is answered before its body has been read (a dry run, an unknown function, an invalid header) leaves
//! that body on the connection. The HTTP server then closes the connection without having said so, and a client whose
//! body came a moment after its head finds its next request unanswered. So the rest is read here before the answer goes
//! out; of a body that is too long or too slow for this, the answer says that the connection closes.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::HeaderValue;
use axum::http::header::CONNECTION;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;

/// Largest rest that is read, bytes. A payload that was refused for being a little too large fits.
const MAX_REST: usize = 2 << 20;

/// How long a client may take to send it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Answers as `next` does, once the whole request is off the connection.
pub async fn read_rest(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (head, body) = request.into_parts();
    let rest = Rest::default();
    let lent = Lent {
        body: Some(body),
        rest: rest.clone(),
    };
    let request = Request::from_parts(head, Body::new(lent));
    let mut response = next.run(request).await;
    if let Some(body) = rest.take()
        && !read(body).await
    {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    response
}

/// Whether the body has come to its end.
async fn read(mut body: Body) -> bool {
    let all = async {
        let mut left = MAX_REST;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let len = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(len) {
                Some(less) => left = less,
                None => return false,
            }
        }
        true
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or(false)
}

/// A body that its reader gave up before the end.
#[derive(Clone, Default)]
struct Rest(Arc<Mutex<Option<Body>>>);

impl Rest {
    fn put(&self, body: Body) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    fn take(&self) -> Option<Body> {
        let mut rest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rest.take()
    }
}

/// The body that a handler sees. It comes back as [`Rest`] if it is dropped before its end.
struct Lent {
    body: Option<Body>,
    rest: Rest,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = Pin::new(body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body
            .as_ref()
            .map_or(http_body::SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take()
            && !body.is_end_stream()
        {
            self.rest.put(body);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;

    use super::*;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::middleware::from_fn;
    use axum::routing::post;
    use tokio::sync::mpsc::{Receiver, channel};
    use tower::ServiceExt;

    /// What a client sends, as it sends it.
    struct Sent(Receiver<Bytes>);

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = axum::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
            let bytes = self.0.poll_recv(cx);
            bytes.map(|bytes| bytes.map(|bytes| Ok(http_body::Frame::data(bytes))))
        }
    }

    fn router() -> Router {
        Router::new()
            .route("/deaf", post(async || StatusCode::NO_CONTENT))
            .route("/echo", post(async |body: Bytes| body))
            .layer(from_fn(read_rest))
    }

    async fn waits(mut answer: Pin<&mut impl Future>) -> bool {
        poll_fn(|cx| Poll::Ready(answer.as_mut().poll(cx).is_pending())).await
    }

    fn request(path: &str, body: Body) -> Request {
        Request::post(path).body(body).unwrap()
    }

    #[tokio::test]
    async fn an_answer_waits_for_the_end_of_a_body_that_nobody_reads() {
        let (client, body) = channel(1);
        let request = request("/deaf", Body::new(Sent(body)));
        let mut answer = pin!(router().oneshot(request));
        assert!(waits(answer.as_mut()).await);
        client.send(Bytes::from_static(b"{}")).await.unwrap();
        assert!(waits(answer.as_mut()).await);
        drop(client);
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert!(!answer.headers().contains_key(CONNECTION));
    }

    #[tokio::test]
    async fn a_connection_with_a_long_rest_is_said_to_close() {
        for (len, closes) in [(MAX_REST, false), (MAX_REST + 1, true)] {
            let request = request("/deaf", Body::from(vec![0; len]));
            let answer = router().oneshot(request).await.unwrap();
            assert_eq!(answer.headers().contains_key(CONNECTION), closes, "{len}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_read_is_what_was_sent() {
        let sent = vec![7; 100_000];
        let request = request("/echo", Body::from(sent.clone()));
        let answer = router().oneshot(request).await.unwrap();
        assert!(!answer.headers().contains_key(CONNECTION));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, sent);
    }
}
