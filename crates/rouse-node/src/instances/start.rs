//! Starting instances that are held, and what bounds how many there are.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::list::InstanceReport;
use super::roster::Hold;
use crate::boot::LoadedImage;
use crate::config::BootPolicy;
use crate::engine::function::{Function, Revision};
use crate::engine::parking::memory_available;
use crate::engine::runner::Runner;
use crate::function::arn::FunctionRef;
use crate::function::record::SnapshotPoint;
use crate::node::Node;
use crate::refusal::Refusal;
use crate::runtime_api::answers::WakesAs;

/// Most instances that one operation makes.
const MOST_AT_ONCE: u32 = 1000;

/// How many instances, and how long they are held without an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// From 1 on.
    pub count: u32,
    /// Seconds; the node's if `None`.
    pub keep_alive_s: Option<u64>,
}

/// From what held instances are made.
#[derive(Clone)]
pub(super) enum Source {
    /// The function's snapshot, or nothing.
    Snapshot(Option<(LoadedImage, SnapshotPoint)>),
    /// A snapshot of a live instance.
    Branch(LoadedImage),
}

impl Node {
    /// Starts instances of a function that wait for events of whoever knows their names.
    pub async fn start_instances(
        self: &Arc<Self>,
        target: &FunctionRef,
        asked: Asked,
    ) -> Result<Vec<InstanceReport>, Refusal> {
        let function = self.find(target)?;
        let revision = self.invocable(&function)?;
        let node = Arc::clone(self);
        // A caller that goes away does not leave it half done.
        let task = tokio::spawn(async move {
            let _turn = node.holding.lock().await;
            let memory = node.admit_held(&function, asked)?;
            let snapshot = match node.config.boot {
                BootPolicy::Cold => None,
                _ => node.usable_snapshot(&function, &revision).await,
            };
            let source =
                Source::Snapshot(snapshot.map(|ready| (ready.image.clone(), ready.record.point)));
            let made = node
                .make_held(&function, &revision, &source, asked.count)
                .await?;
            Ok(node.hold(&function, made, asked, memory, None))
        });
        task.await
            .unwrap_or_else(|error| Err(Refusal::Service(error.to_string())))
    }

    /// May so many instances of a function be held? Returns the bytes that each is expected to take.
    pub(super) fn admit_held(&self, function: &Function, asked: Asked) -> Result<u64, Refusal> {
        let count = asked.count;
        if !(1..=MOST_AT_ONCE).contains(&count) {
            return Err(Refusal::InvalidParameterValue(format!(
                "The number of instances must be from 1 to {MOST_AT_ONCE}, not {count}."
            )));
        }
        if self.gate.is_closed() {
            return Err(Refusal::Stopping);
        }
        let refuse = |why: String| Err(Refusal::TooManyInstances(why));
        let wanted = u64::from(count);
        let record = function.record();
        if let Some(most) = self.serving(function).max_instances {
            let there = function.counters.instances.load(Ordering::Relaxed) as u64;
            if there + wanted > u64::from(most) {
                return refuse(format!(
                    "{count} more would make {} instances of {}, whose max_instances is {most}.",
                    there + wanted,
                    record.name
                ));
            }
        }
        let (held, held_bytes) = self.instances.held();
        let most = self.config.held_max as u64;
        if held as u64 + wanted > most {
            return refuse(format!(
                "{count} more would make {} held instances on this node, and held_max is {most}.",
                held as u64 + wanted
            ));
        }
        let memory = self.gate.expected_memory(&record.name);
        let needed = memory.saturating_mul(wanted);
        let budget = self.config.capacity().memory.saturating_sub(held_bytes);
        let available = memory_available().unwrap_or(u64::MAX);
        if needed > budget.min(available) {
            let (limit, what) = match budget < available {
                true => (budget, "admission_memory_bytes leaves to held instances"),
                false => (available, "the host can spare"),
            };
            return refuse(format!(
                "{count} instances are expected to take {} MiB, and {what} {} MiB.",
                needed >> 20,
                limit >> 20
            ));
        }
        Ok(memory)
    }

    /// Instances that are up and wait for an event: all of them or none.
    pub(super) async fn make_held(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        source: &Source,
        count: u32,
    ) -> Result<Vec<Runner>, Refusal> {
        let at_once = self.config.capacity().starting.max(1);
        let (mut making, mut made) = (JoinSet::new(), Vec::new());
        let mut left = count;
        loop {
            while left > 0 && making.len() < at_once as usize {
                left -= 1;
                let (node, source) = (Arc::clone(self), source.clone());
                let (function, revision) = (Arc::clone(function), Arc::clone(revision));
                making.spawn(async move { node.make_one(&function, &revision, &source).await });
            }
            match making.join_next().await {
                None => return Ok(made),
                Some(Ok(Ok(runner))) => made.push(runner),
                // Those that are being made end with their tasks, those that were made here.
                Some(Ok(Err(reason))) => {
                    return Err(Refusal::ResourceNotReady(format!(
                        "An instance could not be started, so that none was: {reason}"
                    )));
                }
                Some(Err(error)) => return Err(Refusal::Service(error.to_string())),
            }
        }
    }

    async fn make_one(
        &self,
        function: &Function,
        revision: &Arc<Revision>,
        source: &Source,
    ) -> Result<Runner, String> {
        let spec = &revision.launches.snapshot;
        let (log, count) = (&function.log, &function.counters.instances);
        let served = |error: std::io::Error| format!("the instance could not be served: {error}");
        let restores = Duration::from_secs(self.config.restore_timeout_s);
        let waiting = |booted, wakes_as| {
            Runner::waiting(booted, Arc::clone(revision), wakes_as, log, count).map_err(served)
        };
        let (image, mut runner) = match source {
            Source::Branch(image) => {
                let booted = image.restore(spec).await.map_err(|e| e.reason)?;
                (Some(image), waiting(booted, WakesAs::Copy)?)
            }
            Source::Snapshot(Some((image, SnapshotPoint::InvocationNext))) => {
                let booted = image.restore(spec).await.map_err(|e| e.reason)?;
                (Some(image), waiting(booted, WakesAs::New)?)
            }
            Source::Snapshot(Some((image, point))) => {
                let booted = image.restore(spec).await.map_err(|e| e.reason)?;
                let revision = Arc::clone(revision);
                let restored = Runner::restored(booted, revision, *point, None, log, count);
                let runner = restored.map_err(served)?.runner;
                let up = runner.parked(restores).await;
                up.map_err(|ended| format!("it did not come to ask for work: {ended:?}"))?;
                (Some(image), runner)
            }
            Source::Snapshot(None) => {
                let cold = &revision.launches.cold;
                let kind = function.record().serving.sandbox();
                let boot = self.boot_of(function).map_err(|e| e.reason)?;
                let booted = boot.cold(cold).await.map_err(|e| e.reason)?;
                let runner = Runner::cold(booted, Arc::clone(revision), false, log, count);
                let runner = runner.map_err(served)?.in_sandbox(kind);
                let up = runner
                    .parked(Duration::from_secs(self.config.init_timeout_s))
                    .await;
                up.map_err(|ended| format!("it did not come to ask for work: {ended:?}"))?;
                (None, runner)
            }
        };
        runner = runner.in_sandbox(function.record().serving.sandbox());
        // Who gets its name can rely on it.
        let told = tokio::time::timeout(restores, runner.told()).await;
        if let (Err(_), problem) | (Ok(()), problem @ Some(_)) = (told, runner.problem()) {
            return Err(problem.unwrap_or_else(|| "it took too long".into()));
        }
        runner.image = image.cloned();
        Ok(runner)
    }

    /// Gives instances names, and lets them wait.
    pub(super) fn hold(
        &self,
        function: &Function,
        made: Vec<Runner>,
        asked: Asked,
        memory: u64,
        from: Option<super::InstanceId>,
    ) -> Vec<InstanceReport> {
        let keep = asked.keep_alive_s.unwrap_or(self.config.held_keep_alive_s);
        let held = made.into_iter().map(|runner| {
            let hold = Hold {
                from,
                keep: Duration::from_secs(keep),
                memory,
            };
            let card = self.instances.hold(runner, &function.key, hold);
            InstanceReport::from(&*card)
        });
        held.collect()
    }
}
