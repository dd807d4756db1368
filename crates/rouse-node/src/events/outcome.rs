//! What a destination is told of an event that has ended, in Lambda's form.

use serde_json::{Value, json};

use super::MAX_EVENT;
use crate::engine::invoke::InvokeOutcome;
use crate::store::EventRecord;
use crate::time::rfc3339_ms;

/// How an event has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It was answered.
    Success,
    /// The last attempt has failed.
    RetriesExhausted,
    /// It was too old for another attempt.
    EventAgeExceeded,
}

impl Condition {
    /// As Lambda writes it.
    pub fn name(self) -> &'static str {
        match self {
            Condition::Success => "Success",
            Condition::RetriesExhausted => "RetriesExhausted",
            Condition::EventAgeExceeded => "EventAgeExceeded",
        }
    }
}

/// An event that has ended.
pub struct Ended<'a> {
    /// The event.
    pub event: &'a EventRecord,
    /// Its payload, JSON.
    pub payload: &'a [u8],
    /// ARN of the function, with its version.
    pub function_arn: String,
    /// How.
    pub condition: Condition,
    /// The last answer, if there was one.
    pub answer: Option<&'a InvokeOutcome>,
    /// Milliseconds since the epoch.
    pub now_ms: u64,
}

impl Ended<'_> {
    /// The invocation record, at most [`MAX_EVENT`] bytes: what is too large is left out, first of the answer.
    pub fn record(&self) -> Vec<u8> {
        let response = self.answer.map(|answer| answer.payload.as_ref());
        let whole = self.record_with(Some(self.payload), response);
        if whole.len() <= MAX_EVENT {
            return whole;
        }
        let less = self.record_with(Some(self.payload), None);
        if less.len() <= MAX_EVENT {
            return less;
        }
        self.record_with(None, None)
    }

    fn record_with(&self, request: Option<&[u8]>, response: Option<&[u8]>) -> Vec<u8> {
        let context = self.answer.map(|answer| {
            let mut context = json!({
                "statusCode": answer.status, "executedVersion": answer.executed_version,
            });
            if let Some(error) = answer.function_error {
                context["functionError"] = error.into();
            }
            context
        });
        let record = json!({
            "version": "1.0",
            "timestamp": rfc3339_ms(self.now_ms),
            "requestContext": {
                "requestId": self.event.request_id,
                "functionArn": self.function_arn,
                "condition": self.condition.name(),
                "approximateInvokeCount": self.event.attempts,
            },
            "requestPayload": parsed(request),
            "responseContext": context,
            "responsePayload": parsed(response),
        });
        record.to_string().into_bytes()
    }

    /// What a dead-letter queue gets: the event itself, and why it is there.
    pub fn dead_letter(&self) -> Vec<u8> {
        let text = |value: Value| json!({ "DataType": "String", "StringValue": value });
        let message = match self.answer {
            Some(answer) => String::from_utf8_lossy(&answer.payload).into_owned(),
            None => self.condition.name().to_owned(),
        };
        let letter = json!({
            "MessageBody": String::from_utf8_lossy(self.payload),
            "MessageAttributes": {
                "RequestID": text(self.event.request_id.clone().into()),
                "ErrorCode": text(self.answer.map_or(500, |answer| answer.status).to_string().into()),
                // As much of it as Lambda gives.
                "ErrorMessage": text(message.chars().take(1024).collect::<String>().into()),
            },
        });
        letter.to_string().into_bytes()
    }
}

/// Payloads were found to be JSON when they came; what is not, such as a function's answer in another form, is given as text.
fn parsed(bytes: Option<&[u8]>) -> Value {
    let Some(bytes) = bytes else {
        return Value::Null;
    };
    match serde_json::from_slice(bytes) {
        Ok(value) => value,
        Err(_) => String::from_utf8_lossy(bytes).into_owned().into(),
    }
}
