//! Traces of invocations, sent to an OpenTelemetry collector by OTLP over HTTP.
//!
//! Off unless there is an endpoint. An invocation that is over is put into a bounded queue, and dropped and counted when that
//! is full; a task makes spans of what is in the queue and sends them in batches. Requests never wait for any of it.

pub mod context;
pub mod ratio;
pub mod spans;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanExporter as _;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::config::NodeConfig;
use crate::refusal::chain;
use context::TraceContext;
use ratio::Ratio;
use spans::Finished;

/// Where traces go, and how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSettings {
    /// URL of the collector, with its path.
    pub endpoint: String,
    /// Which share of the requests is traced, of those whose caller has not decided it.
    pub ratio: Ratio,
}

/// It is no place to send traces to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a URL of a collector, such as http://127.0.0.1:4318/v1/traces; https is not spoken"
)]
pub struct NoEndpoint;

impl TraceSettings {
    /// Sends to the collector at this URL. Without a path it is the one that OTLP says.
    pub fn to(endpoint: &str, ratio: Ratio) -> Result<Self, NoEndpoint> {
        let uri: http::Uri = endpoint.parse().map_err(|_| NoEndpoint)?;
        if uri.scheme_str() != Some("http") || uri.authority().is_none() {
            return Err(NoEndpoint);
        }
        let endpoint = match uri.path() {
            "/" => format!("{}/v1/traces", endpoint.trim_end_matches('/')),
            _ => endpoint.to_owned(),
        };
        Ok(Self { endpoint, ratio })
    }
}

/// Invocations that wait to be sent, at most.
const QUEUE: usize = 4096;
/// Invocations that are sent together, at most.
const BATCH: usize = 256;
/// How long the first of a batch waits for others.
const GATHER: Duration = Duration::from_millis(500);
/// How long a collector may take, tries again included.
const PATIENCE: Duration = Duration::from_secs(10);

/// A request that is traced.
#[derive(Debug, Clone, Copy)]
pub struct Trace {
    /// Its span.
    pub context: TraceContext,
    /// Of the span above it.
    pub parent: Option<u64>,
}

/// What has become of traced invocations.
#[derive(Debug, Default)]
pub struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
}

impl Counts {
    /// Invocations whose spans a collector has taken.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Invocations whose spans were lost: the queue was full, or no collector took them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

enum Order {
    Send(Box<Finished>),
    /// Say when everything before has been sent.
    Flush(oneshot::Sender<()>),
}

/// The way to the collector.
#[derive(Debug)]
pub struct Traces {
    ratio: Ratio,
    orders: mpsc::Sender<Order>,
    /// What has become of them.
    pub counts: Arc<Counts>,
}

impl Traces {
    /// Starts the task that sends. Must be called inside a Tokio runtime.
    pub fn start(settings: &TraceSettings, node: &NodeConfig) -> Result<Self, ExporterBuildError> {
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(&settings.endpoint)
            .with_timeout(PATIENCE)
            .build()?;
        let attributes = [
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
            KeyValue::new("cloud.region", node.region.clone()),
            KeyValue::new("cloud.account.id", node.account.clone()),
        ];
        let resource = Resource::builder_empty()
            .with_service_name("rouse")
            .with_attributes(attributes);
        exporter.set_resource(&resource.build());
        let (orders, receiver) = mpsc::channel(QUEUE);
        let counts = Arc::new(Counts::default());
        tokio::spawn(run(exporter, receiver, Arc::clone(&counts)));
        Ok(Self {
            ratio: settings.ratio,
            orders,
            counts,
        })
    }

    /// The span of a request that came with `parent`.
    pub fn begin(&self, parent: Option<TraceContext>) -> Trace {
        let mut context = parent.map_or_else(TraceContext::root, TraceContext::child);
        context.is_sampled = context
            .is_sampled
            .or_else(|| Some(self.ratio.has(context.trace)));
        Trace {
            context,
            parent: parent.map(|parent| parent.span),
        }
    }

    /// Takes an invocation that is over. Never waits.
    pub fn send(&self, finished: Box<Finished>) {
        if self.orders.try_send(Order::Send(finished)).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until what was taken has been sent, or given up.
    pub async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        if self.orders.send(Order::Flush(done)).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

async fn run(exporter: SpanExporter, mut orders: mpsc::Receiver<Order>, counts: Arc<Counts>) {
    let mut is_failing = false;
    loop {
        let (batch, flush) = next_batch(&mut orders).await;
        if !batch.is_empty() {
            let invocations = batch.len() as u64;
            let spans = batch.iter().flat_map(|finished| finished.spans());
            match exporter.export(spans.collect()).await {
                Ok(()) => {
                    is_failing = false;
                    counts.sent.fetch_add(invocations, Ordering::Relaxed);
                }
                Err(error) => {
                    counts.dropped.fetch_add(invocations, Ordering::Relaxed);
                    // Once, until it works again.
                    if !std::mem::replace(&mut is_failing, true) {
                        let error = chain(&error);
                        tracing::warn!(error, "traces are lost: the collector does not take them");
                    }
                }
            }
        }
        match flush {
            Flush::No => {}
            Flush::Asked(done) => {
                // Who asked may have gone.
                let _ = done.send(());
            }
            Flush::End => return,
        }
    }
}

enum Flush {
    No,
    Asked(oneshot::Sender<()>),
    End,
}

/// Waits for the first, and a little for others.
async fn next_batch(orders: &mut mpsc::Receiver<Order>) -> (Vec<Box<Finished>>, Flush) {
    let mut batch = Vec::new();
    match orders.recv().await {
        Some(Order::Send(first)) => batch.push(first),
        Some(Order::Flush(done)) => return (batch, Flush::Asked(done)),
        None => return (batch, Flush::End),
    }
    let end = tokio::time::Instant::now() + GATHER;
    while batch.len() < BATCH {
        match tokio::time::timeout_at(end, orders.recv()).await {
            Ok(Some(Order::Send(next))) => batch.push(next),
            Ok(Some(Order::Flush(done))) => return (batch, Flush::Asked(done)),
            Ok(None) => return (batch, Flush::End),
            Err(_late) => break,
        }
    }
    (batch, Flush::No)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url() {
        let to = |text| TraceSettings::to(text, Ratio::ALL).map(|settings| settings.endpoint);
        for text in ["http://127.0.0.1:4318", "http://127.0.0.1:4318/"] {
            assert_eq!(to(text).as_deref(), Ok("http://127.0.0.1:4318/v1/traces"));
        }
        assert_eq!(to("http://a/b").as_deref(), Ok("http://a/b"));
        for wrong in ["", "127.0.0.1:4318", "https://a", "/v1/traces", "http://"] {
            assert_eq!(to(wrong), Err(NoEndpoint), "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_full_queue_loses_and_counts() {
        let (orders, _receiver) = mpsc::channel(1);
        let traces = Traces {
            ratio: Ratio::ALL,
            orders,
            counts: Arc::default(),
        };
        let trace = traces.begin(None);
        assert_eq!((trace.parent, trace.context.is_sampled), (None, Some(true)));
        let now = std::time::Instant::now();
        for lost in [0, 1, 2] {
            traces.send(Box::new(Finished {
                context: trace.context,
                parent: None,
                function: "f".into(),
                version: "1".into(),
                arn: "arn".into(),
                request_id: "id".into(),
                path: rouse_process::instance::BootPath::Warm,
                error: None,
                ended: std::time::SystemTime::now(),
                moments: [now; 4],
                boot: Vec::new(),
            }));
            assert_eq!(traces.counts.dropped(), lost);
        }
    }
}
