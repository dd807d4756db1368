//! The far tier of a node: what the operator has given, as long as it works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rouse_pool::{FarDirectory, FarMemory, NumaNode};

use crate::config::MemorySettings;
use crate::refusal::chain;

/// Far memory, and what may be held there.
#[derive(Debug)]
pub struct FarTier {
    memory: Option<FarMemory>,
    budget: u64,
    /// Why there is none, though one was asked for.
    missing: Option<String>,
    /// A NUMA node has refused pages. (A directory knows itself what has become of it.)
    has_refused: AtomicBool,
}

impl FarTier {
    /// Far memory as it is set. One that cannot be used is named, and functions stay elsewhere.
    pub fn new(settings: &MemorySettings) -> Self {
        let (memory, missing) = match find(settings) {
            Ok(memory) => (memory, None),
            Err(problem) => {
                tracing::warn!(problem, "there is no far memory: functions stay in DRAM");
                (None, Some(problem))
            }
        };
        let budget = match (&memory, settings.far_bytes) {
            (None, _) => 0,
            (Some(memory), 0) => memory.bytes().unwrap_or(0) / 4 * 3,
            (Some(_), bytes) => bytes,
        };
        Self {
            memory,
            budget,
            missing,
            has_refused: AtomicBool::new(false),
        }
    }

    /// Far memory, if it can be used.
    pub fn memory(&self) -> Option<FarMemory> {
        match self.problem() {
            Some(_) => None,
            None => self.memory.clone(),
        }
    }

    /// Bytes that may be held there now: a file system may have less room than the budget says.
    pub fn budget(&self) -> u64 {
        (self.memory()).map_or(0, |memory| memory.within(self.budget))
    }

    /// Why far memory that was asked for is not used.
    pub fn problem(&self) -> Option<String> {
        let refused = || {
            let is_refused = self.has_refused.load(Ordering::Relaxed);
            is_refused.then(|| "the far memory has refused pages".to_owned())
        };
        let problem = || self.memory.as_ref().and_then(FarMemory::problem);
        self.missing.clone().or_else(refused).or_else(problem)
    }

    /// Pages could not be brought there. A node that refuses once is not used until the next start; a directory says itself
    /// whether it was only full.
    pub(super) fn has_failed(&self) {
        if matches!(self.memory, Some(FarMemory::Node(_)))
            && !self.has_refused.swap(true, Ordering::Relaxed)
        {
            tracing::warn!("the far memory is not used any more");
        }
    }
}

fn find(settings: &MemorySettings) -> Result<Option<FarMemory>, String> {
    match (settings.far_node.map(NumaNode), &settings.far_dir) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("both a node and a directory are set".into()),
        (Some(node), None) if node.has_memory() => Ok(Some(FarMemory::Node(node))),
        (Some(node), None) => Err(format!("NUMA node {} has no memory", node.0)),
        (None, Some(path)) => match FarDirectory::open(path) {
            Ok(directory) => Ok(Some(FarMemory::Directory(Arc::new(directory)))),
            Err(error) => Err(chain(&error)),
        },
    }
}
