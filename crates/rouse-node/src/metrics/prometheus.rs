//! A [`NodeReport`] in Prometheus' text format.
//!
//! Names follow Prometheus' conventions: `rouse_`, base units, `_total` for what only grows (which the encoder appends).

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::encoding::{EncodeCounterValue, EncodeGaugeValue, prometheus_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::histogram::Distribution;
use super::process::ProcessUse;
use super::report::{FlowReport, FunctionReport, NodeReport, PagerReport, TallyReport};
use crate::describe::Instances;

/// The `Content-Type` of the text.
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// In place of the names of functions that have no series of their own.
pub const OTHER: &str = "other";

/// The report as text. `obstacles`: why the node is not ready, if so.
///
/// # Errors
/// None: writing to a string cannot fail, but the encoder's signature says so.
pub fn text(report: NodeReport, is_ready: bool) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(OfProcess(report.process)));
    registry
        .sub_registry_with_prefix("rouse")
        .register_collector(Box::new(OfNode { report, is_ready }));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Writes metrics one after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            let mut row = metric.encode_family(&labels)?;
            row.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        metric.encode_gauge(&value)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histograms<'d, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, &'d Distribution)>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, times) in rows {
            let mut row = metric.encode_family(&labels)?;
            row.encode_histogram::<NoLabelSet>(times.sum_s, times.count(), &times.coarse(), None)?;
        }
        Ok(())
    }
}

/// Functions as they are told apart in series.
struct Series<'a> {
    function: &'a str,
    version: &'a str,
    tally: &'a TallyReport,
    instances: Instances,
    requests: Option<FlowReport>,
}

/// Those that have series of their own, and all others as one.
fn series(report: &NodeReport) -> Vec<Series<'_>> {
    let mut series = Vec::new();
    let mut instances = Instances::default();
    let mut requests = FlowReport::default();
    for one in &report.functions {
        match one.is_labelled {
            true => series.push(Series::of(one)),
            false => {
                instances.busy += one.instances.busy;
                instances.idle += one.instances.idle;
                instances.parked += one.instances.parked;
                instances.held += one.instances.held;
                let flow = one.requests.unwrap_or_default();
                requests.waiting += flow.waiting;
                requests.running += flow.running;
            }
        }
    }
    if let Some(tally) = &report.other {
        series.push(Series {
            function: OTHER,
            version: OTHER,
            tally,
            instances,
            requests: Some(requests),
        });
    }
    series
}

impl<'a> Series<'a> {
    fn of(function: &'a FunctionReport) -> Self {
        Self {
            function: &function.name,
            version: &function.version,
            tally: &function.tally,
            instances: function.instances,
            requests: function.requests,
        }
    }

    fn labels(&self) -> [(&'static str, &'a str); 2] {
        [("function", self.function), ("version", self.version)]
    }

    fn with<'l>(&self, name: &'static str, value: &'l str) -> [(&'static str, &'l str); 3]
    where
        'a: 'l,
    {
        let [function, version] = self.labels();
        [function, version, (name, value)]
    }
}

#[derive(Debug)]
struct OfNode {
    report: NodeReport,
    is_ready: bool,
}

impl Collector for OfNode {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let writer = &mut Writer(encoder);
        let report = &self.report;
        writer.gauges(
            "build_info",
            "Version of rouse; the value is always 1",
            [([("version", report.version)], 1)],
        )?;
        writer.gauge(
            "ready",
            "1 when the node is ready as /readyz says it, else 0",
            u64::from(self.is_ready),
        )?;
        of_functions(writer, &series(report))?;
        of_serving(writer, report)?;
        of_memory(writer, report)?;
        match &report.pager {
            Some(pager) => of_pager(writer, pager),
            None => Ok(()),
        }
    }
}

fn of_functions(writer: &mut Writer<'_>, series: &[Series<'_>]) -> fmt::Result {
    writer.counters(
        "invocations",
        "Invocations that were let in",
        series.iter().map(|s| (s.labels(), s.tally.invocations)),
    )?;
    let by_path = series.iter().flat_map(|s| {
        let boots = s.tally.boots.iter();
        boots.map(|(path, count)| (s.with("path", path), *count))
    });
    writer.counters(
        "boots",
        "Invocations that were answered, by the boot path that they took",
        by_path,
    )?;
    let by_kind = series.iter().flat_map(|s| {
        let errors = s.tally.errors.iter();
        errors.map(|(kind, count)| (s.with("kind", kind), *count))
    });
    writer.counters(
        "invocation_errors",
        "Invocations that ended with a function error, by who or what ended them",
        by_kind,
    )?;
    writer.counters(
        "throttles",
        "Requests that were answered 429",
        series.iter().map(|s| (s.labels(), s.tally.throttles)),
    )?;
    writer.histograms(
        "invocation_duration_seconds",
        "Time from the request to the answer, by function",
        series.iter().map(|s| (s.labels(), &s.tally.duration)),
    )?;
    let instances = series.iter().flat_map(|s| {
        [
            ("busy", s.instances.busy),
            ("idle", s.instances.idle),
            ("parked", s.instances.parked),
            ("held", s.instances.held),
        ]
        .map(|(state, count)| (s.with("state", state), count as u64))
    });
    writer.gauges("instances", "Instances that exist, by state", instances)?;
    let requests = series
        .iter()
        .filter_map(|s| Some((s.function, s.requests?)));
    let requests = requests.flat_map(|(function, flow)| {
        [("waiting", flow.waiting), ("running", flow.running)]
            .map(|(state, count)| ([("function", function), ("state", state)], count))
    });
    writer.gauges(
        "requests",
        "Requests in the queue, and requests that start or run, of all versions of a function",
        requests,
    )
}

fn of_serving(writer: &mut Writer<'_>, report: &NodeReport) -> fmt::Result {
    let stages = report.stages.iter();
    writer.histograms(
        "stage_duration_seconds",
        "Time that the stages of invocations take, by boot path",
        stages.map(|(path, stage, times)| ([("path", *path), ("stage", *stage)], times)),
    )?;
    writer.counters(
        "refusals",
        "Invocations that were refused, by the name of the error",
        labelled("error", &report.refusals),
    )?;
    writer.gauge(
        "requests_starting",
        "Requests whose instance is being started",
        report.requests.starting,
    )?;
    writer.gauge(
        "requests_limit",
        "Requests that may run at the same time",
        report.requests.limit,
    )?;
    writer.gauge(
        "async_events_pending",
        "Accepted asynchronous invocations that are not delivered yet",
        report.events_pending,
    )?;
    let traced = [
        ("sent", report.traces.sent),
        ("dropped", report.traces.dropped),
    ];
    writer.counters(
        "traced_invocations",
        "Invocations whose spans were sent to a collector, and those whose spans were lost",
        traced.map(|(result, count)| ([("result", result)], count)),
    )?;
    let sandboxes = &report.sandboxes;
    writer.gauge(
        "sandbox_pool_ready",
        "Sandboxes that are ready to be taken",
        sandboxes.ready,
    )?;
    writer.counter(
        "sandbox_pool_made",
        "Sandboxes that were made ahead",
        sandboxes.made,
    )?;
    writer.counter(
        "sandbox_pool_taken",
        "Sandboxes that were taken from those made ahead",
        sandboxes.taken,
    )?;
    writer.counter(
        "sandbox_pool_misses",
        "Times that no sandbox was ready and one was made while a request waited",
        sandboxes.missed,
    )
}

fn of_memory(writer: &mut Writer<'_>, report: &NodeReport) -> fmt::Result {
    writer.gauges(
        "snapshots",
        "Functions by what there is of their snapshot",
        labelled("state", &report.snapshots),
    )?;
    let tiers = || report.tiers.iter();
    writer.gauges(
        "tier_used_bytes",
        "Bytes of functions' pages in each tier",
        tiers().map(|(tier, held)| ([("tier", *tier)], held.used)),
    )?;
    writer.gauges(
        "tier_budget_bytes",
        "Bytes that a tier may hold; missing where there is no bound",
        tiers().filter_map(|(tier, held)| Some(([("tier", *tier)], held.budget?))),
    )?;
    writer.gauges(
        "tier_functions",
        "Functions whose pages belong to a tier",
        tiers().map(|(tier, held)| ([("tier", *tier)], held.functions)),
    )
}

fn of_pager(writer: &mut Writer<'_>, pager: &PagerReport) -> fmt::Result {
    writer.gauge(
        "pager_watched_processes",
        "Processes whose memory is filled when they touch it",
        pager.watched,
    )?;
    let filled = [
        ("fault", pager.demanded_pages),
        ("prefetch", pager.prefetched_pages),
    ];
    writer.counters(
        "pager_filled_pages",
        "Pages that were brought into memory, because somebody waited or ahead",
        filled.map(|(reason, pages)| ([("reason", reason)], pages)),
    )?;
    for (name, help, value) in [
        (
            "pager_faults",
            "Page faults that the pager took",
            pager.faults,
        ),
        (
            "pager_restarts",
            "Pagers that died and were started again",
            pager.restarts,
        ),
        (
            "pager_synthesized_pages",
            "Filled pages of one repeated byte, for which nothing was read",
            pager.synthesized_pages,
        ),
        (
            "pager_read_bytes",
            "Bytes that were read from packs",
            pager.read_bytes,
        ),
        (
            "pager_evicted_pages",
            "Pages that were taken out of memory",
            pager.evicted_pages,
        ),
        (
            "pager_damaged_pieces",
            "Pieces of snapshots that could not be read or verified",
            pager.damaged_pieces,
        ),
        (
            "pager_poisoned_pages",
            "Pages of instances that were made unusable because they could not be filled",
            pager.poisoned_pages,
        ),
        (
            "pager_shortages",
            "Times that there was no memory for a page that an instance waits for",
            pager.shortages,
        ),
    ] {
        writer.counter(name, help, value)?;
    }
    Ok(())
}

fn labelled<'a>(
    label: &'static str,
    counts: &'a BTreeMap<&'static str, u64>,
) -> impl Iterator<Item = ([(&'static str, &'static str); 1], u64)> + 'a {
    counts
        .iter()
        .map(move |(name, count)| ([(label, *name)], *count))
}

#[derive(Debug)]
struct OfProcess(ProcessUse);

impl Collector for OfProcess {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let writer = &mut Writer(encoder);
        let process = &self.0;
        writer.counter(
            "process_cpu_seconds",
            "Processor time of the node's own process, seconds",
            process.cpu_s,
        )?;
        writer.gauge(
            "process_resident_memory_bytes",
            "Resident memory of the node's own process, bytes",
            process.resident_bytes,
        )?;
        writer.gauge(
            "process_virtual_memory_bytes",
            "Address space of the node's own process, bytes",
            process.virtual_bytes,
        )?;
        writer.gauge(
            "process_threads",
            "Threads of the node's own process",
            process.threads,
        )?;
        writer.gauge(
            "process_open_fds",
            "Open file descriptors of the node's own process",
            process.open_fds,
        )?;
        writer.gauge(
            "process_start_time_seconds",
            "When the node was started, seconds since the epoch",
            process.start_time_s,
        )
    }
}
