//! One invocation: the path of a request from the API to the function and back.
//!
//! Nothing in here touches the disk or takes a lock across an await. What can wait until the caller has its answer
//! (the log, the end of the instance) is done afterwards.

mod end;
mod named;
mod run;
mod tell;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rouse_process::instance::{BootPath, MemoryUse, Stage};
use serde::de::IgnoredAny;
use tokio::sync::OwnedRwLockReadGuard;
use uuid::Uuid;

use super::admission::{NotAdmitted, Permit, StartSlot};
use super::build::with_all_pages;
use super::function::{Function, ReadySnapshot, Revision, SnapshotStatus, function_of};
use crate::boot::BootError;
use crate::config::BootPolicy;
use crate::function::arn::{FunctionRef, function_arn};
use crate::function::record::State;
use crate::instances::InstanceId;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::runtime_api::session::Event;
use crate::serving::policy::OnDisconnect;
use crate::traces::Trace;
use crate::traces::context::TraceContext;

/// Largest payload of a synchronous invocation, bytes.
pub const MAX_PAYLOAD: usize = 6_291_456;

/// How to invoke.
#[derive(Debug, Clone, Default)]
pub struct InvokeOptions {
    /// A path that must be taken, or the invocation fails. `None` leaves it to the node.
    pub boot: Option<BootPath>,
    /// Give back the last 4 KiB of the log.
    pub log_tail: bool,
    /// JSON in one line.
    pub client_context: Option<String>,
    /// Measure the instance's memory after the answer.
    pub measure_memory: bool,
    /// `X-Amzn-Trace-Id` of the caller.
    pub trace_id: Option<String>,
    /// The caller's span.
    pub trace_parent: Option<TraceContext>,
    /// Request id that was given out before.
    pub request_id: Option<String>,
    /// The instance that is to answer, and no other.
    pub instance: Option<InstanceId>,
}

/// How an invocation went.
#[derive(Debug, Clone)]
pub struct InvokeOutcome {
    /// HTTP status: 200, also when the function failed.
    pub status: u16,
    /// The function's answer, or its error as JSON.
    pub payload: Bytes,
    /// `Unhandled` when the function failed.
    pub function_error: Option<&'static str>,
    /// Type of the function's error.
    pub error_type: Option<String>,
    /// Last 4 KiB of the log, if asked for.
    pub log_tail: Option<Vec<u8>>,
    /// Version that ran.
    pub executed_version: String,
    /// Path that was taken.
    pub path: BootPath,
    /// What took how long, in order: waiting in the node, the stages of the boot, start until delivery, the function.
    pub stages: Vec<Stage>,
    /// Request id.
    pub request_id: String,
    /// Trace id that the function saw.
    pub trace_id: String,
    /// Memory, if asked for.
    pub memory: Option<MemoryUse>,
}

/// Why a path did not work.
enum Problem {
    /// The platform's fault, on this path.
    Boot(BootError),
    /// A kept instance was dead before it got the event, or none was there any more.
    Stale,
    /// The snapshot is damaged, which was found when the function had the event already.
    Damaged(String),
    /// Far memory that the instance had mapped is lost, which was found when the function had the event already. The
    /// snapshot is as good as before.
    FarLost(String),
    /// There was no memory for pages of the snapshot, when the function had the event already.
    NoMemory(String),
}

impl Problem {
    fn boot(reason: impl Into<String>) -> Self {
        Self::Boot(BootError::new(reason))
    }
}

struct Request<'a> {
    function: &'a Arc<Function>,
    revision: Arc<Revision>,
    event: Event,
    options: &'a InvokeOptions,
    received: Instant,
    admitted: Instant,
    trace: Option<Trace>,
    permit: &'a Permit,
    /// The right to start an instance, until one has been started.
    start_slot: Mutex<Option<StartSlot>>,
    /// Keeps the pages that an instance needs to be started, until it has been.
    stay: Mutex<Stay>,
}

/// Pages of some snapshots stay in memory as long as this lives ([`LoadedImage::stays`](crate::boot::LoadedImage)).
type Stay = Vec<OwnedRwLockReadGuard<()>>;

impl Request<'_> {
    fn stay(&self) -> Stay {
        std::mem::take(&mut self.stay.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn start_slot(&self) -> Option<StartSlot> {
        let mut slot = self
            .start_slot
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        slot.take()
    }
}

impl Node {
    /// Invokes a function and waits for its answer. Dropping the future takes the request out of the queue, or ends its
    /// instance, unless the function's policy lets it finish.
    pub async fn invoke(
        self: &Arc<Self>,
        target: &FunctionRef,
        payload: Bytes,
        options: &InvokeOptions,
    ) -> Result<InvokeOutcome, Refusal> {
        let result = self.serve(target, payload, options).await;
        if let Err(refusal) = &result {
            self.metrics.refused(refusal);
        }
        result
    }

    async fn serve(
        self: &Arc<Self>,
        target: &FunctionRef,
        payload: Bytes,
        options: &InvokeOptions,
    ) -> Result<InvokeOutcome, Refusal> {
        let received = Instant::now();
        let function = self.find(target)?;
        self.invocable(&function)?;
        let payload = check_payload(payload, MAX_PAYLOAD)?;
        let patience = Duration::from_secs(self.config.queue_wait_s);
        let name = function_of(&function.key);
        let permit = self.gate.enter(name, patience).await.map_err(|reason| {
            if matches!(reason, NotAdmitted::Throttled(_)) {
                function.counters.throttled();
            }
            Refusal::from(reason)
        })?;
        if self.serving(&function).on_disconnect == OnDisconnect::End {
            return self
                .admitted(target, function, payload, options, permit, received)
                .await;
        }
        let (node, target, options) = (Arc::clone(self), target.clone(), options.clone());
        let task = tokio::spawn(async move {
            node.admitted(&target, function, payload, &options, permit, received)
                .await
        });
        task.await
            .unwrap_or_else(|error| Err(Refusal::Service(error.to_string())))
    }

    /// Runs a request that was let in. Dropping the future ends the instance.
    async fn admitted(
        self: &Arc<Self>,
        target: &FunctionRef,
        function: Arc<Function>,
        payload: Bytes,
        options: &InvokeOptions,
        permit: Permit,
        received: Instant,
    ) -> Result<InvokeOutcome, Refusal> {
        let admitted = Instant::now();
        // It may have been changed, or deleted, while this request waited.
        let revision = match self.get_by_key(&function.key) {
            Some(now) if Arc::ptr_eq(&now, &function) => match options.instance {
                Some(id) => self.named_revision(&function, id)?,
                None => self.invocable(&function)?,
            },
            _ => return Err(self.not_found(target)),
        };
        function.counters.began();
        function.heat.called(received);
        let _activity = function.activity();
        let trace = (self.traces.as_ref()).map(|traces| traces.begin(options.trace_parent));
        let event = self.event(target, &revision, payload, options, trace);
        let request = Request {
            function: &function,
            revision,
            event,
            options,
            received,
            admitted,
            trace,
            permit: &permit,
            start_slot: Mutex::new(Some(permit.start_slot())),
            stay: Mutex::default(),
        };
        if let Some(id) = options.instance {
            return self.on_named(&request, id).await;
        }
        match options.boot {
            Some(path) => self.demanded(&request, path).await,
            None => self.cheapest(&request).await,
        }
    }

    /// Checks what an invocation would check, and does not invoke.
    pub fn dry_run(&self, target: &FunctionRef) -> Result<(), Refusal> {
        let function = self.find(target)?;
        self.invocable(&function).map(drop)
    }

    /// The revision that invocations run; Lambda's error when there is none.
    pub(crate) fn invocable(&self, function: &Function) -> Result<Arc<Revision>, Refusal> {
        let state = match &function.record().state {
            State::Failed { .. } => "Failed",
            _ => match function.serving() {
                Some(revision) => return Ok(revision),
                None => "Pending",
            },
        };
        Err(Refusal::ResourceConflict(format!(
            "The operation cannot be performed at this time. The function is currently in the following state: {state}"
        )))
    }

    fn event(
        &self,
        target: &FunctionRef,
        revision: &Revision,
        payload: Bytes,
        options: &InvokeOptions,
        trace: Option<Trace>,
    ) -> Event {
        // Spans of the function belong below this invocation's.
        let traced = trace.map(|trace| trace.context.to_string());
        Event {
            request_id: options
                .request_id
                .clone()
                .unwrap_or_else(|| Uuid::new_v4().to_string()),
            function_arn: function_arn(
                &self.config.region,
                &self.config.account,
                &revision.record.name,
                target.qualifier.as_deref(),
            ),
            timeout: Duration::from_secs(u64::from(revision.record.settings.timeout_s)),
            trace_id: traced
                .or_else(|| options.trace_id.clone())
                .unwrap_or_else(new_trace_id),
            client_context: options.client_context.clone(),
            payload,
            rehearsal: false,
        }
    }

    /// Exactly the path that the caller wants, or an error that says why not.
    async fn demanded(
        self: &Arc<Self>,
        request: &Request<'_>,
        path: BootPath,
    ) -> Result<InvokeOutcome, Refusal> {
        let ready = match path {
            BootPath::Restore | BootPath::Fork | BootPath::Parked | BootPath::Rewind => {
                let found = self
                    .snapshot_to_invoke(request.function, &request.revision)
                    .await;
                Some(found.ok_or_else(|| no_snapshot(&request.revision))?)
            }
            BootPath::Cold | BootPath::Warm => None,
        };
        if path == BootPath::Fork
            && let Some(problem) = request.revision.fork_problem()
        {
            return Err(Refusal::SnapStartNotReady(format!(
                "The function cannot be forked. {problem}"
            )));
        }
        if let (Some(ready), BootPath::Fork | BootPath::Parked) = (&ready, path) {
            let stay = self.all_pages_of(ready).await.map_err(|error| {
                let what = match path {
                    BootPath::Fork => "forked",
                    _ => "parked",
                };
                Refusal::ResourceNotReady(format!("The function cannot be {what}: {error}"))
            })?;
            *request.stay.lock().unwrap_or_else(PoisonError::into_inner) = stay;
        }
        let image = ready
            .as_ref()
            .map(|ready| (ready.image.clone(), ready.record.point));
        match self.on_path(request, path, image, false).await {
            Ok(outcome) => Ok(outcome),
            Err(Problem::Damaged(problem)) => {
                if let Some(ready) = &ready {
                    let (function, revision) = (request.function, &request.revision);
                    self.condemn(function, revision, ready, problem.clone());
                }
                Err(damaged(&problem))
            }
            Err(Problem::FarLost(problem)) => Err(far_lost(&problem)),
            Err(Problem::Boot(error)) => match &ready {
                // It has not run: as good as if this had been known before.
                Some(ready) if ready.image.problem().is_some() => {
                    self.condemn_if_damaged(request, ready);
                    self.cheapest(request).await
                }
                _ => Err(Refusal::ResourceNotReady(format!(
                    "The function could not be started by {}: {error}",
                    path.name()
                ))),
            },
            Err(Problem::NoMemory(why)) => Err(no_memory(&why)),
            Err(Problem::Stale) => Err(Refusal::ResourceNotReady(
                "The idle instances of the function ended.".into(),
            )),
        }
    }

    /// Brings all pages of a snapshot into memory. They stay there, and those of its template, as long as what is returned
    /// lives: whoever asks for an instance that needs them gets one, and waits for it.
    async fn all_pages_of(&self, ready: &ReadySnapshot) -> Result<Stay, BootError> {
        let parent = ready.record.parent.as_deref();
        let templates = self.templates.loaded().into_iter();
        let ancestors = templates
            .filter(|template| Some(&*template.name) == parent)
            .flat_map(|template| template.ancestors());
        let mut stay = Stay::new();
        for image in ancestors.chain([ready.image.clone()]) {
            stay.push(image.stays.read_owned().await);
        }
        with_all_pages(&ready.image).await?;
        Ok(stay)
    }

    /// Takes the snapshot out of use if something is known to be wrong with it, and says whether.
    fn condemn_if_damaged(
        self: &Arc<Self>,
        request: &Request<'_>,
        snapshot: &Arc<ReadySnapshot>,
    ) -> bool {
        let Some(problem) = snapshot.image.problem() else {
            return false;
        };
        self.condemn(request.function, &request.revision, snapshot, problem);
        true
    }

    /// The cheapest path that works.
    async fn cheapest(self: &Arc<Self>, request: &Request<'_>) -> Result<InvokeOutcome, Refusal> {
        let snapshot = match self.config.boot {
            BootPolicy::Cold => None,
            _ => {
                self.snapshot_to_invoke(request.function, &request.revision)
                    .await
            }
        };
        let serving = self.serving(request.function);
        let keep = serving.isolation.reuses(snapshot.is_some());
        if keep {
            match self.on_idle(request).await {
                Ok(outcome) => return Ok(outcome),
                Err(Problem::Damaged(problem)) => {
                    if let Some(snapshot) = &snapshot {
                        let (function, revision) = (request.function, &request.revision);
                        self.condemn(function, revision, snapshot, problem.clone());
                    }
                    return Err(damaged(&problem));
                }
                Err(Problem::FarLost(problem)) => return Err(far_lost(&problem)),
                Err(Problem::NoMemory(why)) => return Err(no_memory(&why)),
                // None was there, or none that still works.
                Err(Problem::Stale | Problem::Boot(_)) => {}
            }
        }
        if let Some(snapshot) = snapshot {
            let fork = self.config.boot == BootPolicy::Fresh
                && request.revision.fork_problem().is_none()
                && !snapshot.image.prefers_restore()
                // Others come when they are touched, and templates cannot wait for them.
                && snapshot.image.is_resident();
            let parked = self.config.boot == BootPolicy::Fresh
                && snapshot.image.parked_count() > 0
                && !snapshot.image.prefers_restore();
            let rewound = self.config.rewind
                && snapshot.image.rewound_count() > 0
                && !snapshot.image.prefers_restore();
            let paths = [
                (rewound, BootPath::Rewind),
                (parked, BootPath::Parked),
                (fork, BootPath::Fork),
                (true, BootPath::Restore),
            ];
            for (_, path) in paths.iter().filter(|(is_possible, _)| *is_possible) {
                let image = Some((snapshot.image.clone(), snapshot.record.point));
                match self.on_path(request, *path, image, keep).await {
                    Ok(outcome) => return Ok(outcome),
                    Err(Problem::Boot(error)) => {
                        tracing::warn!(
                            function = request.function.key,
                            path = path.name(),
                            reason = error.reason,
                            "an instance did not start"
                        );
                        if self.condemn_if_damaged(request, &snapshot) {
                            // Each time there is one version less.
                            return Box::pin(self.cheapest(request)).await;
                        }
                        // The next path starts from the same snapshot, and says more if that is the reason.
                        if matches!(path, BootPath::Parked | BootPath::Rewind) {
                            continue;
                        }
                        // What was killed, or pages that were let go of at this moment, are not the snapshot's fault.
                        if !error.is_from_outside {
                            request.revision.failed(*path, &error.reason);
                            self.give_up(request.function, &request.revision, &snapshot);
                        }
                    }
                    Err(Problem::Damaged(problem)) => {
                        self.condemn(
                            request.function,
                            &request.revision,
                            &snapshot,
                            problem.clone(),
                        );
                        return Err(damaged(&problem));
                    }
                    Err(Problem::FarLost(problem)) => return Err(far_lost(&problem)),
                    Err(Problem::NoMemory(why)) => return Err(no_memory(&why)),
                    Err(Problem::Stale) => {}
                }
            }
        }
        // Without a snapshot, or without a working one: use an idle instance where that is allowed, else start from nothing.
        let (path, keep) = match serving.isolation.reuses(false) {
            true => (BootPath::Warm, true),
            false => (BootPath::Cold, false),
        };
        match self.on_path(request, path, None, keep).await {
            Ok(outcome) => Ok(outcome),
            Err(Problem::Boot(error)) => Err(Refusal::ResourceNotReady(format!(
                "The function could not be started: {error}"
            ))),
            Err(Problem::Damaged(problem)) => Err(damaged(&problem)),
            Err(Problem::FarLost(problem)) => Err(far_lost(&problem)),
            Err(Problem::NoMemory(why)) => Err(no_memory(&why)),
            Err(Problem::Stale) => Err(Refusal::ResourceNotReady(
                "The idle instances of the function ended.".into(),
            )),
        }
    }
}

fn no_memory(why: &str) -> Refusal {
    Refusal::Service(format!(
        "There was no memory for pages of the function's snapshot while it ran: {why}"
    ))
}

fn damaged(problem: &str) -> Refusal {
    Refusal::Service(format!(
        "The function's snapshot turned out to be damaged while it ran, and is being replaced: {problem}"
    ))
}

fn far_lost(problem: &str) -> Refusal {
    Refusal::Service(format!(
        "The function was ended while it ran, and is served from elsewhere from now on: {problem}"
    ))
}

/// Why there is no snapshot to be used.
pub(crate) fn no_snapshot(revision: &Revision) -> Refusal {
    let reason = match revision.snapshot() {
        SnapshotStatus::Pending { reason } | SnapshotStatus::Failed { reason } => reason,
        SnapshotStatus::Stored(_) | SnapshotStatus::Ready(_) => "It has just been replaced.".into(),
    };
    Refusal::SnapStartNotReady(format!("The function has no snapshot. {reason}"))
}

/// JSON and not too large. Nothing at all counts as `{}`, as in Lambda.
pub(crate) fn check_payload(payload: Bytes, limit: usize) -> Result<Bytes, Refusal> {
    if payload.len() > limit {
        return Err(Refusal::RequestTooLarge(format!(
            "Request must be smaller than {limit} bytes for the InvokeFunction operation"
        )));
    }
    if payload.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    match serde_json::from_slice::<IgnoredAny>(&payload) {
        Ok(_) => Ok(payload),
        Err(error) => Err(Refusal::InvalidRequestContent(format!(
            "Could not parse request body into json: Could not parse payload into json: {error}"
        ))),
    }
}

/// A trace that is not sampled: nobody collects it.
pub(crate) fn new_trace_id() -> String {
    let trace = Uuid::new_v4().simple().to_string();
    let parent = Uuid::new_v4().simple().to_string();
    let seconds = crate::function::record::now_ms() / 1000;
    format!(
        "Root=1-{seconds:08x}-{};Parent={};Sampled=0",
        &trace[..24],
        &parent[..16]
    )
}
