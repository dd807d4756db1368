//! Filling ahead: many pieces, in the order of the disk, for one end.

use std::collections::VecDeque;
use std::ops::Range;

use rouse_snapshot::page_map::{Class, PageMap, Piece};

use super::super::batch::{Batch, Plan, Purpose, Unfilled, plans};
use super::super::protocol::{Failure, Outcome};
use super::Engine;
use super::demand::{Unusable, Waiter};

/// Pages of a pool that is filled as a whole if it is not known what of it is needed: 8 MiB.
const FEW: u64 = 2048;

/// What happens when a job is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Goal {
    /// The working set of a pool is in, as far as it can be: counts for these requests.
    WorkingSet { requests: Vec<Waiting> },
    /// Everything is in: a request is answered, or fails with what is missing.
    Everything { request: u64 },
    /// These pages of a pool are in: as above.
    Ranges {
        request: u64,
        slot: usize,
        ranges: Vec<Range<u64>>,
    },
    /// Whoever waits in that process goes on.
    Rescue { slot: usize },
}

/// A request that waits for a working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    request: u64,
    /// For all of it, or only for what has to be in before the rest?
    whole: bool,
}

/// A request that ends when some working sets are in: how many are missing, and how many pages of pieces that could not
/// be filled.
#[derive(Debug)]
pub(super) struct Awaited {
    left: usize,
    missing: u64,
}

/// Pieces to be filled.
#[derive(Debug)]
pub(super) struct Job {
    goal: Goal,
    /// Slots of the pools concerned.
    pub pools: Vec<usize>,
    plans: VecDeque<Plan>,
    running: usize,
    /// Plans that have to be done before a working set counts as being in.
    first_left: usize,
    missing: u64,
    first_failure: Option<(Failure, String)>,
}

impl Job {
    /// Plans that hold some of these pages come before the others. Of what runs already it is waited for as it was.
    fn put_first(&mut self, map: &PageMap, first: &[Range<u64>]) {
        let is_wanted = |piece: &usize| {
            let held = map.pieces()[*piece].range();
            (first.iter()).any(|range| range.start < held.end && held.start < range.end)
        };
        let count = |plans: &VecDeque<Plan>| plans.iter().filter(|plan| plan.is_first).count();
        self.first_left -= count(&self.plans);
        for plan in &mut self.plans {
            plan.is_first = plan.pieces.iter().any(is_wanted);
        }
        self.first_left += count(&self.plans);
        // Stable: both parts stay in the order of the disk.
        let plans = self.plans.make_contiguous();
        plans.sort_by_key(|plan| !plan.is_first);
    }
}

impl Engine {
    /// Begins to fill what `wanted` chooses of some pools. Ends at once if nothing is absent.
    pub(super) fn start_job(
        &mut self,
        goal: Goal,
        pools: Vec<usize>,
        wanted: impl Fn(&Piece) -> bool,
    ) -> u64 {
        let (mut todo, mut first_failure) = (VecDeque::new(), None);
        for pool in &pools {
            match self.pool(*pool) {
                Ok(work) => {
                    let map = &work.open.map;
                    let present = work.target.present();
                    let is_present = |range: Range<u64>| match &present {
                        Some(present) => {
                            let at = present.partition_point(|other| other.end < range.end);
                            present
                                .get(at)
                                .is_some_and(|other| other.start <= range.start)
                        }
                        None => work.target.is_present(range),
                    };
                    let absent = (map.pieces().iter().enumerate())
                        .filter(|(_, piece)| wanted(piece))
                        .filter(|(_, piece)| !is_present(piece.range()))
                        .map(|(index, _)| index);
                    todo.extend(plans(*pool, map, absent.collect()));
                }
                Err(Unusable { reason, detail }) => {
                    self.report(*pool, 0, None, reason, detail.clone());
                    first_failure = Some((reason, detail));
                }
            }
        }
        let id = self.next_job;
        self.next_job += 1;
        let job = Job {
            goal,
            pools,
            first_left: todo.len(),
            plans: todo,
            running: 0,
            missing: 0,
            first_failure,
        };
        self.jobs.insert(id, job);
        id
    }

    /// Fills the hot pieces of pools, then answers a request. A pool whose working set is on its way is not begun anew. Of
    /// one of which nothing is known yet, all pieces are wanted if they are few: a small pool is filled in less time than
    /// the first call would need for its faults. Whoever does not wait for the `whole` of it waits
    /// for the pages that come `first`, if anybody has said which.
    pub(super) fn prefetch(
        &mut self,
        request: u64,
        pools: &[usize],
        first: &[Range<u64>],
        whole: bool,
    ) {
        let left = pools.len();
        if left == 0 {
            return self.answer(request, Ok(0));
        }
        self.awaited.insert(request, Awaited { left, missing: 0 });
        for pool in pools {
            let under_way = self
                .jobs
                .iter_mut()
                .find_map(|(id, job)| match &mut job.goal {
                    Goal::WorkingSet { requests } if job.pools == [*pool] => Some((*id, requests)),
                    _ => None,
                });
            let waiting = Waiting { request, whole };
            if let Some((id, requests)) = under_way {
                requests.push(waiting);
                self.put_first(id, *pool, first);
                continue;
            }
            let requests = vec![waiting];
            let goal = Goal::WorkingSet { requests };
            let all = self.pool(*pool).is_ok_and(|work| {
                let map = &work.open.map;
                map.pages() <= FEW && map.pieces().iter().all(|piece| piece.class != Class::Hot)
            });
            let job = self.start_job(goal, vec![*pool], |piece| all || piece.class == Class::Hot);
            self.put_first(job, *pool, first);
        }
    }

    /// What holds some of these pages of a pool is done first, of what has not been begun, if there are any. Ends requests whose part
    /// is in.
    fn put_first(&mut self, id: u64, pool: usize, first: &[Range<u64>]) {
        if let (Some(job), Some(work)) = (self.jobs.get_mut(&id), self.pools.get(&pool))
            && !first.is_empty()
        {
            job.put_first(&work.open.map, first);
        }
        self.end_first(id);
    }

    /// Ends the requests that wait for a working set, if what is waited for is in. The rest of the job goes on.
    fn end_first(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.first_left > 0 {
            return;
        }
        let missing = job.missing;
        if let Goal::WorkingSet { requests } = &mut job.goal {
            let ended: Vec<Waiting> = requests.extract_if(.., |waiting| !waiting.whole).collect();
            for waiting in ended {
                self.end_working_set(waiting.request, missing);
            }
        }
    }

    fn end_working_set(&mut self, request: u64, missing: u64) {
        if let Some(awaited) = self.awaited.get_mut(&request) {
            awaited.left -= 1;
            awaited.missing += missing;
            let Awaited { left, missing } = *awaited;
            if left == 0 {
                self.awaited.remove(&request);
                self.answer(request, Ok(missing));
            }
        }
    }

    /// Fills the pieces that hold some pages of a pool, then answers a request.
    pub(super) fn fill_ranges(&mut self, request: u64, slot: usize, ranges: Vec<Range<u64>>) {
        let wanted = ranges.clone();
        let goal = Goal::Ranges {
            request,
            slot,
            ranges,
        };
        self.start_job(goal, vec![slot], |piece| {
            let held = piece.range();
            (wanted.iter()).any(|range| range.start < held.end && held.start < range.end)
        });
    }

    /// Begins as many reads as the disk and the decoders can use; ends jobs that are done.
    pub(super) fn advance_jobs(&mut self) {
        // In turns, so that a large job does not stand before a small one.
        let mut progress = true;
        while progress {
            progress = false;
            let ids: Vec<u64> = self.jobs.keys().copied().collect();
            for id in ids {
                let Some(job) = self.jobs.get_mut(&id) else {
                    continue;
                };
                if job.plans.is_empty() {
                    if job.running == 0 {
                        self.end_job(id);
                    }
                    continue;
                }
                if !self.may_read_ahead() {
                    return;
                }
                if let Some(job) = self.jobs.get_mut(&id)
                    && let Some(plan) = job.plans.pop_front()
                {
                    job.running += 1;
                    self.start_plan(plan, Purpose::Job(id));
                    progress = true;
                }
            }
        }
    }

    /// A batch of a job is done.
    pub(super) fn finish_job_batch(&mut self, id: u64, batch: &Batch, unfilled: &[Unfilled]) {
        let pool = batch.pool;
        for Unfilled {
            piece,
            reason,
            detail,
        } in unfilled
        {
            let piece = self
                .pools
                .get(&pool)
                .and_then(|work| work.open.map.pieces().get(*piece).copied());
            let page = piece.map_or(0, |piece| piece.first_page);
            self.report(pool, page, None, *reason, detail.clone());
            if let Some(job) = self.jobs.get_mut(&id) {
                job.missing += piece.map_or(1, |piece| u64::from(piece.pages));
                job.first_failure
                    .get_or_insert_with(|| (*reason, format!("page {page}: {detail}")));
            }
        }
        if let Some(job) = self.jobs.get_mut(&id) {
            job.running -= 1;
            job.first_left -= usize::from(batch.is_first);
        }
        self.end_first(id);
    }

    fn end_job(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        match job.goal {
            Goal::WorkingSet { requests } => {
                for waiting in requests {
                    self.end_working_set(waiting.request, job.missing);
                }
            }
            Goal::Everything { request } => {
                let outcome = match job.first_failure {
                    Some(failure) => Err(failure),
                    None => self.all_present(&job.pools),
                };
                self.answer(request, outcome);
            }
            Goal::Ranges {
                request,
                slot,
                ranges,
            } => {
                let outcome = match job.first_failure {
                    Some(failure) => Err(failure),
                    None => self.are_present(slot, &ranges),
                };
                self.answer(request, outcome);
            }
            Goal::Rescue { slot } => self.end_rescue(slot, job.first_failure),
        }
    }

    /// What a pin promises is looked up where it is true: in the memory file.
    fn all_present(&mut self, pools: &[usize]) -> Outcome {
        for slot in pools {
            let pages = self.arena.pools[*slot].pages();
            self.are_present(*slot, std::slice::from_ref(&(0..pages)))?;
        }
        Ok(0)
    }

    fn are_present(&mut self, slot: usize, ranges: &[Range<u64>]) -> Outcome {
        let work = self
            .pool(slot)
            .map_err(|unusable| (unusable.reason, unusable.detail))?;
        let is_in = |range: &Range<u64>| work.target.is_present(range.clone());
        match ranges.iter().all(is_in) {
            true => Ok(0),
            false => {
                let detail = "pages were taken out while the pool was being filled";
                Err((Failure::Busy, detail.to_owned()))
            }
        }
    }

    /// Fills all that a process may map, because it is not known exactly what it waits for.
    pub(super) fn rescue(&mut self, waiter: Waiter) {
        let Some(watch) = self.watches.get_mut(&waiter.slot) else {
            return;
        };
        if let Some((_, waiting)) = &mut watch.rescue {
            return waiting.push(waiter);
        }
        let pools = watch.pools.iter().map(|pool| *pool as usize);
        let pools = pools.filter(|pool| self.arena.pools[*pool].is_used());
        let pools = pools.collect();
        self.arena.counters.rescues.add(1);
        let job = self.start_job(Goal::Rescue { slot: waiter.slot }, pools, |_| true);
        if let Some(watch) = self.watches.get_mut(&waiter.slot) {
            watch.rescue = Some((job, vec![waiter]));
        }
    }

    fn end_rescue(&mut self, slot: usize, failure: Option<(Failure, String)>) {
        let Some(watch) = self.watches.get_mut(&slot) else {
            return;
        };
        let waiting = watch
            .rescue
            .take()
            .map_or(Vec::new(), |(_, waiting)| waiting);
        for waiter in waiting {
            // Their page may be among those that could not be filled: without an end of this they
            // would come here again and again.
            match &failure {
                Some((reason, detail)) => self.poison(waiter, *reason, detail),
                None => self.wake(waiter),
            }
        }
    }
}
