//! The first look at what a new snapshot's function touches, before anybody calls it.
//!
//! ```text
//!  snapshot, loaded --restored once--> rehearsal --answered--> page tables --> first working set --> stored in its order
//!                                      an event that the runtime's client answers itself,
//!                                      or the function's warm-up events
//! ```
//! It takes the place of the trial restore. Without it, all that is known at the first call is how many pages there are. No
//! handler runs but for events that the function's owner has given to be run before the first call; and whatever happens, happens in an
//! instance that ends afterwards.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::build::ended_text;
use super::function::{Function, Revision};
use super::runner::{Ended, Runner};
use crate::boot::LoadedImage;
use crate::function::record::SnapshotPoint;
use crate::node::Node;
use crate::runtime_api::session::{Event, RuntimeAnswer};
use crate::versions::warm_up::{self, WarmUp};

/// What the client answers itself.
const PAYLOAD: &[u8] =
    br#"{"number":1.5,"text":"rehearsal","list":[1,null,true],"object":{"key":"value"}}"#;

/// The events of a rehearsal. None if there are none that may be run: the runtime's client does not know rehearsals, and there
/// were no warm-up events; or the snapshot was taken where none can come along.
pub(super) fn events(
    node: &Node,
    revision: &Revision,
    point: SnapshotPoint,
    rehearses: bool,
    warm_up: &WarmUp,
) -> Vec<Event> {
    if point != SnapshotPoint::RestoreWithEvent {
        return Vec::new();
    }
    if warm_up.rounds > 0 {
        let events = warm_up.events.iter();
        return events
            .map(|payload| warm_up::event(node, revision, payload))
            .collect();
    }
    let own = || Event {
        rehearsal: true,
        ..warm_up::event(node, revision, &Bytes::from_static(PAYLOAD))
    };
    rehearses.then(own).into_iter().collect()
}

/// Restores once, runs the events, and takes note of what that has touched.
pub(super) async fn run(
    node: &Arc<Node>,
    function: &Arc<Function>,
    revision: &Arc<Revision>,
    image: &LoadedImage,
    point: SnapshotPoint,
    events: Vec<Event>,
) -> Result<(), String> {
    let spec = &revision.launches.snapshot;
    let booted = image.restore_to_invoke(spec).await;
    let booted = booted.map_err(|error| error.to_string())?;
    let version = &revision.record.version;
    let mut events = events.into_iter();
    let first = events.next().ok_or("there is no event")?;
    let limit = first
        .timeout
        .max(Duration::from_secs(node.config.restore_timeout_s));
    let restored = Runner::restored(
        booted,
        Arc::clone(revision),
        point,
        Some((first, version)),
        &function.log,
        &function.counters.instances,
    )
    .map_err(|e| format!("the copy could not be served: {e}"))?;
    let runner = restored.runner;
    let mut answer = restored.answer.ok_or("the copy did not take the event")?;
    loop {
        let ended = runner.finish(answer, limit, limit).await;
        runner.capture.end(&[]);
        if !matches!(ended, Ended::Answer(RuntimeAnswer::Response { .. })) {
            return Err(ended_text(ended, limit));
        }
        match events.next() {
            Some(event) => answer = runner.begin(event, version),
            None => break,
        }
    }
    runner.rehearsed().await;
    Ok(())
}
