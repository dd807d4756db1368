//! What the daemon asks for. Every request may come again, after a pager died over it.

use std::ops::Range;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use rouse_snapshot::model::PAGE_SIZE;

use super::super::arena::MAX_POOLS_OF_WATCH;
use super::super::batch::chain;
use super::super::protocol::{Failure, Notice, Outcome, Request, WireMapping};
use super::super::ranges::{Mapped, Ranges};
use super::super::source::Names;
use super::control::Received;
use super::demand::Unusable;
use super::events::spans;
use super::jobs::Goal;
use super::timers::{self, Timer};
use super::{Engine, close_slot_fd};
use crate::uffd::{Events, Neighbours, Userfaultfd};

/// Requests taken at a time, before faults are looked at again.
const AT_A_TIME: usize = 8;

fn failure<T>(reason: Failure, detail: impl Into<String>) -> Result<T, (Failure, String)> {
    Err((reason, detail.into()))
}

impl Engine {
    /// Takes what the daemon has sent.
    pub(super) fn receive(&mut self) -> std::io::Result<()> {
        for _ in 0..AT_A_TIME {
            match self.control.receive()? {
                Received::Nothing => break,
                Received::Closed => {
                    self.lose_daemon();
                    break;
                }
                Received::Packet(bytes, fds) => match Request::decode(&bytes) {
                    Some((id, request)) => self.serve(id, request, fds),
                    None => {
                        let detail = "a request that cannot be understood".to_owned();
                        self.control.send(Notice::Trouble { token: 0, detail });
                    }
                },
            }
        }
        Ok(())
    }

    pub(super) fn answer(&mut self, id: u64, outcome: Outcome) {
        self.control.send(Notice::Answer { id, outcome });
    }

    fn serve(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let outcome = match request {
            Request::AddPool {
                pool,
                pages,
                source,
            } => self.add_pool(pool, pages, &source, fds.collect()),
            Request::RemovePool { pool } => self.remove_pool(pool),
            Request::Echo => Ok(0),
            Request::Register {
                token,
                prefetch,
                neighbours,
                mappings,
            } => match self.register(token, &mappings, neighbours, [fds.next(), fds.next()]) {
                Ok(pools) if prefetch => return self.prefetch(id, &pools, &[], false),
                Ok(_) => Ok(0),
                Err(error) => Err(error),
            },
            Request::Unregister { token } => self.unregister(token),
            Request::Prefetch { pool, first } => match self.slot_of(pool) {
                Ok(slot) => {
                    let whole = first.is_empty();
                    return self.prefetch(id, &[slot], &first, whole);
                }
                Err(error) => Err(error),
            },
            Request::FillAll { pool } => match self.slot_of(pool) {
                Ok(slot) => {
                    let goal = Goal::Everything { request: id };
                    self.start_job(goal, vec![slot], |_| true);
                    return;
                }
                Err(error) => Err(error),
            },
            Request::Fill { pool, ranges } => match self.slot_of(pool) {
                Ok(slot) => return self.fill_ranges(id, slot, ranges),
                Err(error) => Err(error),
            },
            Request::Evict { pool, ranges } => self.evict(pool, ranges),
            Request::HoldCompressed { pool } => self.hold_compressed(pool, fds.next()),
            Request::DropCompressed { pool } => self.drop_compressed(pool),
        };
        self.answer(id, outcome);
    }

    fn slot_of(&self, pool: u64) -> Result<usize, (Failure, String)> {
        match self.arena.find_pool(pool) {
            Some(slot) => Ok(slot),
            None => failure(Failure::UnknownPool, format!("there is no pool {pool}")),
        }
    }

    fn add_pool(
        &mut self,
        pool: u64,
        pages: u64,
        source: &Names,
        mut files: Vec<OwnedFd>,
    ) -> Outcome {
        if self.arena.find_pool(pool).is_some() {
            return Ok(0);
        }
        let of_source = files.split_off(files.len().min(1));
        let (Some(file), Some(source)) = (files.pop(), source.with(of_source)) else {
            return failure(Failure::Malformed, "a pool without its files");
        };
        let Some(slot) = self.arena.free_pool() else {
            return failure(Failure::Full, "there are too many pools");
        };
        let held = source.map(OwnedFd::as_raw_fd);
        let cell = &self.arena.pools[slot];
        if cell.occupy(pool, file.as_raw_fd(), pages, &held).is_none() {
            return failure(Failure::Malformed, "the pool has too many files");
        }
        // The slot owns them now.
        let _ = file.into_raw_fd();
        source.into_files().for_each(|file| {
            let _ = file.into_raw_fd();
        });
        Ok(0)
    }

    fn remove_pool(&mut self, pool: u64) -> Outcome {
        let Some(slot) = self.arena.find_pool(pool) else {
            return Ok(0);
        };
        // In the slot first: that is where the next pager looks.
        self.arena.pools[slot].set_leaving();
        self.leaving.insert(slot);
        self.let_pools_go();
        Ok(0)
    }

    /// Frees the pools that are to go and that nobody maps any more.
    pub(super) fn let_pools_go(&mut self) {
        let unused = |slot: &&usize| !self.is_pool_used(**slot);
        let gone: Vec<usize> = self.leaving.iter().filter(unused).copied().collect();
        for slot in gone {
            self.leaving.remove(&slot);
            self.free_pool(slot);
        }
    }

    fn free_pool(&mut self, slot: usize) {
        self.pools.remove(&slot);
        self.mapped.remove(&slot);
        let cell = &self.arena.pools[slot];
        let pool = cell.id();
        self.reported.retain(|(reported, _, _)| *reported != pool);
        let descriptors = cell.descriptors();
        cell.done.move_to(&self.arena.counters.gone);
        cell.free();
        descriptors.into_iter().for_each(close_slot_fd);
    }

    /// Returns the slots of the pools that are mapped.
    fn register(
        &mut self,
        token: u64,
        mappings: &[WireMapping],
        neighbours: Neighbours,
        [uffd, record]: [Option<OwnedFd>; 2],
    ) -> Result<Vec<usize>, (Failure, String)> {
        let Some(uffd) = uffd else {
            return failure(Failure::Malformed, "a registration without a userfaultfd");
        };
        let (ranges, pools) = self.resolve(mappings)?;
        let slots = || pools.iter().map(|pool| *pool as usize).collect();
        let known = (self.arena.used_watches()).find(|slot| {
            let cell = &self.arena.watches[*slot];
            cell.token() == token && !cell.is_child()
        });
        if known.is_some_and(|slot| self.arena.watches[slot].is_registered()) {
            return Ok(slots());
        }
        // Of a registration that was not finished, everything is done again.
        if let Some(slot) = known {
            self.forget(slot);
        }
        let Some(slot) = self.arena.free_watch() else {
            return failure(Failure::Full, "too many processes are watched");
        };
        let fd = uffd.into_raw_fd();
        let cell = &self.arena.watches[slot];
        let record = record.map(IntoRawFd::into_raw_fd);
        cell.occupy(fd, record, token, false, &pools, &ranges);
        let uffd = Userfaultfd::new(self.borrow(fd));
        let registered = uffd.enable(Events::All).and_then(|()| {
            spans(&ranges)
                .into_iter()
                .try_for_each(|(address, bytes)| uffd.register(address, bytes, neighbours))
        });
        if let Err(error) = registered {
            // The instance has not run yet; it is ended by whoever sees the answer.
            self.forget(slot);
            let detail = format!("cannot register: {}", chain(&error));
            return failure(Failure::Kernel, detail);
        }
        self.watch(slot, fd, token, pools.clone(), ranges);
        self.resume_record(slot);
        self.arena.watches[slot].set_registered();
        Ok(slots())
    }

    /// Finds the pools that mappings name; none may reach beyond its pool.
    fn resolve(&self, mappings: &[WireMapping]) -> Result<(Ranges, Vec<u32>), (Failure, String)> {
        let (mut ranges, mut pools) = (Ranges::default(), Vec::new());
        for mapping in mappings {
            let slot = self.slot_of(mapping.pool)?;
            let cell = &self.arena.pools[slot];
            let inside =
                (mapping.page.checked_add(mapping.pages)).is_some_and(|end| end <= cell.pages());
            let addressable = mapping.address.is_multiple_of(PAGE_SIZE)
                && (mapping.pages.checked_mul(PAGE_SIZE))
                    .and_then(|bytes| mapping.address.checked_add(bytes))
                    .is_some();
            if !inside || !addressable || mapping.pages == 0 {
                let detail = format!("a mapping that cannot be: {mapping:?}");
                return failure(Failure::Malformed, detail);
            }
            let pool = slot as u32;
            if !pools.contains(&pool) {
                pools.push(pool);
            }
            ranges.insert(Mapped {
                address: mapping.address,
                pages: mapping.pages,
                pool,
                page: mapping.page,
            });
        }
        if pools.len() > MAX_POOLS_OF_WATCH {
            return failure(Failure::Full, "one process maps too many pools");
        }
        Ok((ranges, pools))
    }

    /// The instance ends: it and what it forked are served until their memory is gone.
    fn unregister(&mut self, token: u64) -> Outcome {
        for slot in self.arena.used_watches() {
            let cell = &self.arena.watches[slot];
            if cell.token() == token {
                cell.set_ending();
                // Never finished: nobody has run on it.
                if !self.watches.contains_key(&slot) {
                    self.forget(slot);
                }
            }
        }
        self.bury(Some(token));
        if self.watches.values().any(|watch| watch.token == token) {
            self.timers.add(timers::ENDING, Timer::Ending(token));
        }
        Ok(0)
    }

    /// Reads stored pieces from a copy in memory from now on.
    fn hold_compressed(&mut self, pool: u64, copy: Option<OwnedFd>) -> Outcome {
        let slot = self.slot_of(pool)?;
        let Some(copy) = copy else {
            return failure(Failure::Malformed, "no memory file with stored pieces");
        };
        // In the slot first: that is where the next pager looks.
        let fd = copy.into_raw_fd();
        let before = self.arena.pools[slot].set_compressed(Some(fd));
        before.into_iter().for_each(close_slot_fd);
        let copy = rustix::io::fcntl_dupfd_cloexec(self.borrow(fd), 3);
        // One that is opened later finds it in its slot.
        if let Some(work) = self.pools.get_mut(&slot) {
            match copy {
                Ok(copy) => work.open.hold(copy),
                Err(error) => return failure(Failure::Kernel, chain(&error)),
            }
        }
        Ok(0)
    }

    /// Reads stored pieces from their packs again.
    fn drop_compressed(&mut self, pool: u64) -> Outcome {
        let slot = self.slot_of(pool)?;
        if let Some(work) = self.pools.get_mut(&slot) {
            work.open.let_go();
        }
        let before = self.arena.pools[slot].set_compressed(None);
        before.into_iter().for_each(close_slot_fd);
        Ok(0)
    }

    /// Takes pages out. That nobody has pinned the pool is the daemon's business.
    fn evict(&mut self, pool: u64, ranges: Vec<Range<u64>>) -> Outcome {
        let slot = self.slot_of(pool)?;
        let target = match self.pool(slot) {
            Ok(work) => work.target.clone(),
            Err(Unusable { reason, detail }) => return failure(reason, detail),
        };
        let mut evicted = 0;
        for range in ranges {
            match target.evict(range) {
                Ok(pages) => evicted += pages,
                Err(error) => return failure(Failure::Kernel, chain(&error)),
            }
        }
        self.arena.pools[slot].done.evicted.add(evicted);
        Ok(evicted)
    }
}
