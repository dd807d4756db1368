//! From an invocation that is over to spans: one for it, and one for each of its stages.
//!
//! ```text
//! invocation |---------------------------------------------------------|
//! queue      |---|
//! start          |--------------------------------|
//! verify ...     |--|----|-----|---|---|---|                              the stages of the boot, below `start`
//! run                                             |--------------------|
//! ```

use std::time::{Duration, Instant, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use rouse_process::instance::{BootPath, Stage};

use super::context::{TraceContext, new_span};
use crate::metrics::counters::ErrorKind;

/// An invocation that is over.
#[derive(Debug)]
pub struct Finished {
    /// Its span.
    pub context: TraceContext,
    /// Of the span above it, if there is one.
    pub parent: Option<u64>,
    /// Name of the function.
    pub function: String,
    /// Version that ran.
    pub version: String,
    /// ARN of what was called.
    pub arn: String,
    /// Request id.
    pub request_id: String,
    /// Path that was taken.
    pub path: BootPath,
    /// How it failed, if so.
    pub error: Option<ErrorKind>,
    /// When it was over.
    pub ended: SystemTime,
    /// When the request came, when the launch began, when the function had the event, when it was over.
    pub moments: [Instant; 4],
    /// Stages of the boot.
    pub boot: Vec<Stage>,
}

/// The stage that lies beside the next one and not before it: an order is still being sent when the new process wakes.
const BESIDE: &str = "order";

impl Finished {
    /// Its spans, the invocation's own first.
    pub fn spans(&self) -> Vec<SpanData> {
        let [received, launched, delivered, done] = self.moments;
        let at = |moment: Instant| self.ended - done.saturating_duration_since(moment);
        let mut invocation = self.span(
            "invocation",
            self.context.span,
            self.parent.unwrap_or(0),
            (at(received), self.ended),
        );
        invocation.parent_span_is_remote = self.parent.is_some();
        invocation.span_kind = SpanKind::Server;
        invocation.attributes = self.attributes();
        if let Some(kind) = self.error {
            invocation.status = Status::error(kind.name());
        }
        let mut spans = vec![invocation];
        let mut below = |name, parent, times| {
            let id = new_span();
            spans.push(self.span(name, id, parent, times));
            id
        };
        below("queue", self.context.span, (at(received), at(launched)));
        let start = below("start", self.context.span, (at(launched), at(delivered)));
        let mut begin = at(launched);
        for stage in &self.boot {
            let end = begin + Duration::from_micros(stage.us);
            below(stage.name, start, (begin, end));
            if stage.name != BESIDE {
                begin = end;
            }
        }
        below("run", self.context.span, (at(delivered), self.ended));
        spans
    }

    /// In the words of OpenTelemetry's conventions for functions as a service.
    fn attributes(&self) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("faas.name", self.function.clone()),
            KeyValue::new("faas.version", self.version.clone()),
            KeyValue::new("faas.invocation_id", self.request_id.clone()),
            KeyValue::new("faas.trigger", "other"),
            KeyValue::new("faas.coldstart", self.path == BootPath::Cold),
            KeyValue::new("cloud.resource_id", self.arn.clone()),
            KeyValue::new("rouse.boot", self.path.name()),
        ];
        if let Some(kind) = self.error {
            attributes.push(KeyValue::new("error.type", kind.name()));
        }
        attributes
    }

    fn span(
        &self,
        name: &'static str,
        id: u64,
        parent: u64,
        (start_time, end_time): (SystemTime, SystemTime),
    ) -> SpanData {
        SpanData {
            span_context: SpanContext::new(
                TraceId::from(self.context.trace),
                SpanId::from(id),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time,
            end_time,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("rouse")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_lie_where_they_were() {
        let received = Instant::now();
        let after = |us| received + Duration::from_micros(us);
        let ended = SystemTime::now();
        let stage = |name, us| Stage { name, us };
        let finished = Finished {
            context: TraceContext::root(),
            parent: Some(7),
            function: "f".into(),
            version: "$LATEST".into(),
            arn: "arn".into(),
            request_id: "id".into(),
            path: BootPath::Fork,
            error: None,
            ended,
            moments: [received, after(10), after(500), after(900)],
            boot: vec![
                stage("sandbox", 100),
                stage("order", 30),
                stage("wake", 50),
                stage("map", 20),
            ],
        };
        let spans = finished.spans();
        let began = ended - Duration::from_micros(900);
        let us = |time: SystemTime| time.duration_since(began).unwrap().as_micros();
        let found: Vec<_> = spans
            .iter()
            .map(|span| (span.name.as_ref(), us(span.start_time), us(span.end_time)))
            .collect();
        assert_eq!(
            found,
            [
                ("invocation", 0, 900),
                ("queue", 0, 10),
                ("start", 10, 500),
                ("sandbox", 10, 110),
                ("order", 110, 140),
                ("wake", 110, 160),
                ("map", 160, 180),
                ("run", 500, 900),
            ]
        );
        assert_eq!(spans[0].parent_span_id, SpanId::from(7));
        let (invocation, start) = (&spans[0].span_context, &spans[2].span_context);
        for (span, parent) in [
            (1, invocation),
            (2, invocation),
            (3, start),
            (6, start),
            (7, invocation),
        ] {
            assert_eq!(
                spans[span].parent_span_id,
                parent.span_id(),
                "{}",
                spans[span].name
            );
        }
    }
}
