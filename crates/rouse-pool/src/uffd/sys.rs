//! The ioctls, as the kernel declares them in `linux/userfaultfd.h`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::{Events, Neighbours};

const fn request(direction: u64, number: u64, len: usize) -> u64 {
    direction << 30 | (len as u64) << 16 | 0xaa << 8 | number
}
const READ: u64 = 2;
const BOTH: u64 = 3;

/// `ioctl` of `/dev/userfaultfd` that makes a userfaultfd; its argument are open flags.
pub const USERFAULTFD_IOC_NEW: u64 = request(0, 0x00, 0);
const UFFDIO_API: u64 = request(BOTH, 0x3f, size_of::<Api>());
const UFFDIO_REGISTER: u64 = request(BOTH, 0x00, size_of::<Register>());
const UFFDIO_WAKE: u64 = request(READ, 0x02, size_of::<Range>());
const UFFDIO_COPY: u64 = request(BOTH, 0x03, size_of::<Copy>());
const UFFDIO_ZEROPAGE: u64 = request(BOTH, 0x04, size_of::<Zero>());
const UFFDIO_CONTINUE: u64 = request(BOTH, 0x07, size_of::<Continue>());
const UFFDIO_POISON: u64 = request(BOTH, 0x08, size_of::<Poison>());

const UFFD_API: u64 = 0xaa;
const FEATURES: u64 = FORK | REMAP | REMOVE | UNMAP | THREAD_ID | MINOR_SHMEM;
const FORK: u64 = 1 << 1;
const REMAP: u64 = 1 << 2;
const REMOVE: u64 = 1 << 3;
const UNMAP: u64 = 1 << 6;
const THREAD_ID: u64 = 1 << 8;
const MINOR_SHMEM: u64 = 1 << 10;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 1 << 1;
const REGISTER_MODE_MINOR: u64 = 1 << 2;
const COPY_MODE_DONTWAKE: u64 = 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct Zero {
    range: Range,
    mode: u64,
    zeroed: i64,
}

#[repr(C)]
struct Continue {
    range: Range,
    mode: u64,
    mapped: i64,
}

#[repr(C)]
struct Poison {
    range: Range,
    mode: u64,
    updated: i64,
}

const _: () = {
    assert!(UFFDIO_API == 0xc018_aa3f);
    assert!(UFFDIO_REGISTER == 0xc020_aa00);
    assert!(UFFDIO_WAKE == 0x8010_aa02);
    assert!(UFFDIO_COPY == 0xc028_aa03);
    assert!(UFFDIO_ZEROPAGE == 0xc020_aa04);
    assert!(UFFDIO_CONTINUE == 0xc020_aa07);
    assert!(UFFDIO_POISON == 0xc020_aa08);
    assert!(USERFAULTFD_IOC_NEW == 0xaa00);
};

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

pub(super) fn create(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: takes a number and returns a new descriptor or fails.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW as _, flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// # Safety
/// `argument` is the structure that `request` takes.
unsafe fn call<T>(fd: BorrowedFd<'_>, request: u64, argument: &mut T) -> Result<(), Errno> {
    loop {
        // SAFETY: as the caller promises; the structure lives for the duration of the call.
        match unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut *argument) } {
            0.. => return Ok(()),
            _ => match last_error() {
                Errno::INTR => {}
                error => return Err(error),
            },
        }
    }
}

pub(super) fn api(fd: BorrowedFd<'_>, events: Events) -> io::Result<()> {
    let features = match events {
        Events::None => 0,
        Events::All => FEATURES,
    };
    let mut api = Api {
        api: UFFD_API,
        features,
        ioctls: 0,
    };
    // SAFETY: the structure is the request's.
    Ok(unsafe { call(fd, UFFDIO_API, &mut api) }?)
}

pub(super) fn register(
    fd: BorrowedFd<'_>,
    start: u64,
    len: u64,
    neighbours: Neighbours,
) -> io::Result<()> {
    let mut register = Register {
        range: Range { start, len },
        mode: match neighbours {
            Neighbours::Mapped => REGISTER_MODE_MISSING,
            Neighbours::Left => REGISTER_MODE_MISSING | REGISTER_MODE_WP,
            Neighbours::Reported => REGISTER_MODE_MISSING | REGISTER_MODE_MINOR,
        },
        ioctls: 0,
    };
    // SAFETY: the structure is the request's. What memory it is about is decided by the kernel
    // from the descriptor; nothing is read or written there.
    Ok(unsafe { call(fd, UFFDIO_REGISTER, &mut register) }?)
}

pub(super) fn wake(fd: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let mut range = Range { start, len };
    // SAFETY: the structure is the request's.
    Ok(unsafe { call(fd, UFFDIO_WAKE, &mut range) }?)
}

/// Maps present pages of the memory file, and wakes who waits for them.
pub(super) fn map_present(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<(), Errno> {
    let mut mapped = Continue {
        range: Range { start, len },
        mode: 0,
        mapped: 0,
    };
    // SAFETY: the structure is the request's.
    unsafe { call(fd, UFFDIO_CONTINUE, &mut mapped) }
}

pub(super) fn poison(fd: BorrowedFd<'_>, start: u64, len: u64) -> Result<(), Errno> {
    let mut poison = Poison {
        range: Range { start, len },
        mode: 0,
        updated: 0,
    };
    // SAFETY: the structure is the request's.
    unsafe { call(fd, UFFDIO_POISON, &mut poison) }
}

/// Lets everybody go on who waits there. Returns how many bytes were zeroed, and how it ended.
pub(super) fn zero(fd: BorrowedFd<'_>, start: u64, len: u64) -> (u64, Result<(), Errno>) {
    let mut zero = Zero {
        range: Range { start, len },
        mode: 0,
        zeroed: 0,
    };
    // SAFETY: the structure is the request's. The kernel changes only pages that were absent.
    let result = unsafe { call(fd, UFFDIO_ZEROPAGE, &mut zero) };
    (zero.zeroed.max(0) as u64, result)
}

/// Returns how many bytes were copied, and how it ended.
pub(super) fn copy(
    fd: BorrowedFd<'_>,
    dst: u64,
    bytes: &[u8],
    wake: bool,
) -> (u64, Result<(), Errno>) {
    let mut copy = Copy {
        dst,
        src: bytes.as_ptr() as u64,
        len: bytes.len() as u64,
        mode: if wake { 0 } else { COPY_MODE_DONTWAKE },
        copied: 0,
    };
    // SAFETY: the structure is the request's, and the source is valid for its length. The kernel
    // writes to registered mappings only, and only pages that were absent, which no reference can
    // be to.
    let result = unsafe { call(fd, UFFDIO_COPY, &mut copy) };
    (copy.copied.max(0) as u64, result)
}
