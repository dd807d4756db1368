//! Lambda's operations on what is decided about asynchronous invocations.

use std::sync::Arc;

use super::policy::{Destination, EventPolicy};
use crate::function::arn::{FunctionRef, function_arn};
use crate::function::record::{FunctionRecord, now_ms};
use crate::function::request::{DeadLetterConfig, EventInvokeConfig};
use crate::node::Node;
use crate::refusal::Refusal;

impl Node {
    /// PutFunctionEventInvokeConfig; with `keep` UpdateFunctionEventInvokeConfig: what the request does not name stays.
    pub async fn put_event_policy(
        self: &Arc<Self>,
        target: &FunctionRef,
        request: EventInvokeConfig,
        keep: bool,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        if keep {
            self.event_policy(target)?;
        }
        self.change_events(target, |old| {
            let mut policy = match keep {
                true => old.clone(),
                false => EventPolicy {
                    dead_letters: old.dead_letters.clone(),
                    ..EventPolicy::default()
                },
            };
            policy.retries = request.maximum_retry_attempts.or(policy.retries);
            policy.max_age_s = request.maximum_event_age_in_seconds.or(policy.max_age_s);
            if let Some(destinations) = &request.destination_config {
                if let Some(on_success) = &destinations.on_success {
                    policy.on_success = self.destination(on_success.destination.as_deref())?;
                }
                if let Some(on_failure) = &destinations.on_failure {
                    policy.on_failure = self.destination(on_failure.destination.as_deref())?;
                }
            }
            policy.modified_ms = Some(now_ms());
            Ok(policy)
        })
        .await
    }

    /// GetFunctionEventInvokeConfig.
    pub fn event_policy(&self, target: &FunctionRef) -> Result<Arc<FunctionRecord>, Refusal> {
        let record = self.find(target)?.record();
        match record.events.modified_ms {
            Some(_) => Ok(record),
            None => Err(Refusal::ResourceNotFound(format!(
                "The function {} doesn't have an EventInvokeConfig",
                qualified_arn(self, &record)
            ))),
        }
    }

    /// ListFunctionEventInvokeConfigs: the versions of a function that have one.
    pub fn list_event_policies(
        &self,
        target: &FunctionRef,
    ) -> Result<Vec<Arc<FunctionRecord>>, Refusal> {
        let name = self.find(target)?.record().name.clone();
        let mut found: Vec<_> = (self.all().iter())
            .map(|function| function.record())
            .filter(|record| record.name == name && record.events.modified_ms.is_some())
            .collect();
        found.sort_by_key(|record| record.version.parse::<u64>().unwrap_or(0));
        Ok(found)
    }

    /// DeleteFunctionEventInvokeConfig.
    pub async fn delete_event_policy(
        self: &Arc<Self>,
        target: &FunctionRef,
    ) -> Result<(), Refusal> {
        self.event_policy(target)?;
        self.change_events(target, |old| {
            Ok(EventPolicy {
                dead_letters: old.dead_letters.clone(),
                ..EventPolicy::default()
            })
        })
        .await?;
        Ok(())
    }

    async fn change_events(
        self: &Arc<Self>,
        target: &FunctionRef,
        change: impl FnOnce(&EventPolicy) -> Result<EventPolicy, Refusal>,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        let _changes = self.changes.lock().await;
        let function = self.find(target)?;
        let mut record = FunctionRecord::clone(&function.record());
        record.events = change(&record.events)?;
        record.events.validate()?;
        self.commit(vec![record.clone()]).await?;
        let record = Arc::new(record);
        function.set_record(Arc::clone(&record));
        Ok(record)
    }

    /// With what CreateFunction or UpdateFunctionConfiguration says about dead letters.
    pub(crate) fn with_dead_letters(
        &self,
        policy: &EventPolicy,
        asked: Option<&DeadLetterConfig>,
    ) -> Result<EventPolicy, Refusal> {
        let mut policy = policy.clone();
        if let Some(asked) = asked {
            policy.dead_letters = match self.destination(asked.target_arn.as_deref())? {
                Some(Destination::Function(_)) => {
                    return Err(Refusal::InvalidParameterValue(
                        "The target of DeadLetterConfig must be a queue (arn:aws:sqs:REGION:ACCOUNT:NAME).".into(),
                    ));
                }
                queue => queue,
            };
        }
        Ok(policy)
    }

    /// A destination of this node; none where nothing is named.
    fn destination(&self, arn: Option<&str>) -> Result<Option<Destination>, Refusal> {
        let Some(arn) = arn.filter(|arn| !arn.is_empty()) else {
            return Ok(None);
        };
        let invalid = |reason: String| {
            Refusal::InvalidParameterValue(format!("The destination is not valid: {reason}"))
        };
        let destination = Destination::parse(arn).map_err(invalid)?;
        if !destination.is_here(&self.config) {
            return Err(invalid(format!("{arn} is not of this node")));
        }
        if let Destination::Function(function) = &destination {
            self.find(function)?;
        }
        Ok(Some(destination))
    }
}

/// The qualified ARN of a record's version, `$LATEST` written out, as the configuration of asynchronous invocations has it.
pub fn qualified_arn(node: &Node, record: &FunctionRecord) -> String {
    let config = node.config();
    let version = Some(record.version.as_str());
    function_arn(&config.region, &config.account, &record.name, version)
}
