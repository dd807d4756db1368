//! Which path leads to which handler.

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{from_fn, map_response};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use rouse_node::Node;

use crate::{control, errors, events, instances, invoke, own, serving, unread};

/// Carries the id of the request in every answer.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The whole API of a node, metrics included.
pub fn router(node: Arc<Node>) -> Router {
    finish(api().merge(health()).merge(metrics()), node)
}

/// All of it but the metrics, which are read elsewhere.
pub fn router_without_metrics(node: Arc<Node>) -> Router {
    finish(api().merge(health()), node)
}

/// Metrics and health, for an address that only operators reach.
pub fn metrics_router(node: Arc<Node>) -> Router {
    finish(health().merge(metrics()), node)
}

fn finish(routes: Router<Arc<Node>>, node: Arc<Node>) -> Router {
    routes
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(map_response(with_request_id))
        .layer(from_fn(unread::read_rest))
        // The handlers read bodies themselves, each with its own limit and Lambda's words.
        .layer(DefaultBodyLimit::disable())
        .with_state(node)
}

fn health() -> Router<Arc<Node>> {
    Router::new()
        .route("/healthz", get(own::health))
        .route("/readyz", get(own::ready))
}

fn metrics() -> Router<Arc<Node>> {
    Router::new().route("/metrics", get(own::metrics))
}

fn api() -> Router<Arc<Node>> {
    let functions = Router::new()
        .route("/", get(control::list).post(control::create))
        .route("/{function}", get(control::get).delete(control::delete))
        .route(
            "/{function}/configuration",
            get(control::get_configuration).put(control::update_configuration),
        )
        .route("/{function}/code", put(control::update_code))
        .route(
            "/{function}/versions",
            get(control::list_versions).post(control::publish_version),
        )
        .route("/{function}/invocations", post(invoke::invoke));
    Router::new()
        .nest("/2015-03-31/functions", functions)
        // boto3 writes a slash at the end of some, axum does not take one for nested roots.
        .route(
            "/2015-03-31/functions/",
            get(control::list).post(control::create),
        )
        .route(
            "/2014-11-13/functions/{function}/invoke-async",
            post(invoke::invoke_async),
        )
        .route(
            "/2014-11-13/functions/{function}/invoke-async/",
            post(invoke::invoke_async),
        )
        .route(
            "/2016-08-19/account-settings",
            get(control::account_settings),
        )
        .route(
            "/2016-08-19/account-settings/",
            get(control::account_settings),
        )
        .route(
            "/2019-09-30/functions/{function}/concurrency",
            get(serving::get_reserved),
        )
        .route(
            "/2017-10-31/functions/{function}/concurrency",
            put(serving::put_reserved).delete(serving::delete_reserved),
        )
        .route(
            "/2019-09-30/functions/{function}/provisioned-concurrency",
            get(serving::get_provisioned)
                .put(serving::put_provisioned)
                .delete(serving::delete_provisioned),
        )
        .route(
            "/2019-09-25/functions/{function}/event-invoke-config",
            get(events::get)
                .put(events::put)
                .post(events::update)
                .delete(events::delete),
        )
        .route(
            "/2019-09-25/functions/{function}/event-invoke-config/list",
            get(events::list),
        )
        .route(
            "/2020-06-30/functions/{function}/code-signing-config",
            get(control::code_signing),
        )
        .route("/rouse/v1/node", get(own::report))
        .route("/rouse/v1/functions/{function}", get(own::describe))
        .route("/rouse/v1/functions/{function}/logs", get(own::logs))
        .route("/rouse/v1/functions/{function}/memory", get(own::memory))
        .route("/rouse/v1/functions/{function}/serving", put(serving::set))
        .route(
            "/rouse/v1/functions/{function}/snapshots",
            get(own::snapshots),
        )
        .route(
            "/rouse/v1/functions/{function}/snapshot-point",
            put(own::set_snapshot_point),
        )
        .route(
            "/rouse/v1/functions/{function}/rollback",
            post(own::rollback),
        )
        .route(
            "/rouse/v1/functions/{function}/instances",
            post(instances::start),
        )
        .route("/rouse/v1/instances", get(instances::list))
        .route(
            "/rouse/v1/instances/{id}",
            get(instances::one).delete(instances::end),
        )
        .route("/rouse/v1/instances/{id}/fork", post(instances::fork))
        .route("/rouse/v1/tiers", get(own::tiers))
        .route("/rouse/v1/packages/{sha256}", get(own::package))
}

async fn unknown(method: Method, uri: Uri) -> Response {
    let message = format!(
        "Unable to determine service/operation name to be authorized: {method} {}",
        uri.path()
    );
    errors::shaped(
        StatusCode::NOT_FOUND,
        "UnknownOperationException",
        "User",
        &message,
    )
}

async fn with_request_id(mut response: Response) -> Response {
    if !response.headers().contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&uuid::Uuid::new_v4().to_string())
    {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response.into_response()
}
