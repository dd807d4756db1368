//! Live fork: copies of an instance that waits, which goes on.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::InstanceId;
use super::list::{InstanceReport, unknown};
use super::roster::Forking;
pub use super::start::Asked;
use super::start::Source;
use crate::boot::BranchError;
use crate::node::Node;
use crate::refusal::Refusal;

/// What a fork has made.
#[derive(Debug, Clone, Serialize)]
pub struct Forked {
    /// The instance that was copied, and goes on.
    pub from: InstanceId,
    /// The copies.
    pub instances: Vec<InstanceReport>,
    /// How long the original stood still, microseconds.
    pub pause_us: u64,
    /// Pages that it had written and that were copied once for all copies.
    pub copied_pages: u64,
    /// From the request until all copies were up, microseconds.
    pub total_us: u64,
}

impl Node {
    /// Makes copies of an instance that waits for an event. Each is held, in a sandbox of its own.
    pub async fn fork_instance(
        self: &Arc<Self>,
        id: InstanceId,
        asked: Asked,
    ) -> Result<Forked, Refusal> {
        let node = Arc::clone(self);
        // The original must come back to its place, whether the caller stays or not.
        let task = tokio::spawn(async move { node.fork_named(id, asked).await });
        task.await
            .unwrap_or_else(|error| Err(Refusal::Service(error.to_string())))
    }

    async fn fork_named(self: &Arc<Self>, id: InstanceId, asked: Asked) -> Result<Forked, Refusal> {
        let begin = Instant::now();
        let card = self.card(id)?;
        let function = self.get_by_key(&card.function);
        let function = function.ok_or_else(|| unknown(id))?;
        // One after the other: what is admitted is there before the next is looked at.
        let _turn = self.holding.lock().await;
        let memory = self.admit_held(&function, asked)?;
        let runner = self.take_named(&card)?;
        let forking = Forking::of(&card);
        let branched = runner.branch(&*self.boot).await;
        drop(forking);
        let branch = match branched {
            Ok(branch) => {
                self.put_back_named(runner);
                branch
            }
            Err(BranchError::Refused(reason)) => {
                self.put_back_named(runner);
                return Err(Refusal::ResourceConflict(format!(
                    "Instance {id} cannot be copied: {reason}"
                )));
            }
            Err(BranchError::Ended(reason)) => {
                drop(runner);
                return Err(Refusal::ResourceNotFound(format!(
                    "Instance {id} has ended: {reason}"
                )));
            }
        };
        let source = Source::Branch(branch.image);
        let made = self.make_held(&function, &card.revision, &source, asked.count);
        let made = made.await?;
        let instances = self.hold(&function, made, asked, memory, Some(id));
        let forked = Forked {
            from: id,
            instances,
            pause_us: branch.report.pause_us,
            copied_pages: branch.report.saved_pages,
            total_us: u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX),
        };
        tracing::info!(
            function = function.key,
            instance = %id,
            copies = forked.instances.len(),
            pause_us = forked.pause_us,
            copied_pages = forked.copied_pages,
            total_us = forked.total_us,
            "an instance was copied"
        );
        Ok(forked)
    }
}
