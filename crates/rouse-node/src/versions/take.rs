//! Takes further versions of a snapshot: because somebody asked, because one was damaged, or to see whether a later one is
//! better.

use std::sync::Arc;

use super::compare::{Contender, compare};
use super::history::{Decision, History};
use super::policy::{Comparison, Outcome, next_rounds};
use super::warm_up::{self, WarmUp};
use crate::engine::build::{self, Made, NotMade};
use crate::engine::function::{Function, ReadySnapshot, Revision};
use crate::function::arn::FunctionRef;
use crate::function::record::{Because, FunctionRecord, SnapshotRecord, now_ms};
use crate::function::snapshot_point::{PointPolicy, SnapshotPointSettings};
use crate::node::Node;
use crate::refusal::Refusal;
use crate::residency::load::drop_aside;

impl Node {
    /// Changes when a function's snapshots are taken, takes one, and uses it from then on. Requests are served meanwhile.
    /// When it fails, nothing has changed. Returns the new version's number.
    pub async fn set_snapshot_point(
        self: &Arc<Self>,
        target: &FunctionRef,
        point: SnapshotPointSettings,
    ) -> Result<u64, Refusal> {
        point.validate()?;
        let node = Arc::clone(self);
        let target = target.clone();
        // A caller that goes away does not end it half-way.
        let task = tokio::spawn(async move { node.change_point(&target, point).await });
        task.await
            .unwrap_or_else(|error| Err(Refusal::Service(error.to_string())))
    }

    async fn change_point(
        self: &Arc<Self>,
        target: &FunctionRef,
        point: SnapshotPointSettings,
    ) -> Result<u64, Refusal> {
        // The semaphore is never closed.
        let _permit = self.builds.acquire().await;
        let function = self.changeable(target, None)?;
        let Some(revision) = function.serving() else {
            return Err(Refusal::ResourceConflict(
                "The function is being built.".into(),
            ));
        };
        let mut record = FunctionRecord::clone(&function.record());
        record.settings.snapshot_point = Some(point.clone());
        let (warm_up, problem) = self.first_warm_up(&record, revision.pin.directory());
        if let Some(problem) = problem {
            return Err(Refusal::InvalidParameterValue(problem));
        }
        if point.policy == PointPolicy::Auto {
            // The search would find out only after many invocations.
            warm_up::events(&point, revision.pin.directory())
                .map_err(|error| Refusal::InvalidParameterValue(error.to_string()))?;
        }
        let version = revision.with_history(History::number);
        let made = self
            .take(&function, &revision, version, &warm_up, Because::Asked)
            .await
            .map_err(|reason| {
                Refusal::InvalidParameterValue(format!(
                    "The snapshot could not be taken, and nothing has changed. {reason}"
                ))
            })?;
        self.adopt(&function, &revision, made, None, |history| {
            history.is_pinned = false;
            history.problem = None;
            // The search begins anew.
            history.decisions.clear();
        })
        .await
        .map_err(Refusal::ResourceConflict)?;
        self.store_point(&function, &revision, point).await?;
        self.plan_trial(&function, &revision);
        Ok(version)
    }

    async fn store_point(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        point: SnapshotPointSettings,
    ) -> Result<(), Refusal> {
        let _changes = self.changes.lock().await;
        if !self.is_current(function, &revision.record) {
            return Err(Refusal::ResourceConflict(
                "The function was changed meanwhile.".into(),
            ));
        }
        let mut record = FunctionRecord::clone(&function.record());
        record.settings.snapshot_point = Some(point);
        self.commit(vec![record.clone()]).await?;
        function.set_record(Arc::new(record));
        Ok(())
    }

    /// A new version that nobody uses yet. Of a failure nothing is left.
    async fn take(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        version: u64,
        warm_up: &WarmUp,
        because: Because,
    ) -> Result<Made, String> {
        let made = build::make(self, function, revision, version, warm_up, because).await;
        match made {
            Ok(made) => Ok(made),
            Err(NotMade::WarmUp(reason) | NotMade::Other(reason)) => {
                self.remove_version(revision, version).await;
                Err(reason)
            }
        }
    }

    /// Takes a version like the one that was damaged, while an older one is used.
    pub(super) async fn replace_damaged(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        damaged: &SnapshotRecord,
    ) {
        // The semaphore is never closed.
        let _permit = self.builds.acquire().await;
        let is_served = revision.snapshot().record().is_some();
        if !self.is_current(function, &revision.record) || !is_served {
            return;
        }
        let rounds = damaged.warm_up.rounds;
        let point = self.point_of(&function.record());
        let warm_up = match rounds {
            0 => WarmUp::default(),
            rounds => match warm_up::events(&point, revision.pin.directory()) {
                Ok(events) => WarmUp { rounds, events },
                // The policy has changed since then: what is used now is as good.
                Err(_) => return,
            },
        };
        let version = revision.with_history(History::number);
        let made = self
            .take(function, revision, version, &warm_up, Because::Damaged)
            .await;
        let result = match made {
            Ok(made) => self.adopt(function, revision, made, None, |_| {}).await,
            Err(reason) => Err(reason),
        };
        if let Err(reason) = result {
            tracing::warn!(
                function = function.key,
                reason,
                "a damaged version of the snapshot was not replaced"
            );
        }
    }

    /// Tries a later snapshot in the background, if the function's policy still wants it.
    pub(crate) fn try_later_snapshot(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
    ) {
        let (node, function, revision) =
            (Arc::clone(self), Arc::clone(function), Arc::clone(revision));
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = node.builds.acquire().await;
            node.search(&function, &revision).await;
            node.plan_trial(&function, &revision);
        });
    }

    async fn search(self: &Arc<Self>, function: &Arc<Function>, revision: &Arc<Revision>) {
        let point = self.point_of(&function.record());
        let rounds = revision.with_history(|history| match history.is_pinned {
            true => None,
            false => next_rounds(&history.trials()),
        });
        let (PointPolicy::Auto, Some(rounds), true) = (
            point.policy,
            rounds,
            self.is_current(function, &revision.record),
        ) else {
            return;
        };
        let Some(current) = self.usable_snapshot(function, revision).await else {
            return;
        };
        let version = revision.with_history(History::number);
        let decision = |outcome, comparison, reason| Decision {
            at_ms: now_ms(),
            version,
            against: current.record.version,
            rounds,
            outcome,
            comparison,
            reason,
        };
        let found = match warm_up::events(&point, revision.pin.directory()) {
            Ok(events) => {
                let warm_up = WarmUp { rounds, events };
                self.try_against(function, revision, &current, version, &warm_up)
                    .await
            }
            Err(error) => Err(error.to_string()),
        };
        let decided = match found {
            Ok((made, comparison)) => {
                let margin = f64::from(self.config.snapshot_margin_percent) / 100.0;
                let reason = sentence(&comparison, margin);
                if comparison.is_better(margin) {
                    let kept = decision(Outcome::Kept, Some(comparison), reason);
                    report(function, &kept);
                    let against = Some(current.record.version);
                    let adopted = self
                        .adopt(function, revision, made, against, |history| {
                            history.decide(kept);
                        })
                        .await;
                    if let Err(reason) = adopted {
                        tracing::info!(
                            function = function.key,
                            reason,
                            "the better snapshot is not used"
                        );
                    }
                    return;
                }
                drop_aside(made);
                self.remove_version(revision, version).await;
                decision(Outcome::Rejected, Some(comparison), reason)
            }
            Err(reason) => decision(Outcome::Failed, None, reason),
        };
        report(function, &decided);
        self.remember(function, revision, decided).await;
    }

    /// A later version, and how it does against the current one. Of a failure nothing is left.
    async fn try_against(
        self: &Arc<Self>,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        current: &ReadySnapshot,
        version: u64,
        warm_up: &WarmUp,
    ) -> Result<(Made, Comparison), String> {
        let made = self
            .take(function, revision, version, warm_up, Because::Auto)
            .await?;
        let contenders = [
            Contender {
                image: &current.image,
                record: &current.record,
            },
            Contender {
                image: &made.image,
                record: &made.record,
            },
        ];
        let compared = compare(self, function, revision, contenders, &warm_up.events).await;
        match compared {
            Ok(comparison) => Ok((made, comparison)),
            Err(reason) => {
                drop_aside(made);
                self.remove_version(revision, version).await;
                Err(reason)
            }
        }
    }

    /// Stores a decision after which the current version stays.
    async fn remember(
        &self,
        function: &Arc<Function>,
        revision: &Arc<Revision>,
        decision: Decision,
    ) {
        let _changes = self.changes.lock().await;
        let current = revision.snapshot().record().cloned();
        let (Some(current), true) = (current, self.is_current(function, &revision.record)) else {
            return;
        };
        let mut history = revision.with_history(|history| history.clone());
        history.decide(decision);
        if let Err(reason) = self
            .write_versions(function, revision, current, history)
            .await
        {
            tracing::error!(
                function = function.key,
                reason,
                "a decision about a snapshot could not be stored"
            );
        }
    }
}

fn report(function: &Function, decision: &Decision) {
    let (version, against) = (decision.version, decision.against);
    tracing::info!(
        function = function.key,
        version,
        against,
        rounds = decision.rounds,
        outcome = ?decision.outcome,
        reason = decision.reason,
        "a later snapshot was tried"
    );
}

/// The figures of a comparison, for people.
fn sentence(comparison: &Comparison, margin: f64) -> String {
    let (old, new) = (comparison.current, comparison.candidate);
    format!(
        "{:.2} ms instead of {:.2} ms to the answer (faster in {} of {}), {} KiB stored instead of {}, {} KiB touched instead of {}: a score of {:.2}, and {:.2} is asked for",
        new.p50_us as f64 / 1000.0,
        old.p50_us as f64 / 1000.0,
        comparison.faster,
        comparison.pairs,
        new.stored_bytes >> 10,
        old.stored_bytes >> 10,
        new.working_set_bytes >> 10,
        old.working_set_bytes >> 10,
        comparison.score(),
        1.0 - margin,
    )
}
