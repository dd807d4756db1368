//! Acceptance of events, and their attempts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::outcome::{Condition, Ended};
use super::policy::{Destination, EventPolicy};
use super::queues;
use crate::engine::admission::queue::Limit;
use crate::engine::admission::{Gate, NotAdmitted, Throttle};
use crate::engine::invoke::{InvokeOptions, InvokeOutcome, check_payload};
use crate::function::arn::{FunctionRef, function_arn};
use crate::function::record::now_ms;
use crate::node::Node;
use crate::refusal::{Refusal, chain};
use crate::store::{EventRecord, StoreError};

/// Largest payload of an asynchronous invocation, bytes.
pub const MAX_EVENT: usize = 1_048_576;

/// First and longest pause before a delivery is tried again that the node itself refused (too many requests, or the
/// function is not ready).
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// An event may lead to so many others, one after the other: functions that are each other's destinations would else never
/// end. As in Lambda.
const MAX_HOPS: u32 = 16;

/// How long an event waits for its turn: as long as it takes.
const PATIENCE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Hands accepted events to the delivery.
pub type EventSender = mpsc::UnboundedSender<(u64, EventRecord)>;

/// An event that follows from another one, and its payload.
type FollowUp = (EventRecord, Vec<u8>);

impl Node {
    /// Accepts an asynchronous invocation. When this returns the request id, the event is on disk.
    pub async fn invoke_event(
        self: &Arc<Self>,
        target: &FunctionRef,
        payload: Bytes,
        client_context: Option<String>,
    ) -> Result<String, Refusal> {
        let function = self.find(target)?;
        if payload.len() > MAX_EVENT {
            let size = payload.len();
            return Err(Refusal::RequestTooLarge(format!(
                "{size} byte payload is too large for the Event invocation type (limit {MAX_EVENT} bytes)"
            )));
        }
        let payload = check_payload(payload, MAX_EVENT)?;
        if self.pending_events.load(Ordering::Relaxed) >= self.config.async_max_pending {
            function.counters.throttled();
            return Err(Refusal::TooManyRequests(Throttle {
                limit: Limit::Node,
                retry_after_s: 10,
            }));
        }
        let record = function.record();
        let event = EventRecord {
            request_id: Uuid::new_v4().to_string(),
            function: record.name.clone(),
            version: record.version.clone(),
            client_context,
            accepted_ms: now_ms(),
            attempts: 0,
            failures: 0,
            hops: 0,
            queue: None,
        };
        let (store, stored) = (Arc::clone(&self.store), event.clone());
        let id = tokio::task::spawn_blocking(move || store.add_event(&stored, &payload))
            .await
            .map_err(|error| Refusal::Service(error.to_string()))?
            .map_err(|error| Refusal::Service(chain(&error)))?;
        let request_id = event.request_id.clone();
        hand_over(self, id, event);
        Ok(request_id)
    }

    /// Events that were accepted and are not done.
    pub fn pending_events(&self) -> usize {
        self.pending_events.load(Ordering::Relaxed)
    }
}

/// Events that an earlier run of the node accepted and did not finish. Attempts that were interrupted do not count; one that
/// waited for its next attempt makes it at once.
pub(crate) fn resume(node: &Node, id: u64, mut event: EventRecord) {
    event.attempts = event.failures;
    hand_over(node, id, event);
}

fn hand_over(node: &Node, id: u64, event: EventRecord) {
    node.pending_events.fetch_add(1, Ordering::Relaxed);
    // The receiver lives as long as the node.
    let _ = node.events.send((id, event));
}

/// Delivers events until the node is gone.
pub(crate) async fn run(node: Weak<Node>, mut events: mpsc::UnboundedReceiver<(u64, EventRecord)>) {
    while let Some((id, event)) = events.recv().await {
        tokio::spawn(deliver(Weak::clone(&node), id, event));
    }
}

/// What comes after an attempt.
enum Next {
    /// Another one, after this time.
    Again(Duration),
    /// The event is done, and these follow.
    Done(Vec<FollowUp>),
}

async fn deliver(node: Weak<Node>, id: u64, mut event: EventRecord) {
    let mut pause = BACK_OFF.0;
    loop {
        let gate: Option<Gate> = node.upgrade().map(|node| node.event_gate.clone());
        let Some(gate) = gate else { return };
        let entered = gate.enter(&event.function, PATIENCE).await;
        let Some(node_now) = node.upgrade() else {
            return;
        };
        // Held until the event is settled: a node that ends waits for that.
        let next = match &entered {
            Ok(_) => attempt(&node_now, id, &mut event, &mut pause).await,
            // It stays on disk, and the next start finds it.
            Err(NotAdmitted::Closed) => return,
            // It is deleted; or nothing of it may run, which may change.
            Err(_) if node_now.get_by_key(&event.function).is_none() => Next::Done(Vec::new()),
            Err(_) => refused(&node_now, id, &event, &mut pause).await,
        };
        match next {
            Next::Again(wait) => {
                drop((node_now, entered));
                tokio::time::sleep(wait).await;
            }
            Next::Done(follow_ups) => return settle(node_now, id, follow_ups).await,
        }
    }
}

/// Removes an event and stores what follows from it, in one transaction. The node lives until that is done, so that what
/// has been delivered is not delivered again after its next start.
///
/// What its handling printed is in the log before that: nobody waits for an event, so if the node is killed, its log is
/// all that tells of it.
async fn settle(mut node: Arc<Node>, id: u64, follow_ups: Vec<FollowUp>) {
    if node.logs.written().await.is_err() {
        // The node ends; the event stays on disk.
        return;
    }
    let follow_ups = Arc::new(follow_ups);
    let mut pause = BACK_OFF.0;
    let ids = loop {
        let (store, following) = (Arc::clone(&node.store), Arc::clone(&follow_ups));
        let settled = tokio::task::spawn_blocking(move || store.settle_event(id, &following));
        match settled.await {
            Ok(Ok(ids)) => break ids,
            Ok(Err(error)) => {
                tracing::error!(
                    error = chain(&error),
                    "a delivered event could not be removed and may be delivered again"
                );
                let later = Arc::downgrade(&node);
                drop(node);
                tokio::time::sleep(back_off(&mut pause)).await;
                let Some(now) = later.upgrade() else { return };
                node = now;
            }
            // The node ends.
            Err(_) => return,
        }
    };
    node.pending_events.fetch_sub(1, Ordering::Relaxed);
    for (id, (event, _)) in ids.into_iter().zip(follow_ups.iter()) {
        hand_over(&node, id, event.clone());
    }
}

/// Tries once.
async fn attempt(node: &Arc<Node>, id: u64, event: &mut EventRecord, pause: &mut Duration) -> Next {
    event.attempts += 1;
    let payload = match stored(node, id, event).await {
        Ok(Some(payload)) => Bytes::from(payload),
        Ok(None) => return Next::Done(Vec::new()),
        Err(error) => {
            tracing::error!(error = chain(&error), "an event could not be read");
            event.attempts -= 1;
            return Next::Again(back_off(pause));
        }
    };
    if let Some(queue) = &event.queue {
        return put(node, (id, event), queue, payload, pause).await;
    }
    let policy = policy(node, event);
    if event.failures > 0 && is_too_old(node, event, &policy) {
        event.attempts -= 1;
        return gave_up(node, event, &payload, Condition::EventAgeExceeded, None);
    }
    let options = InvokeOptions {
        client_context: event.client_context.clone(),
        request_id: Some(event.request_id.clone()),
        ..InvokeOptions::default()
    };
    match node.invoke(&target(event), payload.clone(), &options).await {
        Ok(outcome) if outcome.function_error.is_none() => {
            let told = policy.on_success.as_ref();
            let ended = ended(node, event, &payload, Condition::Success, Some(&outcome));
            Next::Done(
                told.and_then(|to| follow_up(event, to, ended.record()))
                    .into_iter()
                    .collect(),
            )
        }
        Ok(outcome) => {
            event.failures += 1;
            let Some(seconds) = policy.pause_s(event.failures, &node.config) else {
                let condition = Condition::RetriesExhausted;
                return gave_up(node, event, &payload, condition, Some(&outcome));
            };
            if let Err(error) = stored(node, id, event).await {
                tracing::error!(
                    error = chain(&error),
                    "an event's failure could not be stored"
                );
            }
            Next::Again(Duration::from_secs(seconds))
        }
        // The function is gone, or the event will never be accepted.
        Err(
            Refusal::ResourceNotFound(_)
            | Refusal::InvalidRequestContent(_)
            | Refusal::RequestTooLarge(_),
        ) => Next::Done(Vec::new()),
        Err(refusal) => {
            tracing::debug!(function = event.function, %refusal, "an event has to wait");
            // The function did not see it, so this was no attempt.
            event.attempts -= 1;
            refused(node, id, event, pause).await
        }
    }
}

/// The node cannot take an event now.
async fn refused(node: &Arc<Node>, id: u64, event: &EventRecord, pause: &mut Duration) -> Next {
    if event.queue.is_some() || !is_too_old(node, event, &policy(node, event)) {
        return Next::Again(back_off(pause));
    }
    match stored(node, id, event).await {
        Ok(Some(payload)) => gave_up(node, event, &payload, Condition::EventAgeExceeded, None),
        Ok(None) => Next::Done(Vec::new()),
        Err(_) => Next::Again(back_off(pause)),
    }
}

/// Writes the event's state, and reads its payload.
async fn stored(node: &Node, id: u64, event: &EventRecord) -> Result<Option<Vec<u8>>, StoreError> {
    let (store, event) = (Arc::clone(&node.store), event.clone());
    let task = tokio::task::spawn_blocking(move || {
        store.update_event(id, &event)?;
        store.payload(id)
    });
    // Cancelled only when the node ends.
    task.await.unwrap_or(Ok(None))
}

/// An event was given up: who is to be told is told.
fn gave_up(
    node: &Node,
    event: &EventRecord,
    payload: &[u8],
    condition: Condition,
    answer: Option<&InvokeOutcome>,
) -> Next {
    tracing::warn!(
        function = event.function,
        request_id = event.request_id,
        condition = condition.name(),
        "an event was given up"
    );
    let policy = policy(node, event);
    let ended = ended(node, event, payload, condition, answer);
    let told = (policy.on_failure.as_ref()).and_then(|to| follow_up(event, to, ended.record()));
    let letter =
        (policy.dead_letters.as_ref()).and_then(|to| follow_up(event, to, ended.dead_letter()));
    Next::Done(told.into_iter().chain(letter).collect())
}

fn ended<'a>(
    node: &Node,
    event: &'a EventRecord,
    payload: &'a [u8],
    condition: Condition,
    answer: Option<&'a InvokeOutcome>,
) -> Ended<'a> {
    let (region, account) = (&node.config.region, &node.config.account);
    Ended {
        event,
        payload,
        function_arn: function_arn(region, account, &event.function, Some(&event.version)),
        condition,
        answer,
        now_ms: now_ms(),
    }
}

/// The event that brings `payload` to a destination.
fn follow_up(event: &EventRecord, to: &Destination, payload: Vec<u8>) -> Option<FollowUp> {
    if event.hops >= MAX_HOPS {
        let function = &event.function;
        tracing::warn!(
            function,
            "destinations lead in a circle: the event goes no further"
        );
        return None;
    }
    let next = EventRecord {
        client_context: None,
        accepted_ms: now_ms(),
        attempts: 0,
        failures: 0,
        hops: event.hops + 1,
        ..event.clone()
    };
    let next = match to {
        Destination::Function(function) => EventRecord {
            request_id: Uuid::new_v4().to_string(),
            function: function.name.clone(),
            version: function
                .qualifier
                .clone()
                .unwrap_or_else(|| crate::function::arn::LATEST.into()),
            ..next
        },
        Destination::Queue { name, .. } => EventRecord {
            queue: Some(name.clone()),
            ..next
        },
    };
    Some((next, payload))
}

/// Delivers to a queue. Tried again for ever: nobody else would hear of it.
async fn put(
    node: &Node,
    (id, event): (u64, &EventRecord),
    queue: &str,
    payload: Bytes,
    pause: &mut Duration,
) -> Next {
    let (state, queue) = (node.config.state_dir.clone(), queue.to_owned());
    // Numbers of events grow, and stay the same however often this is tried.
    let id = format!("{id:020}-{}", event.request_id);
    let task = tokio::task::spawn_blocking(move || queues::put(&state, &queue, &id, &payload));
    match task.await {
        Ok(Ok(())) => Next::Done(Vec::new()),
        Ok(Err(error)) => {
            let queue = event.queue.as_deref();
            tracing::error!(queue, %error, "a message could not be put into its queue");
            Next::Again(back_off(pause))
        }
        // The node ends.
        Err(_) => Next::Again(back_off(pause)),
    }
}

fn target(event: &EventRecord) -> FunctionRef {
    FunctionRef {
        name: event.function.clone(),
        qualifier: Some(event.version.clone()),
        region: None,
        account: None,
    }
}

/// What is decided for the version that an event is for.
fn policy(node: &Node, event: &EventRecord) -> EventPolicy {
    match node.find(&target(event)) {
        Ok(function) => function.record().events.clone(),
        Err(_) => EventPolicy::default(),
    }
}

fn is_too_old(node: &Node, event: &EventRecord, policy: &EventPolicy) -> bool {
    let age = now_ms().saturating_sub(event.accepted_ms) / 1000;
    age >= policy.max_age_s(&node.config)
}

fn back_off(pause: &mut Duration) -> Duration {
    let now = *pause;
    *pause = (now * 2).min(BACK_OFF.1);
    now
}
