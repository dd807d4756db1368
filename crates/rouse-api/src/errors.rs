//! Errors in Lambda's shape.

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use rouse_node::Refusal;
use rouse_node::engine::admission::queue::Limit;

const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");

/// What handlers return instead of an answer.
#[derive(Debug)]
pub struct Refused(pub Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Refused(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let refusal = self.0;
        let status =
            StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = refusal.to_string();
        if let Refusal::TooManyRequests(throttle) = &refusal {
            let reason = match throttle.limit {
                Limit::Function => "ReservedFunctionConcurrentInvocationLimitExceeded",
                Limit::Node => "ConcurrentInvocationLimitExceeded",
            };
            let body = serde_json::json!({
                "Type": refusal.fault(), "Reason": reason, "Message": message, "message": message,
            });
            let mut response = with_body(status, refusal.error_type(), &body);
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(throttle.retry_after_s));
            return response;
        }
        let mut response = shaped(status, refusal.error_type(), refusal.fault(), &message);
        if refusal == Refusal::Stopping {
            // Another node, or this one after its restart.
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Any error, with the message under both names that clients look for.
pub fn shaped(
    status: StatusCode,
    error_type: &'static str,
    fault: &str,
    message: &str,
) -> Response {
    with_body(
        status,
        error_type,
        &serde_json::json!({ "Type": fault, "Message": message, "message": message }),
    )
}

fn with_body(status: StatusCode, error_type: &'static str, body: &serde_json::Value) -> Response {
    let mut response = (status, body.to_string()).into_response();
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
        .headers_mut()
        .insert(ERROR_TYPE, HeaderValue::from_static(error_type));
    response
}
