//! Asynchronous invocations: stored before they are acknowledged, delivered in the background, tried again, and found
//! again after a restart.
//!
//! Delivery is at least once, as in Lambda: a node that is killed during an attempt makes it again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

use crate::engine::invoke::{InvokeOptions, check_payload};
use crate::function::arn::FunctionRef;
use crate::function::record::now_ms;
use crate::node::Node;
use crate::refusal::{Refusal, chain};
use crate::store::EventRecord;

/// Largest payload of an asynchronous invocation, bytes.
pub const MAX_EVENT: usize = 1_048_576;

/// First and longest pause before a delivery is tried again that the node itself refused (too many requests, or the
/// function is not ready).
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// Hands accepted events to the delivery.
pub type EventSender = mpsc::UnboundedSender<(u64, EventRecord)>;

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
        let record = function.record();
        let event = EventRecord {
            request_id: Uuid::new_v4().to_string(),
            function: record.name.clone(),
            version: record.version.clone(),
            client_context,
            accepted_ms: now_ms(),
            attempts: 0,
        };
        let (store, stored) = (Arc::clone(&self.store), event.clone());
        let id = tokio::task::spawn_blocking(move || store.add_event(&stored, &payload))
            .await
            .map_err(|error| Refusal::Service(error.to_string()))?
            .map_err(|error| Refusal::Service(chain(&error)))?;
        let request_id = event.request_id.clone();
        // The receiver lives as long as the node.
        let _ = self.events.send((id, event));
        Ok(request_id)
    }
}

/// An event that an earlier run of the node accepted and did not finish.
pub(crate) fn resume(node: &Node, id: u64, mut event: EventRecord) {
    // The attempt that was interrupted does not count.
    event.attempts = event.attempts.saturating_sub(1);
    let _ = node.events.send((id, event));
}

/// Delivers events until the node is gone.
pub(crate) async fn run(node: Weak<Node>, mut events: mpsc::UnboundedReceiver<(u64, EventRecord)>) {
    let slots = match node.upgrade() {
        Some(node) => Arc::new(Semaphore::new(node.config.max_async_concurrency)),
        None => return,
    };
    while let Some((id, event)) = events.recv().await {
        tokio::spawn(deliver(Weak::clone(&node), Arc::clone(&slots), id, event));
    }
}

async fn deliver(node: Weak<Node>, slots: Arc<Semaphore>, id: u64, mut event: EventRecord) {
    let mut pause = BACK_OFF.0;
    loop {
        let next = {
            // The semaphore is never closed.
            let _slot = slots.acquire().await;
            let Some(node) = node.upgrade() else { return };
            attempt(&node, id, &mut event, &mut pause).await
        };
        match next {
            Some(wait) => tokio::time::sleep(wait).await,
            None => {
                let Some(node) = node.upgrade() else { return };
                let store = Arc::clone(&node.store);
                let removed = tokio::task::spawn_blocking(move || store.remove_event(id)).await;
                if let Ok(Err(error)) = removed {
                    tracing::error!(
                        error = chain(&error),
                        "a delivered event could not be removed and may be delivered again"
                    );
                }
                return;
            }
        }
    }
}

/// Tries once. `Some` is the time to wait before the next attempt, `None` means that the event is done.
async fn attempt(
    node: &Arc<Node>,
    id: u64,
    event: &mut EventRecord,
    pause: &mut Duration,
) -> Option<Duration> {
    event.attempts += 1;
    let (store, stored) = (Arc::clone(&node.store), event.clone());
    let payload = tokio::task::spawn_blocking(move || {
        store.update_event(id, &stored)?;
        store.payload(id)
    })
    .await;
    let payload = match payload {
        Ok(Ok(Some(payload))) => Bytes::from(payload),
        Ok(Ok(None)) => return None,
        Ok(Err(error)) => {
            tracing::error!(error = chain(&error), "an event could not be read");
            event.attempts -= 1;
            return Some(back_off(pause));
        }
        Err(_) => return None,
    };
    let target = FunctionRef {
        name: event.function.clone(),
        qualifier: Some(event.version.clone()),
        region: None,
        account: None,
    };
    let options = InvokeOptions {
        client_context: event.client_context.clone(),
        request_id: Some(event.request_id.clone()),
        ..InvokeOptions::default()
    };
    let retries = &node.config.async_retry_s;
    match node.invoke(&target, payload, &options).await {
        Ok(outcome) if outcome.function_error.is_none() => None,
        Ok(_) => retries
            .get(event.attempts as usize - 1)
            .map(|seconds| Duration::from_secs(*seconds)),
        // The function is gone, or the event will never be accepted.
        Err(
            Refusal::ResourceNotFound(_)
            | Refusal::InvalidRequestContent(_)
            | Refusal::RequestTooLarge(_),
        ) => None,
        Err(refusal) => {
            // The function did not see it, so this was no attempt.
            event.attempts -= 1;
            let age = now_ms().saturating_sub(event.accepted_ms) / 1000;
            if age >= node.config.async_max_age_s {
                tracing::warn!(function = event.function, request_id = event.request_id, %refusal, "an event was given up");
                return None;
            }
            Some(back_off(pause))
        }
    }
}

fn back_off(pause: &mut Duration) -> Duration {
    let now = *pause;
    *pause = (now * 2).min(BACK_OFF.1);
    now
}
