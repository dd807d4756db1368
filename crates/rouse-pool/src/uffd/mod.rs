//! `userfaultfd(2)`: who is told when a page is absent, and how the page gets in.
//!
//! The one module that knows the kernel's structures. (The crate `userfaultfd` lacks poisoning,
//! waking of whole address spaces and descriptors that belong to another process.)
//!
//! Constraints that the order of calls elsewhere follows:
//! - a descriptor watches the memory of the process that *made* it, whoever holds it; API and
//!   registration may be called by another process. `EVENT_FORK` needs `CAP_SYS_PTRACE` of the
//!   caller of [`Userfaultfd::enable`], which a sandboxed instance does not have and the pager has;
//! - [`Userfaultfd::enable`] works once per descriptor and comes before everything else;
//! - when its last copy is closed, registered memory becomes ordinary: absent pages read as zeros.

mod message;
mod sys;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub use message::Event;
pub use sys::USERFAULTFD_IOC_NEW;

/// Where userfaultfds are made. Instances inherit it, because they have no right to open it or to
/// call `userfaultfd(2)`.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Opens `/dev/userfaultfd` (Linux 6.1).
    ///
    /// # Errors
    /// What `open` says: the device needs a kernel that offers it, and root.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(
            "/dev/userfaultfd",
            flags,
            Mode::empty(),
        )?))
    }

    /// The device that is open under this number. It must stay open, and is not closed.
    pub(crate) fn borrow(fd: RawFd) -> std::mem::ManuallyDrop<Self> {
        // SAFETY: as the caller promises; the value is never dropped.
        std::mem::ManuallyDrop::new(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A userfaultfd for the memory of the calling process, nonblocking and closed by `execve`.
    ///
    /// System calls that touch absent pages wait as instructions do.
    ///
    /// # Errors
    /// What the kernel says, for instance about too many open files.
    pub fn create(&self) -> io::Result<OwnedFd> {
        sys::create(self.0.as_fd())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Which events of the watched process are reported besides faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Events {
    /// None: for memory that only its owner touches.
    None,
    /// Forks, and moved, dropped and unmapped memory. Whoever does these waits until the event is
    /// read.
    All,
}

/// What becomes of the pages around one that is read, where they are present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Neighbours {
    /// The kernel maps up to 16 pages at once.
    Mapped,
    /// Each page is mapped when it is touched itself, so that page tables say exactly what was. Done by registering for
    /// write protection, which nothing asks for: the kernel leaves neighbours alone where it may be in use (Linux 5.19).
    Left,
    /// As `Left`; and who touches a page that is present, but not mapped there yet, waits as for an absent one
    /// ([`Event::Fault`], [`Userfaultfd::map`]). So every first touch is seen, in its order (Linux 5.14).
    Reported,
}

/// What became of a page that was to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// It is mapped, or is not watched any more: whoever waited goes on.
    Done,
    /// It is not in the memory file any more.
    Absent,
    /// An unread event is in the way: read events, then try again.
    Later,
    /// The process is gone.
    Gone,
    /// The kernel cannot map it.
    Refused,
}

/// What a fault can be answered with, when it cannot be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answered {
    /// Done; whoever waited there goes on.
    Done,
    /// An unread event is in the way: read events, then try again.
    Later,
    /// The process is gone.
    Gone,
    /// The kernel cannot poison this memory.
    Unsupported,
}

/// What came of filling memory of another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Bytes that were filled, from the start on; also when it did not end well.
    pub bytes: u64,
    /// How it ended.
    pub end: FillEnd,
}

/// How filling memory of another process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillEnd {
    /// All is filled.
    Done,
    /// The page behind those is there already. Who waits for it was not woken.
    Present,
    /// An unread event is in the way: read events, then try again.
    Later,
    /// This memory is not watched any more, or not mapped.
    Unwatched,
    /// The process is gone.
    Gone,
    /// Something else: most often, there is no memory.
    Failed(Errno),
}

impl Filled {
    fn of(bytes: u64, result: Result<(), Errno>) -> Self {
        let end = match result {
            Ok(()) => FillEnd::Done,
            Err(Errno::EXIST) => FillEnd::Present,
            Err(Errno::AGAIN) => FillEnd::Later,
            Err(Errno::NOENT) => FillEnd::Unwatched,
            Err(Errno::SRCH) => FillEnd::Gone,
            Err(errno) => FillEnd::Failed(errno),
        };
        Self { bytes, end }
    }
}

/// Every user address of a process, as the kernel takes it for waking.
const EVERYWHERE: (u64, u64) = (1 << 16, 0x7fff_ffff_f000 - (1 << 16));

/// Bytes of a page.
const PAGE: u64 = 4096;

/// A userfaultfd, borrowed: every call of the kernel's interface.
#[derive(Debug, Clone, Copy)]
pub struct Userfaultfd<'a>(BorrowedFd<'a>);

impl AsFd for Userfaultfd<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0
    }
}

impl<'a> Userfaultfd<'a> {
    /// The descriptor must be a userfaultfd; calls fail otherwise.
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        Self(fd)
    }

    /// Agrees on the interface. Must come first; what was enabled already stays as it is.
    ///
    /// # Errors
    /// What the kernel says: `EPERM` without `CAP_SYS_PTRACE`.
    pub fn enable(self, events: Events) -> io::Result<()> {
        match sys::api(self.0, events) {
            // Enabled before, by a pager that died before it could say so. If it is something
            // else, registration says so.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// From now on, touching an absent page of this memory waits for an answer. May be repeated.
    ///
    /// # Errors
    /// What the kernel says, for instance when nothing is mapped there.
    pub fn register(self, address: u64, bytes: u64, neighbours: Neighbours) -> io::Result<()> {
        sys::register(self.0, address, bytes, neighbours)
    }

    /// Reads waiting events into `events`, which is emptied first. Returns without any when there
    /// are none.
    ///
    /// # Errors
    /// What `read` says.
    pub fn read(self, events: &mut Vec<Event>) -> io::Result<()> {
        events.clear();
        let mut buffer = [0; 16 * message::LEN];
        match rustix::io::read(self.0, &mut buffer) {
            Ok(len) => {
                let (messages, _) = buffer[..len].as_chunks::<{ message::LEN }>();
                events.extend(messages.iter().filter_map(message::parse));
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Lets everybody go on who waits for a page in this range; they fault again if it is absent.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(self, address: u64, bytes: u64) -> io::Result<()> {
        sys::wake(self.0, address, bytes)
    }

    /// Lets everybody go on who waits anywhere.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake_all(self) -> io::Result<()> {
        self.wake(EVERYWHERE.0, EVERYWHERE.1)
    }

    /// Maps one page that is present in the memory file where it was touched ([`Neighbours::Reported`]), and lets those who
    /// wait for it go on.
    pub fn map(self, address: u64) -> Mapped {
        match sys::map_present(self.0, address, PAGE) {
            Ok(()) => Mapped::Done,
            // Another thread was faster, or the memory is not there any more: they find out when they go on.
            Err(Errno::EXIST | Errno::NOENT) => match self.wake(address, PAGE) {
                Ok(()) => Mapped::Done,
                Err(_) => Mapped::Gone,
            },
            Err(Errno::FAULT) => Mapped::Absent,
            Err(Errno::AGAIN) => Mapped::Later,
            Err(Errno::SRCH) => Mapped::Gone,
            Err(_) => Mapped::Refused,
        }
    }

    /// Makes one page fail for good: whoever touches it gets `SIGBUS`, system calls `EFAULT`
    /// (Linux 6.6).
    pub fn poison(self, address: u64) -> Answered {
        match sys::poison(self.0, address, PAGE) {
            Ok(()) => Answered::Done,
            // Present by now, or not watched any more: they find out when they go on.
            Err(Errno::EXIST | Errno::NOENT) => match self.wake(address, PAGE) {
                Ok(()) => Answered::Done,
                Err(_) => Answered::Gone,
            },
            Err(Errno::AGAIN) => Answered::Later,
            Err(Errno::SRCH) => Answered::Gone,
            Err(_) => Answered::Unsupported,
        }
    }

    /// Copies whole pages into a *shared* mapping of the caller that is registered: each page
    /// shows up complete. Pages that are there already stay. Returns how many were copied.
    ///
    /// # Errors
    /// `ENOMEM` when there is no memory for a page.
    pub fn copy(self, address: u64, bytes: &[u8]) -> io::Result<u64> {
        let (mut done, mut copied) = (0, 0);
        while done < bytes.len() {
            match sys::copy(self.0, address + done as u64, &bytes[done..], false) {
                (len, Ok(()) | Err(Errno::AGAIN)) => {
                    done += len as usize;
                    copied += len / PAGE;
                }
                (len, Err(Errno::EXIST)) => {
                    done += len as usize + PAGE as usize;
                    copied += len / PAGE;
                }
                (_, Err(error)) => return Err(error.into()),
            }
        }
        Ok(copied)
    }

    /// Copies whole pages into memory of *another* process, and lets everybody go on who waits there.
    pub fn fill(self, address: u64, bytes: &[u8]) -> Filled {
        let (done, result) = sys::copy(self.0, address, bytes, true);
        Filled::of(done, result)
    }

    /// The same with zeros, which takes no memory. Not for huge pages of a pool of them.
    pub fn fill_zeros(self, address: u64, bytes: u64) -> Filled {
        let (done, result) = sys::zero(self.0, address, bytes);
        Filled::of(done, result)
    }

    /// Whether the memory that it watches still exists.
    pub fn is_alive(self) -> bool {
        // Nothing is ever registered in the lowest pages, so that nothing is poisoned: of a living
        // process, the kernel says that it found nothing there.
        sys::poison(self.0, EVERYWHERE.0, PAGE) != Err(Errno::SRCH)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_userfaultfd_can_be_enabled_twice() {
        let fd = Device::open().unwrap().create().unwrap();
        let uffd = Userfaultfd::new(fd.as_fd());
        uffd.enable(Events::All).unwrap();
        uffd.enable(Events::All).unwrap();
        assert!(uffd.is_alive());
        uffd.wake_all().unwrap();
        let mut events = vec![Event::Unmap { start: 0, end: 1 }];
        uffd.read(&mut events).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn other_descriptors_are_refused() {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()).unwrap();
        let uffd = Userfaultfd::new(null.as_fd());
        assert!(uffd.enable(Events::None).is_err());
        assert!(uffd.register(1 << 20, PAGE, Neighbours::Mapped).is_err());
    }
}
