//! Conversations of runtimes with the node.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Frame;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::answers;
use super::routes::*;
use super::server::*;
use super::session::*;
use crate::function::record::SnapshotPoint;

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

fn event(payload: &str) -> Event {
    Event {
        request_id: "req-1".into(),
        function_arn: "arn:aws:lambda:us-east-1:000000000000:function:f".into(),
        timeout: Duration::from_secs(3),
        trace_id: "Root=1-a;Parent=b;Sampled=0".into(),
        client_context: Some("{\"a\":\"ä\"}".into()),
        payload: payload.to_owned().into(),
        rehearsal: false,
    }
}

async fn start(session: &Arc<Session>) -> (SendRequest<Body>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, Arc::clone(session)));
    let stream = TcpStream::connect(address).await.unwrap();
    (handshake(stream, &mut tasks).await, tasks)
}

async fn handshake(stream: TcpStream, tasks: &mut JoinSet<()>) -> SendRequest<Body> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tasks.spawn(async move {
        let _ = connection.await;
    });
    sender
}

fn get(path: &str) -> Request<Body> {
    Request::get(path)
        .header("host", "x")
        .body(Empty::new().map_err(|never| match never {}).boxed())
        .unwrap()
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<Body> {
    Request::post(path)
        .header("host", "x")
        .body(
            Full::new(body.into())
                .map_err(|never| match never {})
                .boxed(),
        )
        .unwrap()
}

async fn send(client: &mut SendRequest<Body>, request: Request<Body>) -> (u16, HeaderMap, String) {
    client.ready().await.unwrap();
    let reply = client.send_request(request).await.unwrap();
    let (head, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (
        head.status.as_u16(),
        head.headers,
        String::from_utf8(body.to_vec()).unwrap(),
    )
}

const NEXT: &str = "/2018-06-01/runtime/invocation/next";

#[tokio::test]
async fn one_invocation_to_the_byte() {
    let session = Arc::new(Session::started(false));
    let (mut client, _tasks) = start(&session).await;
    let answer = session.begin(event("{\"n\":1}"));
    let (status, headers, body) = send(&mut client, get(NEXT)).await;
    assert_eq!((status, body.as_str()), (200, "{\"n\":1}"));
    assert_eq!(headers["lambda-runtime-aws-request-id"], "req-1");
    assert_eq!(
        headers["lambda-runtime-client-context"].as_bytes(),
        "{\"a\":\"ä\"}".as_bytes()
    );
    assert_eq!(headers["content-type"], "application/json");
    let deadline: u64 = headers["lambda-runtime-deadline-ms"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!(deadline > crate::function::record::now_ms());

    assert_eq!(
        send(
            &mut client,
            post("/2018-06-01/runtime/invocation/other/response", "1")
        )
        .await
        .0,
        400
    );
    let (status, _, body) = send(
        &mut client,
        post("/2018-06-01/runtime/invocation/req-1/response", "42"),
    )
    .await;
    assert_eq!((status, body.trim()), (202, "{\"status\":\"OK\"}"));
    assert_eq!(
        answer.await.unwrap(),
        RuntimeAnswer::Response {
            body: "42".into(),
            content_type: None
        }
    );

    let (status, _, body) = send(
        &mut client,
        post("/2018-06-01/runtime/invocation/req-1/response", "43"),
    )
    .await;
    assert_eq!(status, 403);
    assert!(body.contains("State transition from RuntimeResponseSentState to InvocationResponse failed for runtime."), "{body}");
}

#[tokio::test]
async fn the_next_invocation_may_come_with_the_reply_to_an_answer() {
    let session = Arc::new(Session::started(false));
    let (mut client, _tasks) = start(&session).await;
    let first = session.begin(event("1"));
    send(&mut client, get(NEXT)).await;
    let answer = |kind: &str| {
        let mut request = post(
            &format!("/2018-06-01/runtime/invocation/req-1/{kind}"),
            "{}",
        );
        let accept = HeaderValue::from_static("invocation");
        request.headers_mut().insert(RESPONSE_ACCEPT, accept);
        request
    };
    // It does not wait for the next one: the caller has its answer, and the runtime is ready.
    let mut phases = session.phases();
    let waiting = tokio::spawn(async move {
        let reply = send(&mut client, answer("response")).await;
        (reply, client)
    });
    assert!(matches!(
        first.await.unwrap(),
        RuntimeAnswer::Response { .. }
    ));
    let is_parked = |phase: &Phase| matches!(phase, Phase::Parked { .. });
    phases.wait_for(is_parked).await.unwrap();
    assert_eq!(session.state(), RuntimeState::Ready);

    let second = session.begin(event("2"));
    let ((status, headers, body), mut client) = waiting.await.unwrap();
    assert_eq!((status, body.as_str()), (200, "2"));
    assert_eq!(headers["lambda-runtime-aws-request-id"], "req-1");
    // After an error, too; and an answer that is refused is not followed by anything.
    let mut phases = session.phases();
    let begins = async {
        assert!(matches!(second.await.unwrap(), RuntimeAnswer::Error(_)));
        phases.wait_for(is_parked).await.unwrap();
        drop(session.begin(event("3")));
    };
    let (reply, ()) = tokio::join!(send(&mut client, answer("error")), begins);
    assert_eq!(reply.2, "3");
    let unknown = post("/2018-06-01/runtime/invocation/other/response", "1");
    assert_eq!(send(&mut client, unknown).await.0, 400);
}

#[tokio::test]
async fn routes_that_do_not_exist() {
    let session = Arc::new(Session::started(false));
    let (mut client, _tasks) = start(&session).await;
    assert_eq!(send(&mut client, get("/ping")).await.0, 200);
    for path in [
        "/",
        "/2018-06-01/runtime/restore/next",
        "/2018-06-01/runtime/invocation",
        "/2018-06-01/runtime/a/b/c/d",
    ] {
        assert_eq!(send(&mut client, get(path)).await.0, 404, "{path}");
    }
    assert_eq!(send(&mut client, post(NEXT, "")).await.0, 405);
}

#[tokio::test]
async fn errors_and_where_their_type_comes_from() {
    let session = Arc::new(Session::started(false));
    let (mut client, _tasks) = start(&session).await;
    let answer = session.begin(event("{}"));
    send(&mut client, get(NEXT)).await;
    let mut request = post(
        "/2018-06-01/runtime/invocation/req-1/error",
        r#"{"errorType":"ValueError","errorMessage":"no"}"#,
    );
    let cause = HeaderValue::from_bytes(&vec![b'x'; 1 << 20]).unwrap();
    request
        .headers_mut()
        .insert("lambda-runtime-function-xray-error-cause", cause);
    assert_eq!(send(&mut client, request).await.0, 202);
    let RuntimeAnswer::Error(error) = answer.await.unwrap() else {
        panic!("an error")
    };
    assert_eq!(error.error_type, "ValueError");
    assert_eq!(
        error.body,
        r#"{"errorType":"ValueError","errorMessage":"no"}"#
    );

    assert_eq!(
        error_type(
            Some(&HeaderValue::from_static("Runtime.BadThing")),
            "Function"
        ),
        "Runtime.BadThing"
    );
    assert_eq!(
        error_type(
            Some(&HeaderValue::from_static("Function.bad thing")),
            "Function"
        ),
        "Function.Unknown"
    );
    assert_eq!(
        error_type(Some(&HeaderValue::from_static("nonsense")), "Runtime"),
        "Runtime.Unknown"
    );
}

#[tokio::test]
async fn init_errors_are_reported_once() {
    let session = Arc::new(Session::started(true));
    let (mut client, _tasks) = start(&session).await;
    let mut request = post("/2018-06-01/runtime/init/error", "not json");
    request.headers_mut().insert(
        ERROR_TYPE,
        HeaderValue::from_static("Runtime.ImportModuleError"),
    );
    assert_eq!(send(&mut client, request).await.0, 202);
    assert!(
        matches!(&*session.phases().borrow(), Phase::InitError(e) if e.error_type == "Runtime.ImportModuleError")
    );
    assert_eq!(
        send(&mut client, post("/2018-06-01/runtime/init/error", "{}"))
            .await
            .0,
        403
    );
}

#[tokio::test]
async fn a_response_over_the_limit() {
    let session = Arc::new(Session::started(false));
    let (mut client, _tasks) = start(&session).await;
    let answer = session.begin(event("{}"));
    send(&mut client, get(NEXT)).await;
    let (status, _, body) = send(
        &mut client,
        post(
            "/2018-06-01/runtime/invocation/req-1/response",
            vec![b'1'; MAX_RESPONSE + 1],
        ),
    )
    .await;
    assert_eq!(status, 413);
    assert!(
        body.contains("Exceeded maximum allowed payload size (6291556 bytes)."),
        "{body}"
    );
    assert_eq!(answer.await.unwrap(), RuntimeAnswer::TooLarge);

    let answer = session.begin(event("{}"));
    send(&mut client, get(NEXT)).await;
    assert_eq!(
        send(
            &mut client,
            post(
                "/2018-06-01/runtime/invocation/req-1/response",
                vec![b'1'; MAX_RESPONSE]
            )
        )
        .await
        .0,
        202
    );
    assert!(
        matches!(answer.await.unwrap(), RuntimeAnswer::Response { body, .. } if body.len() == MAX_RESPONSE)
    );
}

/// A body in chunks that ends with trailers.
struct Chunks(Vec<Frame<Bytes>>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Ready(self.0.pop().map(Ok))
    }
}

#[tokio::test]
async fn streams_are_collected_and_may_fail_at_their_end() {
    let session = Arc::new(Session::started(false));
    let (mut client, _tasks) = start(&session).await;
    for failing in [false, true] {
        let answer = session.begin(event("{}"));
        send(&mut client, get(NEXT)).await;
        let mut frames = vec![
            Frame::data(Bytes::from_static(b"\"par")),
            Frame::data(Bytes::from_static(b"ts\"")),
        ];
        if failing {
            let mut trailers = HeaderMap::new();
            trailers.insert(ERROR_TYPE, HeaderValue::from_static("Function.StreamError"));
            trailers.insert(ERROR_BODY, HeaderValue::from_static("eyJhIjoxfQ=="));
            frames.push(Frame::trailers(trailers));
        }
        frames.reverse();
        let request = Request::post("/2018-06-01/runtime/invocation/req-1/response")
            .header("host", "x")
            .header(RESPONSE_MODE, "streaming")
            .header(
                "trailer",
                "Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body",
            )
            .body(Chunks(frames).boxed())
            .unwrap();
        assert_eq!(send(&mut client, request).await.0, 202);
        match answer.await.unwrap() {
            RuntimeAnswer::Response { body, .. } if !failing => assert_eq!(body, "\"parts\""),
            RuntimeAnswer::Error(error) if failing => {
                assert_eq!(
                    (error.error_type.as_str(), &error.body[..]),
                    ("Function.StreamError", &b"{\"a\":1}"[..])
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_response_that_breaks_off() {
    let session = Arc::new(Session::started(false));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(accept(listener, Arc::clone(&session)));
    let answer = session.begin(event("{}"));
    assert!(matches!(session.next(1), Ok(Next::Now(_))));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream
        .write_all(b"POST /2018-06-01/runtime/invocation/req-1/response HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhalf")
        .await
        .unwrap();
    drop(stream);
    assert!(
        matches!(answer.await.unwrap(), RuntimeAnswer::Error(e) if e.error_type == "Runtime.TruncatedResponse")
    );
}

#[tokio::test]
async fn the_parked_request_is_answered_and_the_connection_goes_on() {
    for point in [
        SnapshotPoint::RestoreNext,
        SnapshotPoint::RestoreWithEvent,
        SnapshotPoint::InvocationNext,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let session = Arc::new(Session::restored(point));
        let event = event("{\"n\":2}");
        let (bytes, answer) = match point {
            SnapshotPoint::RestoreNext => (answers::restore(), session.begin(event.clone())),
            SnapshotPoint::RestoreWithEvent | SnapshotPoint::InvocationNext => {
                (answers::event(&event), session.begin_parked(&event))
            }
        };
        let mut tasks = JoinSet::new();
        let server = server.into_std().unwrap().into();
        tasks.spawn(serve_parked(server, 0, bytes.clone(), Arc::clone(&session)));
        // The client sent its request in another life; it only reads.
        let mut read = vec![0; bytes.len()];
        let mut client = client;
        tokio::io::AsyncReadExt::read_exact(&mut client, &mut read)
            .await
            .unwrap();
        assert!(read.starts_with(b"HTTP/1.1 200 OK\r\n"));
        let mut client = handshake(client, &mut tasks).await;
        if point == SnapshotPoint::RestoreNext {
            assert_eq!(send(&mut client, get(NEXT)).await.2, "{\"n\":2}");
        } else {
            assert!(read.ends_with(b"\r\n\r\n{\"n\":2}"));
        }
        assert_eq!(
            send(
                &mut client,
                post("/2018-06-01/runtime/invocation/req-1/response", "9")
            )
            .await
            .0,
            202
        );
        assert!(
            matches!(answer.await.unwrap(), RuntimeAnswer::Response { body, .. } if body == "9")
        );
    }
}
