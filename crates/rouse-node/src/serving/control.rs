//! Operations on serving policies: rouse's own, and those that Lambda has for parts of them.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};

use super::policy::{KeepAlive, OF_ALL_VERSIONS, Serving, ServingPolicy};
use crate::engine::admission::FlowLimits;
use crate::engine::build::{self, Occasion};
use crate::engine::function::{Function, SnapshotStatus};
use crate::function::arn::{FunctionRef, LATEST};
use crate::function::record::{FunctionRecord, State};
use crate::node::Node;
use crate::refusal::Refusal;
use crate::residency::heat::Reading;

/// How a function is served, for descriptions.
#[derive(Debug, Clone, Serialize)]
pub struct ServingDescription {
    /// What was decided about it.
    pub policy: ServingPolicy,
    /// What holds.
    pub effective: Serving,
    /// Requests of all its versions that wait.
    pub waiting: usize,
    /// Requests of all its versions that run or start.
    pub running: u32,
    /// Instances that are ready, of those that were asked for with `provisioned`.
    pub provisioned_ready: u32,
}

/// Lambda's view of provisioned concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provisioned {
    /// Asked for.
    pub requested: u32,
    /// Ready, or answering.
    pub available: u32,
    /// When the function was changed last, milliseconds since the epoch.
    pub last_modified_ms: u64,
}

impl Node {
    /// Changes how a function is served, by a JSON merge patch of its policy. Its snapshots and instances stay.
    pub async fn set_serving(
        self: &Arc<Self>,
        target: &FunctionRef,
        patch: &Value,
    ) -> Result<ServingDescription, Refusal> {
        let function = self.change_serving(target, patch).await?;
        Ok(self.describe_serving(&function))
    }

    async fn change_serving(
        self: &Arc<Self>,
        target: &FunctionRef,
        patch: &Value,
    ) -> Result<Arc<Function>, Refusal> {
        let _changes = self.changes.lock().await;
        let function = self.find(target)?;
        let mut record = FunctionRecord::clone(&function.record());
        let misplaced = |name: &&&str| record.version != LATEST && patch.get(**name).is_some();
        if let Some(name) = OF_ALL_VERSIONS.iter().find(misplaced) {
            return Err(Refusal::InvalidParameterValue(format!(
                "{name} belongs to the function with all its versions; name it without a qualifier."
            )));
        }
        let before = record.serving.reserved_concurrency;
        let kind = record.serving.sandbox();
        record.serving = record.serving.patched(patch)?;
        self.check_sandbox(&record)?;
        let changes_kind = kind != record.serving.sandbox();
        if changes_kind && (&record.state, &record.last_update) != (&State::Done, &State::Done) {
            return Err(Refusal::ResourceConflict(
                "The function is being built; its kind of sandbox can be changed after that."
                    .into(),
            ));
        }
        self.check_reservation(before, record.serving.reserved_concurrency)?;
        self.commit(vec![record.clone()]).await?;
        function.set_record(Arc::new(record));
        self.configure_flow(&function);
        if changes_kind && let Some(revision) = function.serving() {
            // No instance and no snapshot of one kind is any use for the other.
            function.clear_idle();
            build::spawn(
                self,
                Arc::clone(&function),
                revision,
                Occasion::Restart { problem: None },
            );
        }
        Ok(function)
    }

    /// Can this node run the function in the kind of sandbox that it is to have?
    pub(crate) fn check_sandbox(&self, record: &FunctionRecord) -> Result<(), Refusal> {
        let memory_mib = record.settings.memory_mib;
        match self.sandboxes.of(record.serving.sandbox()) {
            Ok(boot) => boot.fits(memory_mib).map_err(|error| error.reason),
            Err(error) => Err(error.reason.clone()),
        }
        .map_err(|reason| {
            Refusal::InvalidParameterValue(format!(
                "The function cannot have the sandbox microvm: {reason}."
            ))
        })
    }

    /// Leaves a reservation room for the functions that have none?
    pub(crate) fn check_reservation(
        &self,
        before: Option<u32>,
        wanted: Option<u32>,
    ) -> Result<(), Refusal> {
        let Some(wanted) = wanted else { return Ok(()) };
        let others = self.gate.reserved().saturating_sub(before.unwrap_or(0));
        let all = u32::try_from(self.config.max_concurrency).unwrap_or(u32::MAX);
        match others.saturating_add(wanted) < all || wanted <= before.unwrap_or(0) {
            true => Ok(()),
            false => Err(Refusal::InvalidParameterValue(
                "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its minimum value of [1].".into(),
            )),
        }
    }

    /// Tells admission about a function.
    pub(crate) fn configure_flow(&self, function: &Function) {
        let record = function.record();
        if record.version == LATEST {
            let limits = self.serving(function).flow_limits();
            // One that may run no more must not take the places of others, waiting for its own.
            let events = FlowLimits {
                most: limits.most.into_iter().chain(limits.reserved).min(),
                reserved: None,
                queued: u32::MAX,
                ..limits.clone()
            };
            self.event_gate.configure(&record.name, events);
            self.gate.configure(&record.name, limits);
        }
    }

    /// GetFunctionConcurrency: what is reserved, if anything.
    pub fn reserved_concurrency(&self, target: &FunctionRef) -> Result<Option<u32>, Refusal> {
        Ok(self.find(target)?.record().serving.reserved_concurrency)
    }

    /// PutFunctionConcurrency, and with `None` DeleteFunctionConcurrency.
    pub async fn set_reserved_concurrency(
        self: &Arc<Self>,
        target: &FunctionRef,
        reserved: Option<u32>,
    ) -> Result<(), Refusal> {
        let patch = json!({ "reserved_concurrency": reserved });
        self.change_serving(target, &patch).await?;
        Ok(())
    }

    /// Requests that functions have reserved, all together.
    pub fn all_reserved_concurrency(&self) -> u32 {
        self.gate.reserved()
    }

    pub(crate) fn describe_serving(&self, function: &Function) -> ServingDescription {
        let (waiting, running) = self.gate.counts(&function.record().name);
        ServingDescription {
            waiting,
            running,
            policy: function.record().serving.clone(),
            effective: self.serving(function),
            provisioned_ready: self.provisioned(function).available,
        }
    }

    /// How a function is served now.
    pub(crate) fn serving(&self, function: &Function) -> Serving {
        function.record().serving.on(&self.config)
    }

    /// How often a function is called, as far as that decides about its memory: one that is to have instances ready counts
    /// as called just now.
    pub(crate) fn heat_of(&self, function: &Function, now: Instant) -> Reading {
        let heat = function.heat.read(now);
        match self.ready_wanted(function, &self.serving(function), now) {
            0 => heat,
            _ => Reading {
                rate: heat.rate.max(1.0),
                idle: std::time::Duration::ZERO,
                is_called_again: true,
            },
        }
    }

    /// Instances that are to wait for a function's requests now, whatever their rate is.
    pub(crate) fn ready_wanted(
        &self,
        function: &Function,
        serving: &Serving,
        now: Instant,
    ) -> usize {
        let fixed = serving.ready_wanted(self.busy_of(function));
        if serving.keep_alive != KeepAlive::Histogram {
            return fixed;
        }
        let is_expected = function.with_idle_times(|times| {
            let idle = times.idle(now);
            idle.is_some_and(|idle| times.windows().wants_instance(idle))
        });
        fixed.max(usize::from(is_expected))
    }

    fn provisioned(&self, function: &Function) -> Provisioned {
        let record = function.record();
        let requested = record.serving.provisioned.unwrap_or(0);
        let parked = match function.serving().map(|revision| revision.snapshot()) {
            Some(SnapshotStatus::Ready(ready)) => ready.image.parked_count(),
            _ => 0,
        };
        let there = self.busy_of(function) + function.idle_count() + parked;
        Provisioned {
            requested,
            available: u32::try_from(there).unwrap_or(u32::MAX).min(requested),
            last_modified_ms: record.last_modified_ms,
        }
    }

    /// PutProvisionedConcurrencyConfig.
    pub async fn put_provisioned(
        self: &Arc<Self>,
        target: &FunctionRef,
        requested: u32,
    ) -> Result<Provisioned, Refusal> {
        if requested == 0 {
            return Err(Refusal::Validation(
                "1 validation error detected: Value '0' at 'provisionedConcurrentExecutions' failed to satisfy constraint: Member must have value greater than or equal to 1".into(),
            ));
        }
        let function = self.find(qualified(target)?)?;
        if function.record().state == State::Busy {
            return Err(Refusal::ResourceConflict(
                "The operation cannot be performed at this time. The function is currently in the following state: Pending".into(),
            ));
        }
        let patch = json!({ "provisioned": requested });
        let function = self.change_serving(target, &patch).await?;
        Ok(self.provisioned(&function))
    }

    /// GetProvisionedConcurrencyConfig.
    pub fn get_provisioned(&self, target: &FunctionRef) -> Result<Provisioned, Refusal> {
        let found = self.provisioned(&*self.find(qualified(target)?)?);
        match found.requested {
            0 => Err(Refusal::ProvisionedConcurrencyConfigNotFound),
            _ => Ok(found),
        }
    }

    /// DeleteProvisionedConcurrencyConfig.
    pub async fn delete_provisioned(self: &Arc<Self>, target: &FunctionRef) -> Result<(), Refusal> {
        let patch = json!({ "provisioned": null });
        self.change_serving(qualified(target)?, &patch).await?;
        Ok(())
    }

    /// ListProvisionedConcurrencyConfigs: the versions of a function that have one, by number.
    pub fn list_provisioned(
        &self,
        target: &FunctionRef,
    ) -> Result<Vec<(Arc<FunctionRecord>, Provisioned)>, Refusal> {
        let name = self.find(target)?.record().name.clone();
        let mut found: Vec<_> = (self.all().iter())
            .map(|function| (function.record(), self.provisioned(function)))
            .filter(|(record, provisioned)| {
                record.name == name && record.version != LATEST && provisioned.requested > 0
            })
            .collect();
        found.sort_by_key(|(record, _)| record.version.parse::<u64>().unwrap_or(0));
        Ok(found)
    }
}

/// Provisioned concurrency belongs to published versions, in Lambda.
fn qualified(target: &FunctionRef) -> Result<&FunctionRef, Refusal> {
    match target.qualifier.as_deref() {
        None | Some(LATEST) => Err(Refusal::InvalidParameterValue(
            "Provisioned Concurrency Configs cannot be applied to unpublished function versions."
                .into(),
        )),
        Some(_) => Ok(target),
    }
}
