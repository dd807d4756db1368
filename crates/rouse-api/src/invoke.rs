//! Invoke, in its three types, and the old InvokeAsync.

use std::fmt::Write;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rouse_node::engine::invoke::MAX_PAYLOAD;
use rouse_node::traces::context::TraceContext;
use rouse_node::{
    BootPath, InstanceId, InvokeOptions, InvokeOutcome, MemoryUse, Node, Refusal, Stage,
};

use crate::errors::Refused;
use crate::extract::{self, Target};
use crate::routes::REQUEST_ID;

const INVOCATION_TYPE: &str = "x-amz-invocation-type";
const LOG_TYPE: &str = "x-amz-log-type";
const CLIENT_CONTEXT: &str = "x-amz-client-context";
const TRACE_ID: HeaderName = HeaderName::from_static("x-amzn-trace-id");
const TRACE_PARENT: &str = "traceparent";
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const BOOT: HeaderName = HeaderName::from_static("x-rouse-boot");
const INSTANCE: &str = "x-rouse-instance";
const MEASURE: &str = "x-rouse-measure";
const MEMORY: HeaderName = HeaderName::from_static("x-rouse-memory");

pub async fn invoke(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    let kind = text(&headers, INVOCATION_TYPE)?.unwrap_or("RequestResponse");
    let options = options(&headers)?;
    match kind {
        "RequestResponse" => {
            let payload = payload(body).await?;
            let outcome = node.invoke(&target, payload, &options).await?;
            Ok(answer(outcome))
        }
        "Event" => {
            let payload = payload(body).await?;
            if options.instance.is_some() {
                // It would be delivered again after the instance is gone.
                return Err(Refused(Refusal::InvalidParameterValue(
                    "An event that is only queued cannot name its instance.".into(),
                )));
            }
            let id = node
                .invoke_event(&target, payload, options.client_context)
                .await?;
            let mut response = StatusCode::ACCEPTED.into_response();
            put(response.headers_mut(), REQUEST_ID, &id);
            Ok(response)
        }
        "DryRun" => {
            node.dry_run(&target)?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        other => Err(Refused(Refusal::Validation(format!(
            "1 validation error detected: Value '{other}' at 'invocationType' failed to satisfy constraint: Member must satisfy enum value set: [Event, RequestResponse, DryRun]"
        )))),
    }
}

pub async fn invoke_async(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Response, Refused> {
    let id = node
        .invoke_event(&target, payload(body).await?, None)
        .await?;
    let mut response = (
        StatusCode::ACCEPTED,
        axum::Json(serde_json::json!({ "Status": 202 })),
    )
        .into_response();
    put(response.headers_mut(), REQUEST_ID, &id);
    Ok(response)
}

async fn payload(body: Body) -> Result<axum::body::Bytes, Refused> {
    extract::bytes(body, MAX_PAYLOAD, || {
        Refusal::RequestTooLarge(format!(
            "Request must be smaller than {MAX_PAYLOAD} bytes for the InvokeFunction operation"
        ))
    })
    .await
}

fn options(headers: &HeaderMap) -> Result<InvokeOptions, Refused> {
    let log_tail = match text(headers, LOG_TYPE)? {
        None | Some("None") => false,
        Some("Tail") => true,
        Some(other) => {
            return Err(Refused(Refusal::Validation(format!(
                "1 validation error detected: Value '{other}' at 'logType' failed to satisfy constraint: Member must satisfy enum value set: [None, Tail]"
            ))));
        }
    };
    let boot = match text(headers, BOOT.as_str())? {
        None => None,
        Some(name) => {
            let path = BootPath::ALL.into_iter().find(|path| path.name() == name);
            Some(path.ok_or_else(|| {
                Refusal::InvalidParameterValue(format!(
                    "{name:?} is no boot path; there are cold, restore, fork, parked, rewind and warm."
                ))
            })?)
        }
    };
    let instance = text(headers, INSTANCE)?
        .map(|name| {
            let id = name.parse::<InstanceId>();
            id.map_err(|error| Refusal::InvalidParameterValue(format!("{name:?}: {error}.")))
        })
        .transpose()?;
    if instance.is_some() && boot.is_some_and(|path| path != BootPath::Warm) {
        return Err(Refused(Refusal::InvalidParameterValue(
            "A request that names its instance can take no other boot path than warm.".into(),
        )));
    }
    let measure_memory = match text(headers, MEASURE)? {
        None => false,
        Some("memory") => true,
        Some(other) => {
            return Err(Refused(Refusal::InvalidParameterValue(format!(
                "{other:?} cannot be measured; memory can."
            ))));
        }
    };
    let client_context = text(headers, CLIENT_CONTEXT)?
        .map(client_context)
        .transpose()?;
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let amazon = header(TRACE_ID.as_str());
    let w3c = header(TRACE_PARENT).and_then(TraceContext::from_traceparent);
    let trace_id = amazon.map(str::to_owned);
    let trace_id = trace_id.or_else(|| w3c.map(|parent| parent.to_string()));
    let trace_parent = w3c.or_else(|| amazon.and_then(TraceContext::from_amazon));
    Ok(InvokeOptions {
        boot,
        log_tail,
        client_context,
        measure_memory,
        trace_id,
        trace_parent,
        request_id: None,
        instance,
    })
}

/// Base64 of a JSON object; in one line, because it travels in a header.
fn client_context(encoded: &str) -> Result<String, Refusal> {
    let bad = || {
        Refusal::InvalidRequestContent(
            "Client context must be a valid Base64-encoded JSON object.".into(),
        )
    };
    let bytes = STANDARD.decode(encoded).map_err(|_| bad())?;
    let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    if value.is_object() {
        Ok(value.to_string())
    } else {
        Err(bad())
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refused> {
    match headers.get(name) {
        None => Ok(None),
        Some(value) => match value.to_str() {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Refused(Refusal::InvalidParameterValue(format!(
                "The header {name} must be ASCII."
            )))),
        },
    }
}

fn answer(outcome: InvokeOutcome) -> Response {
    let status = StatusCode::from_u16(outcome.status).unwrap_or(StatusCode::OK);
    let mut response = Response::new(Body::from(outcome.payload));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(BOOT, HeaderValue::from_static(outcome.path.name()));
    put(headers, EXECUTED_VERSION, &outcome.executed_version);
    put(headers, REQUEST_ID, &outcome.request_id);
    put(headers, TRACE_ID, &outcome.trace_id);
    put(headers, SERVER_TIMING, &timing(&outcome.stages));
    if let Some(error) = outcome.function_error {
        headers.insert(FUNCTION_ERROR, HeaderValue::from_static(error));
    }
    if let Some(tail) = &outcome.log_tail {
        put(headers, LOG_RESULT, &STANDARD.encode(tail));
    }
    if let Some(memory) = &outcome.memory {
        put(headers, MEMORY, &measured(memory));
    }
    response
}

/// Leaves out what no header can carry.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// `queue;dur=0.012, sandbox;dur=0.051`, milliseconds.
fn timing(stages: &[Stage]) -> String {
    let mut text = String::with_capacity(stages.len() * 24);
    for stage in stages {
        let separator = if text.is_empty() { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "{separator}{};dur={}.{:03}",
            stage.name,
            stage.us / 1000,
            stage.us % 1000
        );
    }
    text
}

fn measured(memory: &MemoryUse) -> String {
    format!(
        "pss_kib={};uss_kib={};minor_faults={};shared_pages={};private_pages={};rss_kib={};major_faults={};peak_bytes={}",
        memory.pss_kib,
        memory.uss_kib,
        memory.minor_faults,
        memory.shared_pages,
        memory.private_pages,
        memory.rss_kib,
        memory.major_faults,
        memory.peak_bytes
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_written_in_milliseconds() {
        let stages = [
            Stage {
                name: "queue",
                us: 12,
            },
            Stage {
                name: "map",
                us: 1500,
            },
        ];
        assert_eq!(timing(&stages), "queue;dur=0.012, map;dur=1.500");
    }

    #[test]
    fn a_client_context_is_one_line_of_json() {
        assert_eq!(
            client_context(&STANDARD.encode("{\n\"a\": \"\u{e4}\"}")).unwrap(),
            "{\"a\":\"\u{e4}\"}"
        );
        assert!(client_context("!").is_err());
        assert!(client_context(&STANDARD.encode("[1]")).is_err());
    }
}
