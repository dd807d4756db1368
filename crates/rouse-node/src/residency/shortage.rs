//! The pager has no memory for a page that somebody waits for: others' pages go at once.
//!
//! It tries again for five seconds, so what goes now is what its next attempt finds. The budget may be right and memory short
//! all the same: something else on the host, or in the pager's control group, has taken it.

use std::sync::Arc;

use rouse_pool::cost::Budgets;
use rouse_snapshot::model::PAGE_SIZE;

use super::plan::{self, Action, Candidate};
use super::{act, gather};
use crate::node::Node;

/// How often there was none. Asks nobody.
pub(super) fn count(node: &Node) -> u64 {
    node.boot.pager_stats().map_or(0, |stats| stats.shortages)
}

/// Lets half of what functions hold go, the coldest first, whoever uses it: running instances get it back when they touch it.
pub(super) async fn make_room(node: &Arc<Node>) {
    let found = {
        let node = Arc::clone(node);
        tokio::task::spawn_blocking(move || gather(&node)).await
    };
    // Cancelled only when the node ends.
    let Ok(found) = found else { return };
    let loaded = found.functions;
    let candidates: Vec<Candidate> = loaded
        .iter()
        .map(|one| Candidate {
            is_in_use: false,
            ..one.candidate
        })
        .collect();
    let held: u64 = candidates.iter().map(|one| one.resident_pages).sum();
    let budgets = Budgets {
        dram: held * PAGE_SIZE / 2,
        // A copy of what is on disk takes memory, too.
        compressed: 0,
        ..node.residency.budgets()
    };
    let inputs = node.residency.inputs();
    let decisions = plan::plan(&inputs, &budgets, node.residency.idle_limit, &candidates);
    tracing::warn!(held_pages = held, "the pager is short of memory");
    for (one, decision) in loaded.iter().zip(&decisions) {
        if matches!(decision.action, Action::Release | Action::Unload) {
            act(node, one, decision.action).await;
        }
    }
}
