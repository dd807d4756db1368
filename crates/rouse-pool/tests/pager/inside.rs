//! An instance: a process without rights that maps pools as a restored function does.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rouse_pool::uffd::Device;
use rustix::mm::{MapFlags, ProtFlags};

use crate::contents::{self, PAGE};
use crate::socket;

/// What the function does.
pub type Body = Box<dyn Fn(&Inside)>;

/// The instance's own view.
pub struct Inside {
    pub maps: Vec<Map>,
    control: OwnedFd,
}

impl Inside {
    /// Tells the test something, and waits for its answer.
    pub fn ask(&self, word: u64) -> u64 {
        socket::send(&self.control, &[word], &[]);
        socket::receive(&self.control).map_or(0, |(words, _)| words[0])
    }
}

/// A pool, mapped.
#[derive(Debug, Clone, Copy)]
pub struct Map {
    pub start: *mut u8,
    pub pages: u64,
    pub seed: u64,
    /// First pool page.
    pub page: u64,
}

// SAFETY: only addresses; tests let threads touch different pages, or only read.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    pub fn at(&self, page: u64) -> *mut u8 {
        self.start.wrapping_add(page as usize * PAGE)
    }

    /// The bytes of a page as they are in memory.
    pub fn read(&self, page: u64) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        // SAFETY: mapped, and not written meanwhile by tests that read it.
        unsafe { std::ptr::copy_nonoverlapping(self.at(page), bytes.as_mut_ptr(), PAGE) };
        bytes
    }

    /// Panics unless every byte of these pages is right.
    pub fn verify(&self, pages: Range<u64>) {
        pages.for_each(|page| self.verify_page(page));
    }

    pub fn verify_page(&self, page: u64) {
        let mut expected = [0; PAGE];
        contents::page(self.seed, self.page + page, &mut expected);
        let found = self.read(page);
        if found != expected {
            let at = found
                .iter()
                .zip(&expected)
                .position(|(a, b)| a != b)
                .unwrap();
            panic!(
                "page {page} of pool {} is wrong at byte {at}: {:x?} instead of {:x?}",
                self.seed,
                &found[at..(at + 8).min(PAGE)],
                &expected[at..(at + 8).min(PAGE)],
            );
        }
    }

    /// All pages, in an order of its own for each `turn`.
    pub fn verify_scattered(&self, turn: u64) {
        let step = [1, 7, 61, 509][turn as usize % 4];
        for i in 0..self.pages {
            self.verify_page((i * step + turn * 17) % self.pages);
        }
    }
}

/// Forks an instance, which waits for its pools. The calling process must have a single thread.
pub fn fork(device: &Device, body: &Body) -> (i32, OwnedFd) {
    let (ours, theirs) = socket::pair();
    let parent = std::process::id();
    // SAFETY: the process has a single thread, so that the child may run any code.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            drop(ours);
            let outcome = catch_unwind(AssertUnwindSafe(|| live(theirs, device, body, parent)));
            // SAFETY: ends the process.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        pid => (pid, ours),
    }
}

fn live(control: OwnedFd, device: &Device, body: &Body, parent: u32) {
    // SAFETY: gives up rights, and asks to be killed with the test.
    unsafe {
        assert_eq!(libc::setresgid(990, 990, 990), 0);
        assert_eq!(libc::setresuid(993, 993, 993), 0);
        assert_eq!(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL), 0);
    }
    if std::os::unix::process::parent_id() != parent {
        return;
    }
    // The order of steps is that of `docs/pager.md`.
    let Some((words, pools)) = socket::receive(&control) else {
        return;
    };
    let maps: Vec<Map> = (words.chunks(2).zip(pools))
        .map(|(words, pool)| map(words[0], words[1], pool))
        .collect();
    let uffd = device.create().unwrap();
    let addresses: Vec<u64> = maps.iter().map(|map| map.start as u64).collect();
    socket::send(&control, &addresses, &[uffd.as_fd()]);
    drop(uffd);
    if socket::receive(&control).is_some() {
        body(&Inside { maps, control });
    }
}

fn map(seed: u64, pages: u64, pool: OwnedFd) -> Map {
    // SAFETY: a new mapping at an address that the kernel chooses.
    let start = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            pages as usize * PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::NORESERVE,
            pool,
            0,
        )
    }
    .unwrap();
    Map {
        start: start.cast(),
        pages,
        seed,
        page: 0,
    }
}

/// Runs something in a forked process, and waits until it has ended without a panic.
pub fn in_child(body: impl FnOnce()) {
    // SAFETY: called where the process has a single thread, or by threads of tests whose other
    // threads hold no locks while they fork.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let outcome = catch_unwind(AssertUnwindSafe(body));
            // SAFETY: ends the process.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        pid => assert_eq!(wait(pid), 0, "a forked process failed"),
    }
}

/// Waits for a child, and returns its exit status, or its signal as a negative number.
pub fn wait(pid: i32) -> i32 {
    let mut status = 0;
    loop {
        // SAFETY: stores a number.
        match unsafe { libc::waitpid(pid, &raw mut status, 0) } {
            -1 => {
                let error = std::io::Error::last_os_error();
                assert_eq!(error.kind(), std::io::ErrorKind::Interrupted, "{error}");
            }
            _ if libc::WIFEXITED(status) => return libc::WEXITSTATUS(status),
            _ => return -libc::WTERMSIG(status),
        }
    }
}
