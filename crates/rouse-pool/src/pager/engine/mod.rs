//! The pager's main thread: waits for everything at once, and never for one thing.
//!
//! ```text
//!  userfaultfds --faults--> demands --> reads --> decode here ----> fill, wake
//!       |                                 ^
//!       +------events--> ranges           |
//!  daemon ----requests-> jobs ---plans----+-----> decoder threads -> fill
//! ```
//!
//! Demand comes first: what somebody waits for is read and decoded by this thread, and nothing is
//! read ahead while such reads are under way.
//!
//! No record here has to be exact. Filling a page with its right contents is right whoever asked,
//! and however often; whoever is woken too early faults again; a fault at an address that is not
//! known, or that comes again although the page is there, is answered by filling all that the
//! process may map ([`rescue`](Engine::rescue)). That is what makes it safe for a pager to die at any point.

mod control;
mod demand;
mod events;
mod jobs;
mod requests;
mod takeover;
mod timers;
mod touches;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags};

use self::control::Control;
use self::demand::{PoolWork, Waiter};
use self::events::Watch;
use self::jobs::{Awaited, Job};
use self::timers::{Timer, Timers};
use super::arena::Arena;
use super::batch::{Batch, Decoders, Scratch};
use super::protocol::Notice;
use super::reads::Reads;
use super::reserve::Ballast;
use super::target::Own;
use crate::uffd::{Events, Userfaultfd};

/// What a readable descriptor stands for. Watches have their slot's number, from `FIRST_WATCH` on.
const CONTROL: u64 = 0;
const READS: u64 = 1;
const DECODERS: u64 = 2;
const KEEPER: u64 = 3;
const FIRST_WATCH: u64 = 16;

/// Batches that are read or decoded ahead at a time: all of a small working set, so that it costs the disk's latency once, and
/// at most 4 MiB of stored bytes.
const AHEAD: usize = 16;

/// The pager.
pub(crate) struct Engine {
    arena: &'static Arena,
    epoll: OwnedFd,
    control: Control,
    /// What all targets share.
    own: Arc<Own>,
    /// Pools that were used; others are known by their slots only. They stay open as long as the daemon has them: a page
    /// map and packs that were opened once can be used even when a snapshot has been stored anew since.
    pools: HashMap<usize, PoolWork>,
    /// Pools that go as soon as nobody maps them.
    leaving: HashSet<usize>,
    /// Between which pages of a pool the pager has filled it and not unmapped it since.
    mapped: HashMap<usize, Range<u64>>,
    watches: HashMap<usize, Watch>,
    reads: Reads<Batch>,
    decoders: Decoders,
    scratch: Scratch,
    /// Who waits for which piece: (slot of the pool, index in its page map).
    demands: HashMap<(usize, usize), Vec<Waiter>>,
    /// Pieces that jobs are reading or decoding: (slot of the pool, index in its page map).
    under_way: HashSet<(usize, usize)>,
    /// Reads that somebody waits for.
    demand_reads: usize,
    jobs: BTreeMap<u64, Job>,
    /// Requests that end when several working sets are in.
    awaited: HashMap<u64, Awaited>,
    next_job: u64,
    /// Batches of jobs that are being read or decoded.
    ahead: usize,
    timers: Timers,
    /// How often there was no memory for a piece that is waited for.
    memory_attempts: HashMap<(usize, usize), u32>,
    /// What was reported already: (id of the pool, page, instance).
    reported: HashSet<(u64, u64, u64)>,
    /// The keeper; taken out when it has died.
    keeper: Option<OwnedFd>,
    daemon_is_gone: bool,
}

impl Engine {
    /// Takes over from the pager before, if there was one.
    pub fn start(arena: &'static Arena, keeper: Pid) -> io::Result<Self> {
        // Before anything is opened here: what is not known now was left by the pager before.
        let control = Control::new(arena);
        let lost = takeover::sweep(arena)?;
        let uffd = takeover::make_uffd(arena)?;
        Userfaultfd::new(uffd.as_fd()).enable(Events::None)?;
        let ballast = Ballast::new()?;
        let mut engine = Self {
            arena,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            control,
            own: Arc::new(Own { uffd, ballast }),
            pools: HashMap::new(),
            leaving: arena
                .used_pools()
                .filter(|slot| arena.pools[*slot].is_leaving())
                .collect(),
            mapped: HashMap::new(),
            watches: HashMap::new(),
            reads: Reads::new(),
            decoders: Decoders::start()?,
            scratch: Scratch::default(),
            demands: HashMap::new(),
            under_way: HashSet::new(),
            demand_reads: 0,
            jobs: BTreeMap::new(),
            awaited: HashMap::new(),
            next_job: 0,
            ahead: 0,
            timers: Timers::default(),
            memory_attempts: HashMap::new(),
            reported: HashSet::new(),
            keeper: rustix::process::pidfd_open(keeper, PidfdFlags::empty()).ok(),
            daemon_is_gone: false,
        };
        engine.listen(engine.control.fd(), CONTROL)?;
        engine.listen(engine.decoders.wakeup(), DECODERS)?;
        if let Some(ring) = engine.reads.wakeup() {
            engine.listen(ring, READS)?;
        }
        match engine.keeper.as_ref().map(std::os::fd::AsRawFd::as_raw_fd) {
            Some(keeper) => engine.listen(keeper, KEEPER)?,
            None => engine.control.send(Notice::Orphaned),
        }
        engine.take_over(lost);
        // Before the first wait: the daemon sends nothing again until it is greeted.
        engine.flush();
        Ok(engine)
    }

    /// Serves until the daemon has gone and nothing is watched any more.
    pub fn run(mut self) -> io::Result<()> {
        let mut ready = Vec::with_capacity(64);
        while !(self.daemon_is_gone && self.watches.is_empty()) {
            self.wait(&mut ready)?;
            // Those who wait come first.
            for event in ready.iter().filter(|event| event.data.u64() >= FIRST_WATCH) {
                self.read_events((event.data.u64() - FIRST_WATCH) as usize);
            }
            self.finish_reads();
            for (batch, filled) in self.decoders.take() {
                self.ahead -= 1;
                self.finish_batch(batch, filled);
            }
            for event in &ready {
                match event.data.u64() {
                    CONTROL => self.receive()?,
                    KEEPER => self.lose_keeper(),
                    _ => {}
                }
            }
            self.run_timers();
            self.advance_jobs();
            self.let_pools_go();
            self.reads.submit();
            self.flush();
            self.unmap_filled();
        }
        Ok(())
    }

    fn wait(&self, ready: &mut Vec<epoll::Event>) -> io::Result<()> {
        let timeout = if self.reads.has_more() {
            Some(Duration::ZERO)
        } else {
            self.timers.next()
        };
        let timeout = timeout.and_then(|timeout| timeout.try_into().ok());
        ready.clear();
        let buffer = rustix::buffer::spare_capacity(ready);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends what is waiting for the daemon.
    fn flush(&mut self) {
        if self.control.flush(self.epoll.as_fd(), &self.own.ballast) {
            self.arena.counters.shortages.add(1);
            self.timers.add(timers::MEMORY, Timer::Flush);
        }
    }

    fn listen(&self, fd: RawFd, data: u64) -> io::Result<()> {
        // SAFETY: the descriptor is open: it is owned by a field of this value or by a slot.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let data = epoll::EventData::new_u64(data);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    fn lose_keeper(&mut self) {
        if let Some(keeper) = self.keeper.take() {
            let _ = epoll::delete(&self.epoll, &keeper);
            self.control.send(Notice::Orphaned);
        }
    }

    /// The daemon has closed its end: its instances are ending, and are served until they have.
    fn lose_daemon(&mut self) {
        if !std::mem::replace(&mut self.daemon_is_gone, true) {
            self.control.close(self.epoll.as_fd());
            self.timers.add(timers::SWEEP, Timer::Sweep);
        }
    }

    /// The descriptor of a slot, which stays open while the slot is used.
    fn borrow(&self, fd: RawFd) -> BorrowedFd<'_> {
        // SAFETY: slots' descriptors are closed only by `close_slot_fd`, which is called by this
        // thread when the slot is given up.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Whether a plan's read may begin now.
    fn may_read_ahead(&self) -> bool {
        self.demand_reads == 0 && self.ahead < AHEAD
    }
}

/// Closes a descriptor that a slot owned.
fn close_slot_fd(fd: RawFd) {
    use std::os::fd::FromRawFd;
    // SAFETY: the number was stored by `into_raw_fd` or by the kernel, and the slot that had it
    // has just been given up, so that nobody uses it any more.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}
