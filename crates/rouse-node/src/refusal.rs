//! The errors that a caller of the Lambda API can see, with Lambda's names, statuses and texts.

use crate::engine::admission::{NotAdmitted, Throttle};

/// Why a request was refused. Each variant is an exception of the Lambda API model.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// 404.
    #[error("{0}")]
    ResourceNotFound(String),
    /// 409.
    #[error("{0}")]
    ResourceConflict(String),
    /// 400.
    #[error("{0}")]
    InvalidParameterValue(String),
    /// 400: a member does not match the API's model.
    #[error("{0}")]
    Validation(String),
    /// 400: the body is not what it should be.
    #[error("{0}")]
    InvalidRequestContent(String),
    /// 404.
    #[error("No Provisioned Concurrency Config found for this function")]
    ProvisionedConcurrencyConfigNotFound,
    /// 412: the revision is another one.
    #[error(
        "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to retrieve the latest Revision Id"
    )]
    PreconditionFailed,
    /// 413.
    #[error("{0}")]
    RequestTooLarge(String),
    /// 429.
    #[error("Rate Exceeded.")]
    TooManyRequests(Throttle),
    /// 429: instances that were asked for by number are too many.
    #[error("{0}")]
    TooManyInstances(String),
    /// 503.
    #[error("The node is being stopped.")]
    Stopping,
    /// 409: a boot path was demanded that needs a snapshot, and there is none.
    #[error("{0}")]
    SnapStartNotReady(String),
    /// 502: the platform could not start the function.
    #[error("{0}")]
    ResourceNotReady(String),
    /// 500.
    #[error("{0}")]
    Service(String),
}

impl From<NotAdmitted> for Refusal {
    fn from(reason: NotAdmitted) -> Self {
        match reason {
            NotAdmitted::Throttled(throttle) => Refusal::TooManyRequests(throttle),
            NotAdmitted::Closed => Refusal::Stopping,
        }
    }
}

impl Refusal {
    /// Name of the exception, as in `x-amzn-ErrorType`.
    pub fn error_type(&self) -> &'static str {
        match self {
            Refusal::ResourceNotFound(_) => "ResourceNotFoundException",
            Refusal::ProvisionedConcurrencyConfigNotFound => {
                "ProvisionedConcurrencyConfigNotFoundException"
            }
            Refusal::ResourceConflict(_) => "ResourceConflictException",
            Refusal::InvalidParameterValue(_) => "InvalidParameterValueException",
            Refusal::Validation(_) => "ValidationException",
            Refusal::InvalidRequestContent(_) => "InvalidRequestContentException",
            Refusal::PreconditionFailed => "PreconditionFailedException",
            Refusal::RequestTooLarge(_) => "RequestTooLargeException",
            Refusal::TooManyRequests(_) | Refusal::TooManyInstances(_) => {
                "TooManyRequestsException"
            }
            Refusal::Stopping => "ServiceUnavailableException",
            Refusal::SnapStartNotReady(_) => "SnapStartNotReadyException",
            Refusal::ResourceNotReady(_) => "ResourceNotReadyException",
            Refusal::Service(_) => "ServiceException",
        }
    }

    /// HTTP status.
    pub fn status(&self) -> u16 {
        match self {
            Refusal::ResourceNotFound(_) | Refusal::ProvisionedConcurrencyConfigNotFound => 404,
            Refusal::ResourceConflict(_) | Refusal::SnapStartNotReady(_) => 409,
            Refusal::InvalidParameterValue(_)
            | Refusal::Validation(_)
            | Refusal::InvalidRequestContent(_) => 400,
            Refusal::PreconditionFailed => 412,
            Refusal::RequestTooLarge(_) => 413,
            Refusal::TooManyRequests(_) | Refusal::TooManyInstances(_) => 429,
            Refusal::ResourceNotReady(_) => 502,
            Refusal::Stopping => 503,
            Refusal::Service(_) => 500,
        }
    }

    /// `Type` of the error body: whose fault it is.
    pub fn fault(&self) -> &'static str {
        if self.status() < 500 {
            "User"
        } else {
            "Service"
        }
    }
}

/// The chain of an error's sources in one line, for people.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
