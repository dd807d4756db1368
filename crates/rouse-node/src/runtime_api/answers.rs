//! Answers to requests that were parked in a snapshot, as bytes: no server has read those requests in this instance. And the
//! headers of events, which are the same for all.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use http::header::HeaderValue;
use rouse_process::instance::LaunchSpec;

use super::session::Event;

/// Header of an event that the runtime's client is to answer itself; ours.
const REHEARSAL: &str = "rouse-rehearsal";
/// Tells a runtime that it is a copy of one that has answered events; ours.
const COPIED: &str = "rouse-copied: 1\r\n";

/// What a runtime that waits for its next event has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakesAs {
    /// Nothing before: its snapshot was taken there.
    New,
    /// Another instance, from which it must differ: clients that know the header run what makes it so.
    Copy,
}

/// The answer to a parked `restore/next`, as bytes.
pub fn restore() -> Bytes {
    Bytes::from_static(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 0\r\n\r\n",
    )
}

/// The answer to a parked `template/next`, as bytes: what makes the template a function.
pub fn template(spec: &LaunchSpec) -> Bytes {
    // Pairs and not an object: the order of variables is that of a start from nothing.
    let body = serde_json::json!({
        "environment": spec.env,
        "handler": spec.argv.last(),
        "command": spec.argv,
    })
    .to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    Bytes::from(head + &body)
}

/// The answer to a parked `invocation/next`, as bytes.
pub fn event(event: &Event) -> Bytes {
    event_to(event, WakesAs::New)
}

/// The same, of a runtime that has been something else before.
pub fn event_to(event: &Event, wakes_as: WakesAs) -> Bytes {
    let mut head = String::with_capacity(512);
    head.push_str("HTTP/1.1 200 OK\r\n");
    if wakes_as == WakesAs::Copy {
        head.push_str(COPIED);
    }
    for (name, value) in event_headers(event) {
        // Header values were made from strings, or are left out; this cannot lose bytes that matter.
        let _ = write!(
            head,
            "{name}: {}\r\n",
            String::from_utf8_lossy(value.as_bytes())
        );
    }
    let _ = write!(head, "content-length: {}\r\n\r\n", event.payload.len());
    let mut bytes = BytesMut::with_capacity(head.len() + event.payload.len());
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(&event.payload);
    bytes.freeze()
}

/// All that is said of an event beside its payload.
pub fn event_headers(event: &Event) -> Vec<(&'static str, HeaderValue)> {
    let deadline = SystemTime::now() + event.timeout;
    let deadline_ms = deadline
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    let deadline_text = deadline_ms.to_string();
    let mut headers = vec![("content-type", HeaderValue::from_static("application/json"))];
    let texts = [
        (
            "lambda-runtime-aws-request-id",
            Some(event.request_id.as_str()),
        ),
        ("lambda-runtime-deadline-ms", Some(deadline_text.as_str())),
        (
            "lambda-runtime-invoked-function-arn",
            Some(event.function_arn.as_str()),
        ),
        ("lambda-runtime-trace-id", Some(event.trace_id.as_str())),
        (
            "lambda-runtime-client-context",
            event.client_context.as_deref(),
        ),
    ];
    for (name, text) in texts {
        if let Some(value) = text
            .filter(|text| !text.is_empty())
            .and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok())
        {
            headers.push((name, value));
        }
    }
    if event.rehearsal {
        headers.push((REHEARSAL, HeaderValue::from_static("1")));
    }
    headers
}
