//! The control plane's operations.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::HOST;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use rouse_node::control::Page;
use rouse_node::{Node, Refusal};
use serde_json::{Value, json};

use crate::configuration::configuration;
use crate::errors::Refused;
use crate::extract::{self, Parameters, Target};

type Result<T> = std::result::Result<T, Refused>;

pub async fn create(State(node): State<Arc<Node>>, body: Body) -> Result<Response> {
    let record = node.create_function(extract::json(body).await?).await?;
    Ok((
        StatusCode::CREATED,
        Json(configuration(&node, &record, None)),
    )
        .into_response())
}

pub async fn get(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    headers: HeaderMap,
) -> Result<Json<Value>> {
    let record = node.get_function(&target)?;
    let host = headers
        .get(HOST)
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost");
    let mut value = json!({
        "Configuration": configuration(&node, &record, target.qualifier.as_deref()),
        "Code": {
            "RepositoryType": "S3",
            "Location": format!("http://{host}/rouse/v1/packages/{}", record.code.sha256_hex),
        },
    });
    if !record.settings.tags.is_empty() {
        value["Tags"] = json!(record.settings.tags);
    }
    if let Some(reserved) = node.reserved_concurrency(&target)? {
        value["Concurrency"] = json!({ "ReservedConcurrentExecutions": reserved });
    }
    Ok(Json(value))
}

pub async fn get_configuration(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>> {
    let record = node.get_function(&target)?;
    Ok(Json(configuration(
        &node,
        &record,
        target.qualifier.as_deref(),
    )))
}

pub async fn update_code(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>> {
    let record = node
        .update_code(&target, extract::json(body).await?)
        .await?;
    Ok(Json(configuration(&node, &record, None)))
}

pub async fn update_configuration(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>> {
    let record = node
        .update_configuration(&target, extract::json(body).await?)
        .await?;
    Ok(Json(configuration(&node, &record, None)))
}

pub async fn publish_version(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Response> {
    let record = node
        .publish_version(&target, extract::json(body).await?)
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(configuration(&node, &record, None)),
    )
        .into_response())
}

pub async fn delete(State(node): State<Arc<Node>>, Target(target): Target) -> Result<StatusCode> {
    node.delete_function(&target).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn list(State(node): State<Arc<Node>>, query: Parameters) -> Result<Json<Value>> {
    let all = match query.get("FunctionVersion") {
        None => false,
        Some("ALL") => true,
        Some(other) => {
            return Err(Refused(Refusal::Validation(format!(
                "1 validation error detected: Value '{other}' at 'functionVersion' failed to satisfy constraint: Member must satisfy enum value set: [ALL]"
            ))));
        }
    };
    let page = node.list_functions(query.get("Marker"), query.count("MaxItems", 10_000)?, all)?;
    // Every version is listed with its qualified ARN.
    Ok(Json(listing(&node, "Functions", &page, all)))
}

pub async fn list_versions(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    query: Parameters,
) -> Result<Json<Value>> {
    let page = node.list_versions(
        &target,
        query.get("Marker"),
        query.count("MaxItems", 10_000)?,
    )?;
    Ok(Json(listing(&node, "Versions", &page, true)))
}

fn listing(node: &Node, member: &str, page: &Page, qualified: bool) -> Value {
    let items: Vec<Value> = page
        .functions
        .iter()
        .map(|record| configuration(node, record, qualified.then_some(record.version.as_str())))
        .collect();
    let mut value = json!({ member: items });
    if let (Value::Object(members), Some(marker)) = (&mut value, &page.next_marker) {
        members.insert("NextMarker".into(), json!(marker));
    }
    value
}

pub async fn account_settings(State(node): State<Arc<Node>>) -> Result<Json<Value>> {
    let config = node.config();
    let usage = node.usage();
    let unreserved = config
        .max_concurrency
        .saturating_sub(node.all_reserved_concurrency() as usize);
    Ok(Json(json!({
        "AccountLimit": {
            "TotalCodeSize": 80_530_636_800_u64,
            "CodeSizeUnzipped": config.max_unzipped_bytes,
            "CodeSizeZipped": config.max_zip_bytes,
            "ConcurrentExecutions": config.max_concurrency,
            "UnreservedConcurrentExecutions": unreserved,
        },
        "AccountUsage": { "TotalCodeSize": usage.code_bytes, "FunctionCount": usage.functions },
    })))
}

/// No function has one; Terraform asks.
pub async fn code_signing(
    State(node): State<Arc<Node>>,
    Target(target): Target,
) -> Result<Json<Value>> {
    let record = node.get_function(&target)?;
    Ok(Json(json!({ "FunctionName": record.name })))
}
