//! Pages that somebody waits for.

use std::sync::Arc;

use super::super::batch::{
    Batch, Contents, Filled, Plan, Purpose, Stored, Unfilled, chain, hull, plans,
};
use super::super::protocol::{Failure, Notice};
use super::super::source::OpenSource;
use super::super::target::Target;
use super::Engine;
use super::timers::{self, Timer};
use crate::uffd::{Answered, Userfaultfd};

/// A thread that waits for a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    /// Of its process.
    pub slot: usize,
    pub address: u64,
    pub thread: u32,
}

/// Why a pool cannot be used.
#[derive(Debug)]
pub(super) struct Unusable {
    pub reason: Failure,
    pub detail: String,
}

impl Unusable {
    fn new(reason: Failure, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { reason, detail }
    }
}

/// In the place of a piece's number: who waits for the pool to be opened at all.
const OPENING: usize = usize::MAX;

/// A pool in use.
#[derive(Debug)]
pub(super) struct PoolWork {
    pub open: OpenSource,
    pub target: Arc<Target>,
}

impl PoolWork {
    pub fn contents(&self) -> Contents {
        Contents {
            map: self.open.map.clone(),
            decoder: self.open.decoder.clone(),
            target: self.target.clone(),
        }
    }
}

impl Engine {
    /// The pool of a slot, opened if it is not.
    pub(super) fn pool(&mut self, slot: usize) -> Result<&mut PoolWork, Unusable> {
        if !self.pools.contains_key(&slot) {
            let work = self.open_pool(slot)?;
            self.pools.insert(slot, work);
        }
        self.pools
            .get_mut(&slot)
            .ok_or_else(|| Unusable::new(Failure::Damaged, "the pool cannot be opened"))
    }

    fn open_pool(&self, slot: usize) -> Result<PoolWork, Unusable> {
        let none = || Unusable::new(Failure::Damaged, "there is no such pool");
        let scarce = |what, error: &dyn std::error::Error| {
            Unusable::new(Failure::Memory, format!("{what}: {}", chain(error)))
        };
        let cell = self.arena.pools.get(slot).filter(|cell| cell.is_used());
        let cell = cell.ok_or_else(none)?;
        let source = cell.source().ok_or_else(none)?;
        let source = source.map(|fd| self.borrow(*fd));
        let mut open = OpenSource::open(&source, cell.pages())
            .map_err(|error| Unusable::new(error.failure(), chain(&error)))?;
        if let Some(fd) = cell.compressed() {
            let copy = rustix::io::fcntl_dupfd_cloexec(self.borrow(fd), 3);
            open.hold(copy.map_err(|error| scarce("its copy cannot be used", &error))?);
        }
        let file = self.borrow(cell.fd());
        let target = Target::map(file, cell.pages(), self.own.clone())
            .map_err(|error| scarce("the pool cannot be mapped", &error))?;
        Ok(PoolWork {
            open,
            target: Arc::new(target),
        })
    }

    /// Whether somebody maps a pool, or something is being read for it: its slot must not become another pool's before.
    pub(super) fn is_pool_used(&self, pool: usize) -> bool {
        self.watches
            .values()
            .any(|watch| watch.pools.contains(&(pool as u32)))
            || self.jobs.values().any(|job| job.pools.contains(&pool))
            || self.demands.keys().any(|(other, _)| *other == pool)
    }

    /// Somebody waits for a page.
    pub(super) fn demand(&mut self, pool: usize, page: u64, waiter: Waiter) {
        self.arena.pools[pool].done.faults.add(1);
        let work = match self.pool(pool) {
            Ok(work) => work,
            Err(unusable) => return self.cannot_open(pool, page, waiter, unusable),
        };
        if work.target.is_present(page..page + 1) {
            return self.strike(waiter);
        }
        let (piece, _) = work.open.map.piece_of(page);
        match self.demands.get_mut(&(pool, piece)) {
            Some(waiters) => waiters.push(waiter),
            None => {
                self.demands.insert((pool, piece), vec![waiter]);
                match self.under_way.contains(&(pool, piece)) {
                    true => self.hurry(pool, piece),
                    false => self.start_demand(pool, piece),
                }
            }
        }
    }

    /// Somebody waits for a page of a pool that cannot be opened. If only something was short, it is tried again.
    fn cannot_open(&mut self, pool: usize, page: u64, waiter: Waiter, unusable: Unusable) {
        let Unusable { reason, detail } = unusable;
        self.report(pool, page, Some(waiter), reason, detail.clone());
        if reason == Failure::Memory {
            self.demands
                .entry((pool, OPENING))
                .or_default()
                .push(waiter);
            self.timers
                .add(timers::MEMORY, Timer::Memory(pool, OPENING));
        } else {
            self.poison(waiter, reason, &detail);
        }
    }

    /// Tries again to open a pool that somebody waits for.
    fn retry_opening(&mut self, pool: usize) {
        match self.pool(pool).map(drop) {
            Err(unusable) if unusable.reason == Failure::Memory && self.may_try(pool, OPENING) => {
                self.timers
                    .add(timers::MEMORY, Timer::Memory(pool, OPENING));
            }
            opened => {
                self.memory_attempts.remove(&(pool, OPENING));
                for waiter in self.demands.remove(&(pool, OPENING)).unwrap_or_default() {
                    match &opened {
                        Ok(()) => self.fault(waiter, 0),
                        Err(Unusable { reason, detail }) => self.poison(waiter, *reason, detail),
                    }
                }
            }
        }
    }

    /// Counts attempts that fail for want of memory, and says whether there may be another.
    fn may_try(&mut self, pool: usize, piece: usize) -> bool {
        let attempts = self.memory_attempts.entry((pool, piece)).or_insert(0);
        *attempts += 1;
        *attempts < timers::MAX_MEMORY
    }

    /// Somebody waits for a piece that a job is filling: if it only waits for a decoder, it is decoded here and now. Else it is being
    /// read or decoded, and whoever waits goes on when it is done.
    fn hurry(&mut self, pool: usize, piece: usize) {
        if let Some((batch, contents)) = self.decoders.take_back(pool, piece) {
            self.ahead -= 1;
            let filled = batch.fill(&contents, &mut self.scratch);
            self.finish_batch(batch, filled);
        }
    }

    /// Does somebody wait for one of its pieces?
    fn is_waited_for(&self, batch: &Batch) -> bool {
        (batch.pieces.iter()).any(|piece| self.demands.contains_key(&(batch.pool, *piece)))
    }

    fn start_demand(&mut self, pool: usize, piece: usize) {
        let plan = match self.pool(pool) {
            Ok(work) => plans(pool, &work.open.map, vec![piece]).pop(),
            Err(_) => None,
        };
        if let Some(plan) = plan {
            self.start_plan(plan, Purpose::Demand);
        }
    }

    /// Begins to read what a plan needs, or to fill it if that is nothing.
    pub(super) fn start_plan(&mut self, plan: Plan, purpose: Purpose) {
        let Plan {
            pool,
            pieces,
            read,
            is_first,
        } = plan;
        let mut batch = Batch {
            pool,
            pieces,
            stored: Stored::Nowhere,
            purpose,
            is_first,
        };
        if purpose != Purpose::Demand {
            self.ahead += 1;
            let pieces = batch.pieces.iter().map(|piece| (pool, *piece));
            self.under_way.extend(pieces);
        }
        let Some(range) = read else {
            return self.fill(batch);
        };
        let pack = batch.pieces.first().copied().and_then(|piece| {
            let work = self.pool(pool).ok()?;
            let chunk = work.open.map.pieces()[piece].chunk()?;
            Some(work.open.place_of(chunk.pack))
        });
        match pack {
            Some(Ok(place)) => {
                if place.is_memory {
                    batch.stored = Stored::Held {
                        file: place.file,
                        base: place.base,
                        range,
                    };
                    return self.fill(batch);
                }
                if purpose == Purpose::Demand {
                    self.demand_reads += 1;
                }
                self.arena.pools[pool]
                    .done
                    .read
                    .add(range.end - range.start);
                self.reads.start(place.file, place.base, range, batch);
            }
            Some(Err(error)) => {
                let filled =
                    Filled::unreadable(&batch.pieces, &format!("cannot open its pack: {error}"));
                self.finish_unread(batch, filled);
            }
            None => {
                let filled = Filled::unreadable(&batch.pieces, "its pool is gone");
                self.finish_unread(batch, filled);
            }
        }
    }

    fn finish_unread(&mut self, batch: Batch, filled: Filled) {
        if batch.purpose != Purpose::Demand {
            self.ahead -= 1;
        }
        self.finish_batch(batch, filled);
    }

    /// Takes the reads that have ended: fills what is waited for, passes on the rest.
    pub(super) fn finish_reads(&mut self) {
        let mut later = Vec::new();
        for (mut batch, result) in self.reads.completions() {
            if batch.purpose == Purpose::Demand {
                self.demand_reads -= 1;
            }
            match result {
                Ok(stored) => {
                    batch.stored = Stored::Read(stored);
                    match batch.purpose {
                        Purpose::Demand => self.fill(batch),
                        Purpose::Job(_) => later.push(batch),
                    }
                }
                Err(error) => {
                    let mut filled = Filled::unreadable(
                        &batch.pieces,
                        &format!("cannot read its pack: {error}"),
                    );
                    if error.raw_os_error() == Some(libc::ENOMEM) {
                        filled.lacks_memory();
                        self.own.ballast.release();
                    }
                    self.finish_unread(batch, filled);
                }
            }
        }
        later.into_iter().for_each(|batch| self.fill(batch));
    }

    fn fill(&mut self, batch: Batch) {
        let contents = match self.pool(batch.pool) {
            Ok(work) => work.contents(),
            Err(Unusable { detail, .. }) => {
                let filled = Filled::unreadable(&batch.pieces, &detail);
                return self.finish_unread(batch, filled);
            }
        };
        match batch.purpose {
            Purpose::Demand => {
                let filled = batch.fill(&contents, &mut self.scratch);
                self.finish_batch(batch, filled);
            }
            Purpose::Job(_) if self.is_waited_for(&batch) => {
                self.ahead -= 1;
                let filled = batch.fill(&contents, &mut self.scratch);
                self.finish_batch(batch, filled);
            }
            Purpose::Job(_) => self.decoders.push(batch, contents),
        }
    }

    /// A batch is done: counts, and lets go on who waited for it.
    pub(super) fn finish_batch(&mut self, batch: Batch, filled: Filled) {
        let counters = &self.arena.pools[batch.pool].done;
        counters.synthesized.add(filled.synthesized);
        match batch.purpose {
            Purpose::Demand => counters.demanded.add(filled.pages),
            Purpose::Job(_) => counters.prefetched.add(filled.pages),
        }
        if let Some(range) = filled.mapped {
            let mapped = hull(self.mapped.remove(&batch.pool), range);
            self.mapped.insert(batch.pool, mapped);
        }
        match batch.purpose {
            Purpose::Job(job) => {
                for piece in &batch.pieces {
                    self.under_way.remove(&(batch.pool, *piece));
                }
                self.finish_job_batch(job, &batch, &filled.unfilled);
            }
            Purpose::Demand => {}
        }
        for piece in &batch.pieces {
            if !self.demands.contains_key(&(batch.pool, *piece)) {
                continue;
            }
            match filled.unfilled.iter().find(|other| other.piece == *piece) {
                Some(unfilled) => self.fail_demand(batch.pool, unfilled),
                None => self.end_demand(batch.pool, *piece),
            }
        }
        if let Stored::Read(stored) = batch.stored {
            self.reads.give_back(stored);
        }
    }

    /// Unmaps what was filled, of pools that no job is filling: nobody waits for that, and it costs as much for one page as
    /// for hundreds.
    pub(super) fn unmap_filled(&mut self) {
        let jobs = &self.jobs;
        let is_idle = |pool: &usize| jobs.values().all(|job| !job.pools.contains(pool));
        let idle: Vec<usize> = self.mapped.keys().copied().filter(is_idle).collect();
        for pool in idle {
            if let (Some(range), Some(work)) = (self.mapped.remove(&pool), self.pools.get(&pool)) {
                work.target.unmap(range);
            }
        }
    }

    fn end_demand(&mut self, pool: usize, piece: usize) {
        for waiter in self.demands.remove(&(pool, piece)).unwrap_or_default() {
            self.wake(waiter);
        }
        self.memory_attempts.remove(&(pool, piece));
    }

    fn fail_demand(&mut self, pool: usize, unfilled: &Unfilled) {
        let Unfilled {
            piece,
            reason,
            detail,
        } = unfilled;
        let first = self.demands.get(&(pool, *piece)).and_then(|w| w.first());
        let (first, page) = (first.copied(), self.first_page(pool, *piece));
        self.report(pool, page, first, *reason, detail.clone());
        if *reason == Failure::Memory && self.may_try(pool, *piece) {
            return self.timers.add(timers::MEMORY, Timer::Memory(pool, *piece));
        }
        self.memory_attempts.remove(&(pool, *piece));
        for waiter in self.demands.remove(&(pool, *piece)).unwrap_or_default() {
            let detail = match reason {
                Failure::Memory => {
                    format!("there was no memory for page {page} of its pool: {detail}")
                }
                _ => format!("page {page} of its pool is damaged: {detail}"),
            };
            self.poison(waiter, *reason, &detail);
        }
    }

    /// Nobody waits any more in a process whose memory is gone: its slot may become another's.
    pub(super) fn forget_waiters(&mut self, slot: usize) {
        for waiters in self.demands.values_mut() {
            waiters.retain(|waiter| waiter.slot != slot);
        }
        self.timers.forget(slot);
    }

    /// Tries again to fill a piece for which there was no memory.
    pub(super) fn retry(&mut self, pool: usize, piece: usize) {
        if piece == OPENING {
            return self.retry_opening(pool);
        }
        if self.demands.contains_key(&(pool, piece)) {
            self.start_demand(pool, piece);
        }
    }

    fn first_page(&self, pool: usize, piece: usize) -> u64 {
        self.pools
            .get(&pool)
            .and_then(|work| work.open.map.pieces().get(piece))
            .map_or(0, |piece| piece.first_page)
    }

    /// Tells the daemon what could not be filled; once for each place and process.
    pub(super) fn report(
        &mut self,
        pool: usize,
        page: u64,
        waiter: Option<Waiter>,
        reason: Failure,
        detail: String,
    ) {
        let token = waiter
            .and_then(|waiter| self.watches.get(&waiter.slot))
            .map_or(0, |watch| watch.token);
        if reason == Failure::Memory {
            self.arena.counters.shortages.add(1);
            // Thousands of pages that would have been brought in ahead: to say so of each takes the memory that there is not.
            if waiter.is_none() {
                return;
            }
        }
        let cell = &self.arena.pools[pool];
        if self.reported.len() > 100_000 {
            self.reported.clear();
        }
        if self.reported.insert((cell.id(), page, token)) {
            cell.done.damaged.add(u64::from(reason != Failure::Memory));
            self.control.send(Notice::Damaged {
                pool: cell.id(),
                page,
                token,
                reason,
                detail,
            });
        }
    }

    /// Makes a page unusable in one process: better a signal than a wrong byte or no end. Says why before.
    pub(super) fn poison(&mut self, waiter: Waiter, reason: Failure, detail: &str) {
        if let Some(watch) = self.watches.get(&waiter.slot) {
            self.control.send(Notice::Poisoned {
                token: watch.token,
                reason,
                detail: detail.to_owned(),
            });
            self.poison_now(waiter);
        }
    }

    /// To be tried again when the daemon has not heard why, or an unread event is in the way.
    pub(super) fn poison_now(&mut self, waiter: Waiter) {
        let Some(watch) = self.watches.get(&waiter.slot) else {
            return;
        };
        let (token, fd) = (watch.token, watch.fd);
        // Who sees the end of the instance can know why, even if this pager dies now.
        self.flush();
        if !self.control.has_said_all() {
            return self.timers.add(timers::POISON, Timer::Poison(waiter));
        }
        match Userfaultfd::new(self.borrow(fd)).poison(waiter.address) {
            Answered::Done => self.arena.counters.poisoned.add(1),
            Answered::Later => self.timers.add(timers::POISON, Timer::Poison(waiter)),
            Answered::Gone => {}
            Answered::Unsupported => {
                let detail = "a page could not be filled, and the kernel cannot poison it; \
                              whoever touches it waits until the instance is ended";
                let detail = detail.to_owned();
                self.control.send(Notice::Trouble { token, detail });
            }
        }
    }
}
