//! What can be seen of the launcher from outside: whether its processes live, and what they have done.

use std::sync::{Arc, PoisonError};

use rouse_pool::keeper::PagerStats;
use tokio::sync::Notify;

use super::Launcher;
use super::paging::Paging;
use crate::stock::StockCounts;

impl Launcher {
    /// Heard whenever the pager has no memory for a page that somebody waits for; it tries again for five seconds.
    pub fn shortage(&self) -> Arc<Notify> {
        let paging = self.inner.paging.as_ref();
        paging.map(Paging::shortage).unwrap_or_default()
    }

    /// Why no instance can be started any more, in sentences. Empty as long as all is well.
    pub fn problems(&self) -> Vec<&'static str> {
        let paging = self.inner.paging.as_ref();
        let problems = [
            (
                self.inner.spawner.is_gone(),
                "the spawner has ended: no sandbox can be made",
            ),
            (
                paging.is_some_and(Paging::is_gone),
                "the pager has ended: no page can be brought in",
            ),
        ];
        problems
            .into_iter()
            .filter_map(|(is_so, problem)| is_so.then_some(problem))
            .collect()
    }

    /// What became of the sandboxes that were made ahead, for all sets of limits together.
    pub fn sandbox_counts(&self) -> StockCounts {
        let sandboxes = self
            .inner
            .sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let counts = sandboxes.values().map(|stock| stock.counts());
        counts.fold(StockCounts::default(), StockCounts::plus)
    }

    /// What the pagers have done since the start. `None` on hosts where there is none.
    pub fn pager_stats(&self) -> Option<PagerStats> {
        self.inner.paging.as_ref().map(Paging::stats)
    }
}
