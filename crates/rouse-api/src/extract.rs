//! What handlers take from requests.

use std::collections::HashMap;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use rouse_node::{FunctionRef, Refusal};
use serde::de::DeserializeOwned;

use crate::errors::Refused;

/// Largest body of a control-plane request, bytes, as in Lambda's model.
const MAX_REQUEST: usize = 70_167_211;

/// The function that the path and the query's `Qualifier` name.
pub struct Target(pub FunctionRef);

impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        let Path(text): Path<String> = Path::from_request_parts(parts, state).await.map_err(|_| {
            Refusal::Validation("1 validation error detected: Value at 'functionName' failed to satisfy constraint: Member must be UTF-8".into())
        })?;
        let query = Parameters::from_request_parts(parts, state).await?;
        let target = FunctionRef::parse(&text)?.qualified(query.get("Qualifier"))?;
        Ok(Target(target))
    }
}

/// The query string.
pub struct Parameters(HashMap<String, String>);

impl Parameters {
    /// One of its values.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A number between 1 and `max`.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>, Refused> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(Refused(Refusal::Validation(format!(
                "1 validation error detected: Value '{text}' at '{name}' failed to satisfy constraint: Member must be an integer from 1 to {max}"
            )))),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refused> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(values)) => Ok(Parameters(values)),
            Err(error) => Err(Refused(Refusal::InvalidRequestContent(format!(
                "Could not parse the query string: {error}"
            )))),
        }
    }
}

/// Reads a body of at most `limit` bytes; `too_large` is said about a larger one.
pub async fn bytes(
    body: Body,
    limit: usize,
    too_large: impl FnOnce() -> Refusal,
) -> Result<Bytes, Refused> {
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        let too_long = std::error::Error::source(&error)
            .is_some_and(|source| source.to_string().contains("length limit"));
        Refused(if too_long {
            too_large()
        } else {
            Refusal::InvalidRequestContent(format!("Could not read the request body: {error}"))
        })
    })
}

/// Reads and parses a control-plane request. No body counts as `{}`.
pub async fn json<T: DeserializeOwned>(body: Body) -> Result<T, Refused> {
    let too_large =
        || Refusal::RequestTooLarge(format!("Request must be smaller than {MAX_REQUEST} bytes"));
    let bytes = bytes(body, MAX_REQUEST, too_large).await?;
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text).map_err(|error| {
        Refused(Refusal::InvalidRequestContent(format!(
            "Could not parse request body into json: {error}"
        )))
    })
}
