//! How functions are served: rouse's own operation, and Lambda's for reserved and provisioned concurrency.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use rouse_node::function::arn::function_arn;
use rouse_node::serving::control::Provisioned;
use rouse_node::time::lambda_timestamp;
use rouse_node::{Node, Refusal};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::errors::Refused;
use crate::extract::{self, Parameters, Target};

pub async fn set(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let patch: Value = extract::json(body).await?;
    let description = node.set_serving(&target, &patch).await?;
    let value = serde_json::to_value(&description)
        .map_err(|error| Refusal::Service(format!("The policy could not be written: {error}")))?;
    Ok(Json(value))
}

/// Body of PutFunctionConcurrency.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PutReserved {
    reserved_concurrent_executions: u32,
}

pub async fn put_reserved(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let asked: PutReserved = extract::json(body).await?;
    let reserved = asked.reserved_concurrent_executions;
    node.set_reserved_concurrency(&target, Some(reserved))
        .await?;
    Ok(Json(json!({ "ReservedConcurrentExecutions": reserved })))
}

/// Without a reservation an empty object, as in Lambda.
pub async fn get_reserved(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>, Refused> {
    Ok(Json(match node.reserved_concurrency(&target)? {
        Some(reserved) => json!({ "ReservedConcurrentExecutions": reserved }),
        None => json!({}),
    }))
}

pub async fn delete_reserved(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<StatusCode, Refused> {
    node.set_reserved_concurrency(&target, None).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Body of PutProvisionedConcurrencyConfig.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct PutProvisioned {
    provisioned_concurrent_executions: u32,
}

pub async fn put_provisioned(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Response, Refused> {
    let asked: PutProvisioned = extract::json(body).await?;
    let requested = asked.provisioned_concurrent_executions;
    let now = node.put_provisioned(&target, requested).await?;
    Ok((StatusCode::ACCEPTED, Json(provisioned(&now))).into_response())
}

pub async fn get_provisioned(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    query: Parameters,
) -> Result<Json<Value>, Refused> {
    if query.get("List") != Some("ALL") {
        return Ok(Json(provisioned(&node.get_provisioned(&target)?)));
    }
    let configs: Vec<Value> = node
        .list_provisioned(&target)?
        .iter()
        .map(|(record, now)| {
            let mut config = provisioned(now);
            let (here, version) = (node.config(), Some(record.version.as_str()));
            let arn = function_arn(&here.region, &here.account, &record.name, version);
            config["FunctionArn"] = arn.into();
            config
        })
        .collect();
    Ok(Json(json!({ "ProvisionedConcurrencyConfigs": configs })))
}

pub async fn delete_provisioned(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<StatusCode, Refused> {
    node.delete_provisioned(&target).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn provisioned(now: &Provisioned) -> Value {
    json!({
        "RequestedProvisionedConcurrentExecutions": now.requested,
        "AvailableProvisionedConcurrentExecutions": now.available,
        "AllocatedProvisionedConcurrentExecutions": now.available,
        "Status": if now.available < now.requested { "IN_PROGRESS" } else { "READY" },
        "LastModified": lambda_timestamp(now.last_modified_ms),
    })
}
