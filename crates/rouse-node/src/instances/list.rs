//! Finding instances by name, and ending them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::InstanceId;
use super::roster::Card;
use crate::engine::lifecycle::State;
use crate::engine::runner::Runner;
use crate::function::record::key_parts;
use crate::node::Node;
use crate::refusal::Refusal;

/// An instance that can be named.
#[derive(Debug, Clone, Serialize)]
pub struct InstanceReport {
    /// Its name.
    pub id: InstanceId,
    /// Name of its function.
    pub function: String,
    /// Version of it.
    pub version: String,
    /// `held` for whoever knows its name, or `kept` for any request.
    pub kind: &'static str,
    /// `waiting`, `answering`, `forking`, or `ending`.
    pub state: &'static str,
    /// The instance that it is a copy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<InstanceId>,
    /// When it got its name, milliseconds since the epoch.
    pub since_ms: u64,
    /// Events that it has answered since then.
    pub answered: u64,
}

impl From<&Card> for InstanceReport {
    fn from(card: &Card) -> Self {
        let (name, version) = key_parts(&card.function);
        let is_forking = card.is_forking.load(Ordering::Relaxed);
        Self {
            id: card.id,
            function: name.to_owned(),
            version: version.to_owned(),
            kind: if card.is_held { "held" } else { "kept" },
            state: match card.state() {
                _ if is_forking => "forking",
                State::Booting | State::Ready => "waiting",
                State::Busy => "answering",
                State::Poisoned | State::Gone => "ending",
            },
            from: card.from,
            since_ms: card.since_ms,
            answered: card.answered.load(Ordering::Relaxed),
        }
    }
}

impl Node {
    /// All instances that can be named, the oldest first.
    pub fn instances(&self) -> Vec<InstanceReport> {
        let all = self.instances.all();
        all.iter()
            .map(|card| InstanceReport::from(&**card))
            .collect()
    }

    /// One of them.
    pub fn instance(&self, id: InstanceId) -> Result<InstanceReport, Refusal> {
        Ok(InstanceReport::from(&*self.card(id)?))
    }

    /// Ends an instance: now if it waits, else when it has answered.
    pub fn end_instance(&self, id: InstanceId) -> Result<(), Refusal> {
        let card = self.card(id)?;
        if card.is_held {
            return match self.instances.end_held(id) {
                true => Ok(()),
                false => Err(unknown(id)),
            };
        }
        let function = self.get_by_key(&card.function);
        match function.and_then(|function| function.take_idle_named(id)) {
            Some(runner) => drop(runner),
            None => return Err(busy(&card)),
        }
        Ok(())
    }

    pub(crate) fn card(&self, id: InstanceId) -> Result<Arc<Card>, Refusal> {
        self.instances.card(id).ok_or_else(|| unknown(id))
    }

    /// Takes an instance away from where it waits.
    pub(crate) fn take_named(&self, card: &Card) -> Result<Runner, Refusal> {
        let found = match card.is_held {
            true => self.instances.take_held(card.id),
            false => {
                let function = self.get_by_key(&card.function);
                function.and_then(|function| function.take_idle_named(card.id))
            }
        };
        match found {
            Some(runner) if runner.is_running() => Ok(runner),
            Some(_) => Err(unknown(card.id)),
            None if self.instances.card(card.id).is_none() => Err(unknown(card.id)),
            None => Err(busy(card)),
        }
    }

    /// Lets an instance wait again where it was taken from.
    pub(crate) fn put_back_named(&self, runner: Runner) {
        match runner.badge.as_ref().map(|badge| Arc::clone(&badge.card)) {
            Some(card) if !card.is_held => {
                if let Some(function) = self.get_by_key(&card.function) {
                    function.keep(runner);
                }
            }
            _ => self.instances.put_back(runner),
        }
    }
}

pub(super) fn unknown(id: InstanceId) -> Refusal {
    Refusal::ResourceNotFound(format!(
        "Instance not found: {id}. It has ended, or there never was one."
    ))
}

fn busy(card: &Card) -> Refusal {
    let does = match card.is_forking.load(Ordering::Relaxed) {
        true => "being copied",
        false => "answering a request",
    };
    Refusal::ResourceConflict(format!(
        "Instance {} is {does}; try again when it waits for one.",
        card.id
    ))
}
