//! The test's side: keeper, pager, pools and instances.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Receiver;

use rouse_pool::keeper::{self, PagerError, PagerEvent, PagerHandle, PoolMapping, Registration};
use rouse_pool::uffd::Device;
use rouse_pool::{PagedPool, PoolId, PoolSource, SparsePool, TouchRecord};

use crate::contents::{self, Stored};
use crate::inside::{self, Body};
use crate::socket;

/// A keeper, a pager, and instances that wait for pools.
pub struct Stage {
    pub pager: PagerHandle,
    pub events: Receiver<PagerEvent>,
    pub keeper: u32,
    dir: tempfile::TempDir,
    waiting: Vec<Option<(i32, OwnedFd)>>,
    next_pool: Cell<u64>,
}

/// A pool of known contents.
pub struct TestPool {
    pub pool: PagedPool,
    pub seed: u64,
}

impl Stage {
    /// Forks one instance for each body, then the keeper.
    pub fn start(bodies: Vec<Body>) -> Self {
        let device = Device::open().unwrap();
        let waiting = bodies
            .iter()
            .map(|body| Some(inside::fork(&device, body)))
            .collect();
        drop(device);
        let keeper = keeper::start().unwrap();
        let pid = keeper.pid();
        let (pager, events) = keeper.connect().unwrap();
        let first = events.recv().unwrap();
        assert_eq!(first, PagerEvent::Started { generation: 1 });
        Self {
            pager,
            events,
            keeper: pid,
            dir: tempfile::tempdir().unwrap(),
            waiting,
            next_pool: Cell::new(1),
        }
    }

    /// A pool of that many pages; its number determines the contents.
    pub fn pool(&self, pages: u64) -> TestPool {
        self.pool_with(pages, |_| ())
    }

    /// The same, after something was done to its files.
    pub fn pool_with(&self, pages: u64, change: impl FnOnce(&mut Stored)) -> TestPool {
        let seed = self.next_pool.replace(self.next_pool.get() + 1);
        let dir = self.dir.path().join(seed.to_string());
        let mut stored = contents::store(&dir, seed, pages);
        change(&mut stored);
        self.pool_from(&stored.open(), pages, seed)
    }

    /// A pool of the contents that belong to `seed`, filled from somewhere else.
    pub fn pool_from(&self, source: &PoolSource, pages: u64, seed: u64) -> TestPool {
        let sparse = SparsePool::new("test", pages).unwrap();
        let added = self.pager.add_pool(PoolId(seed), sparse, source);
        TestPool {
            pool: added.unwrap(),
            seed,
        }
    }

    /// Lets an instance map pools and run.
    pub fn launch(&mut self, instance: usize, pools: &[&TestPool], prefetch: bool) -> Running {
        self.try_launch(instance, pools, prefetch).unwrap()
    }

    /// The same, with a record of what it touches.
    pub fn launch_recorded(
        &mut self,
        instance: usize,
        pools: &[&TestPool],
        prefetch: bool,
        record: &TouchRecord,
    ) -> Running {
        self.start_instance(instance, pools, |pager, uffd, mappings| {
            pager.register_recorded(uffd, mappings, prefetch, record)
        })
        .unwrap()
    }

    pub fn try_launch(
        &mut self,
        instance: usize,
        pools: &[&TestPool],
        prefetch: bool,
    ) -> Result<Running, PagerError> {
        self.start_instance(instance, pools, |pager, uffd, mappings| {
            pager.register(uffd, mappings, prefetch)
        })
    }

    fn start_instance(
        &mut self,
        instance: usize,
        pools: &[&TestPool],
        register: impl FnOnce(&PagerHandle, OwnedFd, &[PoolMapping]) -> Result<Registration, PagerError>,
    ) -> Result<Running, PagerError> {
        let (pid, control) = self.waiting[instance].take().expect("launched once");
        let words: Vec<u64> = pools
            .iter()
            .flat_map(|pool| [pool.seed, pool.pool.pages()])
            .collect();
        let views: Vec<_> = pools.iter().map(|pool| pool.pool.registered()).collect();
        let fds: Vec<_> = views.iter().map(|view| view.as_fd()).collect();
        socket::send(&control, &words, &fds);
        let (addresses, mut fds) = socket::receive(&control).expect("the instance lives");
        let mappings: Vec<PoolMapping> = (pools.iter().zip(addresses))
            .map(|(pool, address)| PoolMapping {
                address,
                pages: pool.pool.pages(),
                pool: pool.pool.id(),
                pool_page: 0,
            })
            .collect();
        let uffd = fds.pop().expect("the instance has made a userfaultfd");
        let registration = register(&self.pager, uffd, &mappings);
        let running = |registration| Running {
            pid,
            control,
            registration: Some(registration),
            waited: false,
        };
        registration.map(|registration| {
            let running = running(registration);
            running.tell(1);
            running
        })
    }

    /// Waits for an event.
    pub fn event(&self, wanted: impl Fn(&PagerEvent) -> bool) -> PagerEvent {
        loop {
            let event = self.events.recv().expect("the pager's thread lives");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Returns when the pager has counted what it did for instances that have ended: it lets them go on before.
    pub fn settle(&self, pool: &TestPool) {
        assert_eq!(self.pager.evict(&pool.pool, &[0..0]).unwrap(), 0);
    }

    /// Forgets a pool of which all instances have ended, which the pager sees a moment later.
    pub fn remove(&self, pool: &TestPool) {
        self.pager.remove_pool(&pool.pool);
        while self.has(pool) {
            std::thread::yield_now();
        }
    }

    /// Does the pager know a pool?
    pub fn has(&self, pool: &TestPool) -> bool {
        self.pager.stats().pools.contains_key(&pool.pool.id())
    }

    /// Kills the pager that serves now, unless it is still the one of that generation.
    pub fn kill_pager(&self) {
        let pid = self.pager.pager_pid();
        kill(pid as i32);
    }

    /// Ends everything; no process is left.
    pub fn end(self) {
        self.pager.clone().shutdown();
        let keeper = format!("/proc/{}", self.keeper);
        assert!(!std::path::Path::new(&keeper).exists());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for (pid, _) in self.waiting.iter().flatten() {
            kill(*pid);
            inside::wait(*pid);
        }
    }
}

/// An instance that runs.
pub struct Running {
    pub pid: i32,
    control: OwnedFd,
    registration: Option<Registration>,
    waited: bool,
}

impl Running {
    pub fn token(&self) -> u64 {
        self.registration.as_ref().unwrap().token()
    }

    pub fn tell(&self, word: u64) {
        socket::send(&self.control, &[word], &[]);
    }

    /// What the instance says; `None` when it has ended.
    pub fn hear(&self) -> Option<u64> {
        socket::receive(&self.control).map(|(words, _)| words[0])
    }

    /// Waits for the instance's end: its exit status, or its signal as a negative number.
    pub fn wait(mut self) -> i32 {
        self.waited = true;
        inside::wait(self.pid)
    }

    /// As [`Self::wait`]; it stays registered.
    pub fn end(mut self) -> (i32, Registration) {
        self.waited = true;
        let status = inside::wait(self.pid);
        (status, self.registration.take().unwrap())
    }

    pub fn kill(self) {
        kill(self.pid);
        assert_eq!(self.wait(), -libc::SIGKILL);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.waited {
            kill(self.pid);
            inside::wait(self.pid);
        }
    }
}

pub fn kill(pid: i32) {
    // SAFETY: a process that this test has started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}
