//! Instances that can be named.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use rouse_node::instances::fork::Asked;
use rouse_node::{InstanceId, Node, Refusal};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::errors::Refused;
use crate::extract::{self, Target};

/// The instance that the path names.
pub struct Named(InstanceId);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(name)| name.parse().ok());
        id.map(Named).ok_or_else(|| {
            Refused(Refusal::InvalidParameterValue(
                "An instance is named by i- and 16 hexadecimal digits.".into(),
            ))
        })
    }
}

/// Body of `start` and `fork`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wish {
    /// How many.
    count: u32,
    /// Seconds that each is held without an event.
    keep_alive_s: Option<u64>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            count: 1,
            keep_alive_s: None,
        }
    }
}

async fn wish(body: Body) -> Result<Asked, Refused> {
    let Wish {
        count,
        keep_alive_s,
    } = extract::json(body).await?;
    Ok(Asked {
        count,
        keep_alive_s,
    })
}

pub async fn list(State(node): State<Arc<Node>>) -> Result<Json<Value>, Refused> {
    Ok(Json(json!({ "instances": written(&node.instances())? })))
}

pub async fn one(State(node): State<Arc<Node>>, Named(id): Named) -> Result<Json<Value>, Refused> {
    Ok(Json(written(&node.instance(id)?)?))
}

pub async fn start(
    State(node): State<Arc<Node>>,
    Target(target): Target,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let started = node.start_instances(&target, wish(body).await?).await?;
    Ok(Json(json!({ "instances": written(&started)? })))
}

pub async fn fork(
    State(node): State<Arc<Node>>,
    Named(id): Named,
    body: Body,
) -> Result<Json<Value>, Refused> {
    let forked = node.fork_instance(id, wish(body).await?).await?;
    Ok(Json(written(&forked)?))
}

pub async fn end(State(node): State<Arc<Node>>, Named(id): Named) -> Result<StatusCode, Refused> {
    node.end_instance(id)?;
    Ok(StatusCode::NO_CONTENT)
}

fn written(value: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value)
        .map_err(|error| Refusal::Service(format!("The answer could not be written: {error}")))
}
