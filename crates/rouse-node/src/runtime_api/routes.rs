//! Routes of the runtime API, their limits, and the shapes of their answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::sync::oneshot;

use super::answers::event_headers;
use super::session::{Denied, Event, Next, RestoreAccepts, RuntimeAnswer, RuntimeError, Session};

/// Largest response of a function, bytes: 6 MiB and 100.
pub const MAX_RESPONSE: usize = 6_291_556;

/// Largest body of an error report, bytes.
const MAX_ERROR: usize = 1 << 20;

const PREFIX: &str = "/2018-06-01/runtime/";
pub(super) const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
pub(super) const ERROR_BODY: &str = "lambda-runtime-function-error-body";
/// What a runtime can take along with the answer to its `restore/next`; ours.
const RESTORE_ACCEPT: &str = "rouse-restore-accept";
/// What a runtime can take as the reply to its answer; ours.
pub(super) const RESPONSE_ACCEPT: &str = "rouse-response-accept";
pub(super) const RESPONSE_MODE: &str = "lambda-runtime-function-response-mode";

/// What is answered.
pub type Reply = Response<Full<Bytes>>;

/// Answers one request, which came from the client's port `port`.
pub async fn handle(request: Request<Incoming>, port: u16, session: &Session) -> Reply {
    let path = request.uri().path();
    if path == "/ping" && request.method() == Method::GET {
        return text(StatusCode::OK, "text/plain", Bytes::from_static(b"pong"));
    }
    let Some(route) = path.strip_prefix(PREFIX).map(str::to_owned) else {
        return not_found();
    };
    let parts: Vec<&str> = route.split('/').collect();
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["invocation", "next"]) => next(session, port).await,
        (&Method::GET, ["restore", "next"]) if session.snapshotting() => {
            let accepts = request.headers().get(RESTORE_ACCEPT);
            let accepts = accepts.and_then(|value| value.to_str().ok());
            let accepts = accepts.map(RestoreAccepts::parse).unwrap_or_default();
            parked(session.restore_next(port, accepts)).await
        }
        (&Method::GET, ["warm-up", "next"]) if session.snapshotting() => {
            warm_up_next(session).await
        }
        (&Method::GET, ["template", "next"]) if session.is_template() => {
            parked(session.template_next(port)).await
        }
        (&Method::POST, ["restore", "error"]) if session.snapshotting() => {
            reported(session.restore_error(read_error(request, "Runtime").await))
        }
        (&Method::POST, ["init", "error"]) => {
            reported(session.init_error(read_error(request, "Runtime").await))
        }
        (&Method::POST, ["invocation", id, kind @ ("response" | "error")]) => {
            let takes_next = takes_invocation(&request, RESPONSE_ACCEPT);
            let reply = match *kind {
                "response" => response(request, session, id).await,
                _ => error(request, session, id).await,
            };
            match takes_next && reply.status() == StatusCode::ACCEPTED {
                true => next(session, port).await,
                false => reply,
            }
        }
        (_, ["restore", _]) if !session.snapshotting() => not_found(),
        (
            _,
            ["invocation", "next"] | ["restore", "next"] | ["restore", "error"] | ["init", "error"],
        )
        | (_, ["invocation", _, "response" | "error"]) => {
            text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", Bytes::new())
        }
        _ => not_found(),
    }
}

/// Does the runtime say in this header that the reply may be an invocation?
fn takes_invocation(request: &Request<Incoming>, header: &str) -> bool {
    let value = request.headers().get(header);
    value.is_some_and(|value| value == "invocation")
}

async fn next(session: &Session, port: u16) -> Reply {
    let event = match session.next(port) {
        Ok(Next::Now(event)) => event,
        Ok(Next::Wait(event)) => match event.await {
            Ok(event) => event,
            // Another connection of the same runtime has asked meanwhile and took its place.
            Err(_) => {
                return failed(
                    StatusCode::FORBIDDEN,
                    "InvalidStateTransition",
                    "Another request for the next event has replaced this one",
                );
            }
        },
        Err(denied) => return deny(&denied),
    };
    event_reply(&event)
}

async fn warm_up_next(session: &Session) -> Reply {
    let event = match session.warm_up_next() {
        Ok(Some(Next::Now(event))) => Some(event),
        // Nobody sends one any more when the warm-up is over.
        Ok(Some(Next::Wait(event))) => event.await.ok(),
        Ok(None) => None,
        Err(denied) => return deny(&denied),
    };
    match event {
        Some(event) => event_reply(&event),
        None => {
            let mut reply = Response::new(Full::new(Bytes::new()));
            *reply.status_mut() = StatusCode::NO_CONTENT;
            reply
        }
    }
}

fn event_reply(event: &Event) -> Reply {
    let mut reply = Response::new(Full::new(event.payload.clone()));
    for (name, value) in event_headers(event) {
        reply
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    reply
}

async fn parked(released: Result<oneshot::Receiver<()>, Denied>) -> Reply {
    match released {
        Ok(released) => match released.await {
            Ok(()) => text(StatusCode::OK, "application/json", Bytes::new()),
            Err(_) => failed(
                StatusCode::FORBIDDEN,
                "InvalidStateTransition",
                "Another restore request has replaced this one",
            ),
        },
        Err(denied) => deny(&denied),
    }
}

async fn response(request: Request<Incoming>, session: &Session, id: &str) -> Reply {
    if let Err(denied) = session.answer_begins(id, "InvocationResponse") {
        return deny(&denied);
    }
    let headers = request.headers();
    let mode = headers
        .get(RESPONSE_MODE)
        .map(|mode| mode.as_bytes().to_ascii_lowercase());
    if mode
        .as_deref()
        .is_some_and(|mode| mode != b"streaming" && mode != b"buffered")
    {
        session.answer(RuntimeAnswer::Error(composed(
            "Runtime.InvalidResponseModeHeader",
            "Invalid function response mode",
        )));
        return failed(
            StatusCode::BAD_REQUEST,
            "InvalidFunctionResponseMode",
            "Invalid function response mode",
        );
    }
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let mut body = request.into_body();
    let mut bytes = BytesMut::new();
    let mut trailers = HeaderMap::new();
    let mut too_large = false;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(_) if too_large => break,
            Err(_) => {
                session.answer(RuntimeAnswer::Error(composed(
                    "Runtime.TruncatedResponse",
                    "Response body was truncated",
                )));
                return failed(
                    StatusCode::BAD_REQUEST,
                    "TruncatedHTTPRequest",
                    "HTTP request detected as truncated",
                );
            }
        };
        match frame.into_data() {
            // The rest is read and forgotten: the client sees the 413 only after it has sent everything.
            Ok(_) if too_large => {}
            Ok(data) if bytes.len() + data.len() > MAX_RESPONSE => {
                too_large = true;
                bytes = BytesMut::new();
                session.answer(RuntimeAnswer::TooLarge);
            }
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    if too_large {
        let message = format!("Exceeded maximum allowed payload size ({MAX_RESPONSE} bytes).");
        return failed(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            &message,
        );
    }
    let answer = match trailers.get(ERROR_TYPE) {
        // A stream that failed half-way says so at its end.
        Some(kind) => {
            let error_type = error_type(Some(kind), "Function");
            let body = trailers
                .get(ERROR_BODY)
                .and_then(|body| STANDARD.decode(body.as_bytes()).ok())
                .map(Bytes::from);
            RuntimeAnswer::Error(match body {
                Some(body) => RuntimeError { error_type, body },
                None => composed(&error_type, "The response stream failed"),
            })
        }
        None => RuntimeAnswer::Response {
            body: bytes.freeze(),
            content_type,
        },
    };
    session.answer(answer);
    accepted()
}

async fn error(request: Request<Incoming>, session: &Session, id: &str) -> Reply {
    if let Err(denied) = session.answer_begins(id, "InvocationErrorResponse") {
        return deny(&denied);
    }
    let error = read_error(request, "Function").await;
    session.answer(RuntimeAnswer::Error(error));
    accepted()
}

/// Reads an error report. One that cannot be read is still an error report.
async fn read_error(request: Request<Incoming>, domain: &str) -> RuntimeError {
    let header = request.headers().get(ERROR_TYPE).cloned();
    let limited = http_body_util::Limited::new(request.into_body(), MAX_ERROR);
    let body = limited
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();
    let json: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let in_body = json
        .as_ref()
        .and_then(|json| json.get("errorType"))
        .and_then(|kind| kind.as_str());
    let error_type = match (header, in_body) {
        (Some(header), _) => error_type(Some(&header), domain),
        (None, Some(in_body)) => in_body.to_owned(),
        (None, None) => format!("{domain}.Unknown"),
    };
    if json.is_some() {
        RuntimeError { error_type, body }
    } else {
        composed(&error_type, "Unknown error")
    }
}

/// Keeps what looks like `Runtime.Something` or `Function.Something`.
pub(super) fn error_type(header: Option<&HeaderValue>, domain: &str) -> String {
    let text = header
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let known = ["Runtime.", "Function."].iter().any(|prefix| {
        text.strip_prefix(prefix).is_some_and(|rest| {
            rest.len() >= 2
                && rest.starts_with(|c: char| c.is_ascii_uppercase())
                && rest.bytes().all(|b| b.is_ascii_alphabetic())
        })
    });
    if known {
        text.to_owned()
    } else if text.starts_with("Function.") {
        "Function.Unknown".into()
    } else if text.starts_with("Runtime.") {
        "Runtime.Unknown".into()
    } else {
        format!("{domain}.Unknown")
    }
}

fn composed(error_type: &str, message: &str) -> RuntimeError {
    let body = serde_json::json!({ "errorType": error_type, "errorMessage": message }).to_string();
    RuntimeError {
        error_type: error_type.to_owned(),
        body: body.into(),
    }
}

fn reported(result: Result<(), Denied>) -> Reply {
    match result {
        Ok(()) => accepted(),
        Err(denied) => deny(&denied),
    }
}

fn accepted() -> Reply {
    text(
        StatusCode::ACCEPTED,
        "application/json",
        Bytes::from_static(b"{\"status\":\"OK\"}\n"),
    )
}

fn deny(denied: &Denied) -> Reply {
    match denied {
        Denied::Transition { .. } => failed(
            StatusCode::FORBIDDEN,
            "InvalidStateTransition",
            &denied.to_string(),
        ),
        Denied::RequestId => failed(
            StatusCode::BAD_REQUEST,
            "InvalidRequestID",
            &denied.to_string(),
        ),
    }
}

fn failed(status: StatusCode, kind: &str, message: &str) -> Reply {
    let body = serde_json::json!({ "errorMessage": message, "errorType": kind }).to_string();
    text(status, "application/json", body.into())
}

fn not_found() -> Reply {
    text(
        StatusCode::NOT_FOUND,
        "text/plain; charset=utf-8",
        Bytes::from_static(b"404 page not found\n"),
    )
}

fn text(status: StatusCode, content_type: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}
