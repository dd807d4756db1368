//! What is decided about asynchronous invocations: Lambda's EventInvokeConfig.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use rouse_node::Node;
use rouse_node::events::control::qualified_arn;
use rouse_node::events::policy::Destination;
use rouse_node::function::record::FunctionRecord;
use serde_json::{Value, json};

use crate::errors::Refused;
use crate::extract::{self, Target};

pub async fn put(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let asked = extract::json(body).await?;
    let record = node.put_event_policy(&target, asked, false).await?;
    Ok(Json(config(&node, &record)))
}

pub async fn update(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let asked = extract::json(body).await?;
    let record = node.put_event_policy(&target, asked, true).await?;
    Ok(Json(config(&node, &record)))
}

pub async fn get(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>, Refused> {
    let record = node.event_policy(&target)?;
    Ok(Json(config(&node, &record)))
}

pub async fn list(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>, Refused> {
    let records = node.list_event_policies(&target)?;
    let configs: Vec<Value> = records.iter().map(|record| config(&node, record)).collect();
    Ok(Json(json!({ "FunctionEventInvokeConfigs": configs })))
}

pub async fn delete(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<StatusCode, Refused> {
    node.delete_event_policy(&target).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn config(node: &Node, record: &FunctionRecord) -> Value {
    let policy = &record.events;
    let destination = |destination: &Option<Destination>| match destination {
        Some(destination) => json!({ "Destination": destination.arn() }),
        None => json!({}),
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "the present in milliseconds fits 52 bits"
    )]
    let modified = policy.modified_ms.unwrap_or(0) as f64 / 1000.0;
    let mut value = json!({
        "LastModified": modified,
        "FunctionArn": qualified_arn(node, record),
        "DestinationConfig": {
            "OnSuccess": destination(&policy.on_success), "OnFailure": destination(&policy.on_failure),
        },
    });
    if let Some(retries) = policy.retries {
        value["MaximumRetryAttempts"] = retries.into();
    }
    if let Some(age) = policy.max_age_s {
        value["MaximumEventAgeInSeconds"] = age.into();
    }
    value
}
