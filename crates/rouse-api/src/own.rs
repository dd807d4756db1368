//! rouse's own routes: health, descriptions, logs, packages.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use rouse_node::metrics::prometheus;
use rouse_node::{Node, Refusal, SnapshotPointSettings};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::configuration::configuration;
use crate::errors::Refused;
use crate::extract::{self, Parameters, Target};

/// Most lines of a log in one answer.
const MAX_LINES: usize = 100_000;

/// The process runs.
pub async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The node takes requests, or says why not. Snapshots may still be loading: their functions are served cold meanwhile.
pub async fn ready(State(node): State<Arc<Node>>) -> Response {
    let usage = node.usage();
    let reasons = node.obstacles().await;
    let (code, status) = match reasons.is_empty() {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let body = json!({
        "status": status,
        "reasons": reasons,
        "functions": usage.functions,
        "snapshots_pending": usage.snapshots_pending,
    });
    (code, Json(body)).into_response()
}

/// What the node counts and holds, in Prometheus' text format.
pub async fn metrics(State(node): State<Arc<Node>>) -> Result<Response, Refused> {
    let is_ready = node.obstacles().await.is_empty();
    let text = prometheus::text(node.report().await?, is_ready)
        .map_err(|error| Refusal::Service(format!("The metrics could not be written: {error}")))?;
    Ok(([(CONTENT_TYPE, prometheus::CONTENT_TYPE)], text).into_response())
}

/// The same for programs that show it, such as `rouse top`.
pub async fn report(State(node): State<Arc<Node>>) -> Result<Json<Value>, Refused> {
    let value = serde_json::to_value(node.report().await?)
        .map_err(|error| Refusal::Service(format!("The report could not be written: {error}")))?;
    Ok(Json(value))
}

pub async fn describe(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>, Refused> {
    let description = node.describe(&target)?;
    let mut value = serde_json::to_value(&description).map_err(|error| {
        Refusal::Service(format!("The description could not be written: {error}"))
    })?;
    if let Value::Object(members) = &mut value {
        members.insert(
            "configuration".into(),
            configuration(&node, &description.record, target.qualifier.as_deref()),
        );
    }
    Ok(Json(value))
}

pub async fn memory(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>, Refused> {
    let report = node.describe_memory(&target).await?;
    let value = serde_json::to_value(&report)
        .map_err(|error| Refusal::Service(format!("The report could not be written: {error}")))?;
    Ok(Json(value))
}

/// Body of a rollback.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Rollback {
    /// Version to go back to; the newest before the current one if missing.
    version: Option<u64>,
}

pub async fn snapshots(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>, Refused> {
    let value = serde_json::to_value(node.snapshots(&target)?)
        .map_err(|error| Refusal::Service(format!("The list could not be written: {error}")))?;
    Ok(Json(value))
}

pub async fn set_snapshot_point(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let point: SnapshotPointSettings = extract::json(body).await?;
    let version = node.set_snapshot_point(&target, point).await?;
    Ok(Json(json!({ "version": version })))
}

pub async fn rollback(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let asked: Rollback = extract::json(body).await?;
    let version = node.rollback(&target, asked.version).await?;
    Ok(Json(json!({ "version": version })))
}

pub async fn tiers(State(node): State<Arc<Node>>) -> Result<Json<Value>, Refused> {
    let report = node.tiers().await?;
    let value = serde_json::to_value(&report)
        .map_err(|error| Refusal::Service(format!("The report could not be written: {error}")))?;
    Ok(Json(value))
}

pub async fn logs(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    query: Parameters,
) -> Result<Response, Refused> {
    let lines = query.count("tail", MAX_LINES)?.unwrap_or(100);
    let bytes = node.logs(&target, lines).await?;
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], bytes).into_response())
}

pub async fn package(
    State(node): State<Arc<Node>>,
    Path(sha256): Path<String>,
) -> Result<Response, Refused> {
    let missing = || Refusal::ResourceNotFound(format!("Package not found: {sha256}"));
    let path = node.package(&sha256).ok_or_else(missing)?;
    let bytes = tokio::fs::read(path).await.map_err(|_| missing())?;
    Ok(([(CONTENT_TYPE, "application/zip")], bytes).into_response())
}
