//! Requests that name the instance that is to answer.

use std::sync::Arc;

use super::run::Then;
use super::{InvokeOutcome, Problem, Request, damaged, far_lost, no_memory};
use crate::engine::function::{Function, Revision};
use crate::instances::InstanceId;
use crate::node::Node;
use crate::refusal::Refusal;

impl Node {
    /// What the instance runs, which must be one of this function.
    pub(super) fn named_revision(
        &self,
        function: &Function,
        id: InstanceId,
    ) -> Result<Arc<Revision>, Refusal> {
        let card = self.card(id)?;
        match card.function == function.key {
            true => Ok(Arc::clone(&card.revision)),
            false => Err(Refusal::InvalidParameterValue(format!(
                "Instance {id} is one of {}, not of {}.",
                card.function, function.key
            ))),
        }
    }

    /// Gives the event to this instance and to no other.
    pub(super) async fn on_named(
        self: &Arc<Self>,
        request: &Request<'_>,
        id: InstanceId,
    ) -> Result<InvokeOutcome, Refusal> {
        let card = self.card(id)?;
        let runner = self.take_named(&card)?;
        let running = self.reuse(request, runner, Then::PutBack);
        let ended = |reason: &str| {
            Refusal::ResourceNotFound(format!(
                "Instance {id} ended before it had the event{reason}"
            ))
        };
        match self.run(request, running).await {
            Ok(outcome) => Ok(outcome),
            Err(Problem::Stale) => Err(ended(".")),
            Err(Problem::Boot(reason)) => Err(ended(&format!(": {reason}"))),
            Err(Problem::Damaged(problem)) => Err(damaged(&problem)),
            Err(Problem::FarLost(problem)) => Err(far_lost(&problem)),
            Err(Problem::NoMemory(why)) => Err(no_memory(&why)),
        }
    }
}
