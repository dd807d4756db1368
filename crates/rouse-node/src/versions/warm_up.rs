//! What a function runs before its snapshot: events of its owner, in an instance that was started for it.
//!
//! A runtime whose client knows `warm-up/next` gets them at the end of its init: the hooks before the snapshot, the collection
//! of garbage and the search for random generators come afterwards, so that they find what the events have loaded. An
//! executable that parks in `invocation/next` gets them as ordinary invocations; it has no hooks. Other clients would run their after-restore hooks for the
//! first warm-up event and in no copy any more: they are not warmed up.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rouse_runtimes::Runtime;
use serde_json::Value;
use uuid::Uuid;

use crate::engine::build::ended_text;
use crate::engine::function::Revision;
use crate::engine::runner::{Ended, Runner};
use crate::function::arn::{LATEST, function_arn};
use crate::function::record::{FunctionRecord, SnapshotPoint, WarmUpDone};
use crate::function::snapshot_point::{
    MAX_EVENT_BYTES, PointPolicy, SnapshotPointSettings, check_events,
};
use crate::node::Node;
use crate::runtime_api::session::{Event, RuntimeAnswer};

/// The file of a package that holds its warm-up events: a JSON array.
pub const PACKAGE_FILE: &str = "rouse-warm-up.json";

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmUp {
    /// Times that all events are run; 0 for no warm-up.
    pub rounds: u32,
    /// The events, JSON.
    pub events: Vec<Bytes>,
}

/// Why a warm-up did not come to its end.
#[derive(Debug)]
pub enum WarmUpError {
    /// Init failed, which has nothing to do with the warm-up.
    Init(Ended),
    /// The warm-up failed, for people.
    Events(String),
}

impl Node {
    /// When a function's snapshots are taken.
    pub(crate) fn point_of(&self, record: &FunctionRecord) -> SnapshotPointSettings {
        let own = record.settings.snapshot_point.clone();
        own.unwrap_or_else(|| SnapshotPointSettings {
            policy: self.config.snapshot_point,
            ..SnapshotPointSettings::default()
        })
    }

    /// What to run before the first snapshot, and why it is not what was asked for, if so.
    pub(crate) fn first_warm_up(
        &self,
        record: &FunctionRecord,
        package: &Path,
    ) -> (WarmUp, Option<String>) {
        let point = self.point_of(record);
        match point.policy {
            PointPolicy::Init | PointPolicy::Auto => (WarmUp::default(), None),
            PointPolicy::Warm => match events(&point, package) {
                Ok(events) => {
                    let rounds = point.rounds.unwrap_or(1);
                    (WarmUp { rounds, events }, None)
                }
                // The node's own setting is for packages that bring events.
                Err(NoEvents::Missing) if record.settings.snapshot_point.is_none() => {
                    (WarmUp::default(), None)
                }
                Err(reason) => (WarmUp::default(), Some(reason.to_string())),
            },
        }
    }
}

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum NoEvents {
    /// Neither given nor in the package.
    #[error("no warm-up events were given, and the package has no {PACKAGE_FILE}")]
    Missing,
    /// The package's file cannot be used.
    #[error("the package's {PACKAGE_FILE} cannot be used: {0}")]
    File(String),
}

/// The events that were given, or those of the package.
pub fn events(point: &SnapshotPointSettings, package: &Path) -> Result<Vec<Bytes>, NoEvents> {
    let as_bytes = |events: &[Value]| {
        events
            .iter()
            .map(|event| Bytes::from(event.to_string()))
            .collect()
    };
    match &point.events {
        Some(events) => Ok(as_bytes(events)),
        None => Ok(as_bytes(&package_events(package)?)),
    }
}

fn package_events(package: &Path) -> Result<Vec<Value>, NoEvents> {
    // A link could lead to a file of the host, whose contents the function must not get.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(package.join(PACKAGE_FILE));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(NoEvents::Missing);
        }
        Err(error) => return Err(NoEvents::File(error.to_string())),
    };
    let is_file = file.metadata().is_ok_and(|found| found.is_file());
    if !is_file {
        return Err(NoEvents::File("it is no file".into()));
    }
    let mut text = Vec::new();
    // Spaces between the events do not count, so that the file may be larger than they are.
    file.take(4 * MAX_EVENT_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(|error| NoEvents::File(error.to_string()))?;
    let events: Vec<Value> =
        serde_json::from_slice(&text).map_err(|error| NoEvents::File(error.to_string()))?;
    check_events(&events).map_err(NoEvents::File)?;
    Ok(events)
}

/// Runs the events on an instance that starts; it goes on with its init afterwards. All of them together may take `limit`.
pub async fn run(
    node: &Node,
    revision: &Revision,
    runner: &Runner,
    warm_up: &WarmUp,
    limit: Duration,
) -> Result<WarmUpDone, WarmUpError> {
    let parked = runner
        .asks_for_warm_up(limit)
        .await
        .map_err(WarmUpError::Init)?;
    let settings = &revision.record.settings;
    let is_executable = Runtime::parse(&settings.runtime) == Some(Runtime::Provided);
    match parked {
        None => {}
        Some(SnapshotPoint::InvocationNext) if is_executable => {}
        Some(_) => {
            return Err(WarmUpError::Events(
                "the package's own runtime client does not take warm-up events".into(),
            ));
        }
    }
    let begin = Instant::now();
    let all = run_all(node, revision, runner, warm_up);
    match tokio::time::timeout(limit, all).await {
        Ok(result) => result.map_err(WarmUpError::Events)?,
        Err(_) => {
            return Err(WarmUpError::Events(format!(
                "the warm-up events took more than {} s",
                limit.as_secs()
            )));
        }
    }
    if parked.is_none() {
        runner.session.end_warm_up();
    }
    Ok(WarmUpDone {
        rounds: warm_up.rounds,
        events: u64::from(warm_up.rounds) * warm_up.events.len() as u64,
        us: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
    })
}

async fn run_all(
    node: &Node,
    revision: &Revision,
    runner: &Runner,
    warm_up: &WarmUp,
) -> Result<(), String> {
    for _ in 0..warm_up.rounds {
        for (index, payload) in warm_up.events.iter().enumerate() {
            let event = event(node, revision, payload);
            let timeout = event.timeout;
            let answer = runner.begin(event, &revision.record.version);
            let ended = runner.finish(answer, timeout, timeout).await;
            runner.capture.end(&[]);
            match ended {
                Ended::Answer(RuntimeAnswer::Response { .. }) => {}
                other => {
                    let reason = ended_text(other, timeout);
                    return Err(format!("warm-up event {} failed: {reason}", index + 1));
                }
            }
        }
    }
    Ok(())
}

/// An event of nobody: its ids are made for it.
pub fn event(node: &Node, revision: &Revision, payload: &Bytes) -> Event {
    let record = &revision.record;
    let version = (record.version != LATEST).then_some(record.version.as_str());
    Event {
        request_id: Uuid::new_v4().to_string(),
        function_arn: function_arn(
            &node.config.region,
            &node.config.account,
            &record.name,
            version,
        ),
        timeout: Duration::from_secs(u64::from(record.settings.timeout_s)),
        trace_id: crate::engine::invoke::new_trace_id(),
        client_context: None,
        payload: payload.clone(),
        rehearsal: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_brings_its_events_as_a_plain_file() {
        let folder = tempfile::tempdir().unwrap();
        let point = SnapshotPointSettings::default();
        let path = folder.path().join(PACKAGE_FILE);
        assert!(matches!(
            events(&point, folder.path()),
            Err(NoEvents::Missing)
        ));
        std::fs::write(&path, r#"[{"a": 1}, null]"#).unwrap();
        assert_eq!(
            events(&point, folder.path()).unwrap(),
            vec![
                Bytes::from_static(br#"{"a":1}"#),
                Bytes::from_static(b"null")
            ]
        );
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(
            events(&point, folder.path()),
            Err(NoEvents::File(_))
        ));
        std::fs::remove_file(&path).unwrap();
        let elsewhere = folder.path().join("elsewhere");
        std::fs::write(&elsewhere, "[1]").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(matches!(
            events(&point, folder.path()),
            Err(NoEvents::File(_))
        ));
    }

    #[test]
    fn events_that_were_given_come_before_those_of_the_package() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(PACKAGE_FILE), "[1]").unwrap();
        let point = SnapshotPointSettings {
            events: Some(vec![Value::from(2)]),
            ..SnapshotPointSettings::default()
        };
        assert_eq!(
            events(&point, folder.path()).unwrap(),
            [Bytes::from_static(b"2")]
        );
    }
}
