//! The daemon's hold on the pager.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::process::{Pid, WaitOptions};

use super::PagerError;
use super::events::PagerEvent;
use super::link::Link;
use super::news::PageFault;
use crate::pager::arena::{Arena, PoolCounters};
use crate::pager::protocol::{MAX_MAPPINGS, MAX_RANGES, Request, WireMapping};
use crate::pager::{PoolSource, read_copy};
use crate::pool::{CompressedCopy, PagedPool, PoolId, SparsePool};
use crate::touches::TouchRecord;
use crate::uffd::Neighbours;

/// A run of pool pages that a process has mapped, privately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolMapping {
    /// Where it begins in the process.
    pub address: u64,
    /// Length in pages.
    pub pages: u64,
    /// What is mapped.
    pub pool: PoolId,
    /// The first page of it.
    pub pool_page: u64,
}

struct Inner {
    link: Link,
    arena: &'static Arena,
    next_token: AtomicU64,
    listener: Mutex<Option<JoinHandle<()>>>,
}

/// Tells the pager what to do. Cheap to clone, used by many threads at once.
///
/// All calls *block* until the pager has answered, for a round trip of about 50 us or as long as
/// the work takes; asynchronous code calls them on threads that may block. They survive the death
/// of a pager: the next one gets the request again.
///
/// When the last clone is dropped, the pager serves what is still registered, and ends.
#[derive(Clone)]
pub struct PagerHandle(Arc<Handle>);

/// Closes the link when the last handle goes. The listener has a share of [`Inner`], not of this.
struct Handle(Arc<Inner>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.link.close();
    }
}

impl std::fmt::Debug for PagerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PagerHandle").finish_non_exhaustive()
    }
}

impl PagerHandle {
    pub(super) fn connect(
        socket: OwnedFd,
        arena: &'static Arena,
        keeper: Pid,
    ) -> io::Result<(Self, Receiver<PagerEvent>)> {
        let (sender, events) = channel();
        let inner = Arc::new(Inner {
            link: Link::new(socket),
            arena,
            next_token: AtomicU64::new(1),
            listener: Mutex::new(None),
        });
        let shared = inner.clone();
        let listener = std::thread::Builder::new()
            .name("rouse-pager-link".into())
            .spawn(move || {
                shared.link.listen(&sender);
                let _ = sender.send(PagerEvent::Gone);
                drop(sender);
                // Ends when nothing is registered any more.
                while let Err(rustix::io::Errno::INTR) =
                    rustix::process::waitpid(Some(keeper), WaitOptions::empty())
                {}
            })?;
        *lock(&inner.listener) = Some(listener);
        Ok((Self(Arc::new(Handle(inner))), events))
    }

    pub(crate) fn call(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u64, PagerError> {
        self.0.0.link.call(request, descriptors)
    }

    /// Lets the pager fill a pool from `source`, whose files it has from then on, until the pool is removed. Reads nothing
    /// yet.
    ///
    /// # Errors
    /// [`PagerError::Full`], [`PagerError::Gone`]; [`PagerError::Malformed`] when the source has too many files.
    pub fn add_pool(
        &self,
        id: PoolId,
        pool: SparsePool,
        source: &PoolSource,
    ) -> Result<PagedPool, PagerError> {
        if !source.fits() {
            let detail = "the pages of the pool lie in too many files".to_owned();
            return Err(PagerError::Malformed(detail));
        }
        let request = Request::AddPool {
            pool: id.0,
            pages: pool.pages(),
            source: source.names(),
        };
        let files = source.files().map(AsFd::as_fd);
        let descriptors: Vec<_> = std::iter::once(pool.file()).chain(files).collect();
        self.call(&request, &descriptors)?;
        Ok(pool.into_paged(id, self.clone()))
    }

    /// Gives up a pool: no instance is registered with it any more. Those that map it go on; the pager forgets it when the
    /// last of them has ended. Does not wait.
    pub fn remove_pool(&self, pool: &PagedPool) {
        let pool = pool.id().0;
        self.0.0.link.post(&Request::RemovePool { pool });
    }

    /// Why an instance, or what it forked, has got `SIGBUS`, or `EFAULT` from a system call, if that was because a page could
    /// not be filled. `token` is its registration's, which must not be dropped yet. To be asked when the instance has ended or
    /// failed: whatever led to it is known then. Blocks for a round trip.
    ///
    /// # Errors
    /// [`PagerError::Gone`].
    pub fn fault_of(&self, token: u64) -> Result<Option<PageFault>, PagerError> {
        self.call(&Request::Echo, &[])?;
        Ok(self.0.0.link.fault_of(token))
    }

    /// Watches the memory of a process. Afterwards it may touch what it has mapped.
    ///
    /// `uffd` was made *by* that process ([`uffd::Device::create`](crate::uffd::Device::create)),
    /// which keeps no copy. The order of all steps is in `docs/pager.md`. With `prefetch`, returns
    /// when the working sets of the pools are in, as far as they could be filled.
    ///
    /// # Errors
    /// After an error the process must be ended before it touches anything.
    pub fn register(
        &self,
        uffd: OwnedFd,
        mappings: &[PoolMapping],
        prefetch: bool,
    ) -> Result<Registration, PagerError> {
        self.watch(uffd, mappings, prefetch, Neighbours::Mapped, None)
    }

    /// As [`Self::register`]; and the page tables of the process will say exactly which pages of these mappings it has
    /// touched: neighbours of what is read are not mapped along. Each first touch costs it a fault.
    ///
    /// # Errors
    /// As [`Self::register`].
    pub fn register_exactly(
        &self,
        uffd: OwnedFd,
        mappings: &[PoolMapping],
        prefetch: bool,
    ) -> Result<Registration, PagerError> {
        self.watch(uffd, mappings, prefetch, Neighbours::Left, None)
    }

    /// As [`Self::register_exactly`]; and the order in which it first touches these pages is written to `record`, as far as
    /// it touches them itself: processes that it forks are not recorded. Each first touch waits for the pager.
    ///
    /// # Errors
    /// As [`Self::register`].
    pub fn register_recorded(
        &self,
        uffd: OwnedFd,
        mappings: &[PoolMapping],
        prefetch: bool,
        record: &TouchRecord,
    ) -> Result<Registration, PagerError> {
        self.watch(uffd, mappings, prefetch, Neighbours::Reported, Some(record))
    }

    fn watch(
        &self,
        uffd: OwnedFd,
        mappings: &[PoolMapping],
        prefetch: bool,
        neighbours: Neighbours,
        record: Option<&TouchRecord>,
    ) -> Result<Registration, PagerError> {
        if mappings.len() > MAX_MAPPINGS {
            return Err(PagerError::TooManyMappings {
                found: mappings.len(),
                most: MAX_MAPPINGS,
            });
        }
        let token = self.0.0.next_token.fetch_add(1, Ordering::Relaxed);
        let mappings = mappings.iter().map(|mapping| WireMapping {
            address: mapping.address,
            pages: mapping.pages,
            pool: mapping.pool.0,
            page: mapping.pool_page,
        });
        let request = Request::Register {
            token,
            prefetch,
            neighbours,
            mappings: mappings.collect(),
        };
        // Also ends what a failed request has left.
        let registration = Registration {
            token,
            pager: self.clone(),
            _uffd: uffd,
        };
        let mut descriptors = vec![registration._uffd.as_fd()];
        descriptors.extend(record.map(TouchRecord::file));
        self.call(&request, &descriptors)?;
        Ok(registration)
    }

    /// Brings the working set of a pool in, and returns how many pages of it could not be filled.
    /// Whoever waits for a page meanwhile comes first.
    ///
    /// # Errors
    /// [`PagerError::UnknownPool`], [`PagerError::Gone`].
    pub fn prefetch(&self, pool: &PagedPool) -> Result<u64, PagerError> {
        let pool = pool.id().0;
        let request = Request::Prefetch {
            pool,
            first: Vec::new(),
        };
        self.call(&request, &[])
    }

    /// Begins to bring the working set of a pool in, and does not wait. A registration with `prefetch` that follows waits
    /// for what is left of it: of these pages of the pool, or, if there are none, of all.
    pub fn begin_prefetch(&self, pool: PoolId, first: &[Range<u64>]) {
        let first = match first.len() {
            ..=MAX_RANGES => first.to_vec(),
            _ => Vec::new(),
        };
        let pool = pool.0;
        self.0.0.link.post(&Request::Prefetch { pool, first });
    }

    /// Keeps what packs hold of a pool in memory, from where its pages are filled from now on. `source` must be that of
    /// the pool. Blocks for as long as reading takes. To be undone by [`Self::drop_compressed`].
    ///
    /// # Errors
    /// [`PagerError::Copy`] when it cannot be read.
    pub fn hold_compressed(
        &self,
        pool: &PagedPool,
        source: &PoolSource,
    ) -> Result<CompressedCopy, PagerError> {
        let copy = read_copy(source, pool.pages()).map_err(PagerError::Copy)?;
        let request = Request::HoldCompressed { pool: pool.id().0 };
        self.call(&request, &[copy.file()])?;
        Ok(copy)
    }

    /// Lets a copy go: pages are filled from the packs again.
    ///
    /// # Errors
    /// [`PagerError::UnknownPool`], [`PagerError::Gone`].
    pub fn drop_compressed(
        &self,
        pool: &PagedPool,
        copy: CompressedCopy,
    ) -> Result<(), PagerError> {
        let pool = pool.id().0;
        self.call(&Request::DropCompressed { pool }, &[])?;
        drop(copy);
        Ok(())
    }

    /// Takes pages out of a pool; the next touch brings them in again. Returns by how many pages
    /// the pool became smaller.
    ///
    /// # Errors
    /// [`PagerError::Pinned`] when somebody has pinned the pool.
    pub fn evict(&self, pool: &PagedPool, ranges: &[Range<u64>]) -> Result<u64, PagerError> {
        pool.evict(ranges)
    }

    /// What all pagers together have done. Asks nobody: the numbers lie in shared memory.
    pub fn stats(&self) -> PagerStats {
        let arena = self.0.0.arena;
        // First: a pool that goes meanwhile is missed, and not counted twice.
        let gone = PoolStats::of(0, &arena.counters.gone);
        let pools = arena.used_pools().map(|slot| {
            let cell = &arena.pools[slot];
            let stats = PoolStats::of(cell.pages(), &cell.done);
            (PoolId(cell.id()), stats)
        });
        PagerStats {
            generation: arena.generation.load(Ordering::Relaxed),
            watched: arena.used_watches().count() as u64,
            faults: arena.counters.faults.get(),
            rescues: arena.counters.rescues.get(),
            forks: arena.counters.forks.get(),
            moves: arena.counters.moves.get(),
            poisoned_pages: arena.counters.poisoned.get(),
            shortages: arena.counters.shortages.get(),
            pools: pools.collect(),
            gone,
        }
    }

    /// Have keeper and pager ended, so that nothing can be asked any more?
    pub fn is_gone(&self) -> bool {
        self.0.0.link.is_gone()
    }

    /// Pid of the pager that serves now.
    pub fn pager_pid(&self) -> u32 {
        self.0.0.arena.pager.load(Ordering::Relaxed)
    }

    /// Waits until pager and keeper have ended, which they do when all registered processes have.
    /// Nothing can be asked of the pager afterwards, by other clones neither.
    pub fn shutdown(self) {
        self.0.0.link.close();
        let listener = lock(&self.0.0.listener).take();
        if let Some(listener) = listener {
            // Panics there have been reported already.
            let _ = listener.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An instance whose memory is watched. To be dropped when its processes have ended.
///
/// Holds a copy of the userfaultfd: should keeper and pager both die, the instance waits for ever
/// where memory is absent, instead of reading zeros.
#[derive(Debug)]
pub struct Registration {
    token: u64,
    pager: PagerHandle,
    _uffd: OwnedFd,
}

impl Registration {
    /// By what [`PagerEvent`]s name the instance.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Tells the pager that the instance has ended, as dropping does.
    ///
    /// Processes of it that still live are served until they have ended.
    pub fn unregister(self) {}
}

impl Drop for Registration {
    fn drop(&mut self) {
        let token = self.token;
        self.pager.0.0.link.forget_faults_of(token);
        self.pager.0.0.link.post(&Request::Unregister { token });
    }
}

/// What the pagers of a node have done since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PagerStats {
    /// How many pagers there have been.
    pub generation: u64,
    /// Processes whose memory is watched now.
    pub watched: u64,
    /// Faults taken.
    pub faults: u64,
    /// Times that all that a process may map was filled, because it was not known exactly what it
    /// waited for.
    pub rescues: u64,
    /// Forks that were followed.
    pub forks: u64,
    /// Times that memory was moved, dropped or unmapped.
    pub moves: u64,
    /// Pages made unusable in an instance.
    pub poisoned_pages: u64,
    /// Times that there was no memory for a page that somebody waits for, or for saying so.
    pub shortages: u64,
    /// Of each pool.
    pub pools: HashMap<PoolId, PoolStats>,
    /// Of pools that are gone, all together.
    pub gone: PoolStats,
}

impl PagerStats {
    /// What was done with all pools that there have been; `pages` is the length of those that there are.
    pub fn total(&self) -> PoolStats {
        self.pools
            .values()
            .fold(self.gone, |total, pool| total.plus(pool))
    }
}

/// What was done with a pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Its length in pages.
    pub pages: u64,
    /// Faults on its pages.
    pub faults: u64,
    /// Pages filled because somebody waited for their piece.
    pub demanded_pages: u64,
    /// Pages filled ahead.
    pub prefetched_pages: u64,
    /// Of both, pages of zeros or one repeated byte, for which nothing was read.
    pub synthesized_pages: u64,
    /// Bytes read from packs.
    pub read_bytes: u64,
    /// Pages taken out.
    pub evicted_pages: u64,
    /// Pieces that could not be read or verified.
    pub damaged_pieces: u64,
}

impl PoolStats {
    fn of(pages: u64, done: &PoolCounters) -> Self {
        Self {
            pages,
            faults: done.faults.get(),
            demanded_pages: done.demanded.get(),
            prefetched_pages: done.prefetched.get(),
            synthesized_pages: done.synthesized.get(),
            read_bytes: done.read.get(),
            evicted_pages: done.evicted.get(),
            damaged_pieces: done.damaged.get(),
        }
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            pages: self.pages + other.pages,
            faults: self.faults + other.faults,
            demanded_pages: self.demanded_pages + other.demanded_pages,
            prefetched_pages: self.prefetched_pages + other.prefetched_pages,
            synthesized_pages: self.synthesized_pages + other.synthesized_pages,
            read_bytes: self.read_bytes + other.read_bytes,
            evicted_pages: self.evicted_pages + other.evicted_pages,
            damaged_pieces: self.damaged_pieces + other.damaged_pieces,
        }
    }
}
