//! What must differ in each copy of a machine, set before the function's next instruction: time, the kernel's randomness, and
//! the id of the boot.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use rouse_guest::protocol::Fresh;
use rustix::mount::mount_bind;
use rustix::time::{ClockId, Timespec, clock_settime};

/// `_IOW('R', 0x03, int[2])`: counts what follows as random.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
/// `_IO('R', 0x07)`: takes it into use at once.
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct Entropy {
    bits: libc::c_int,
    bytes: libc::c_int,
    random: [u8; 32],
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const OUR_BOOT_ID: &str = "/dev/shm/.boot_id";

/// Sets all of it.
pub fn apply(fresh: &Fresh) -> Result<(), String> {
    set_clock(fresh.unix_time).map_err(|error| format!("cannot set the clock: {error}"))?;
    reseed(fresh.random).map_err(|error| format!("cannot reseed the kernel: {error}"))?;
    set_boot_id().map_err(|error| format!("cannot change the id of the boot: {error}"))
}

fn set_clock(unix_time: u64) -> io::Result<()> {
    let time = Duration::from_nanos(unix_time);
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    Ok(clock_settime(ClockId::Realtime, time)?)
}

fn reseed(random: [u8; 32]) -> io::Result<()> {
    let device = OpenOptions::new().write(true).open("/dev/urandom")?;
    let entropy = Entropy {
        bits: 256,
        bytes: 32,
        random,
    };
    // SAFETY: RNDADDENTROPY reads two numbers and as many bytes as the second says, which `entropy` has.
    let added = unsafe { libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &raw const entropy) };
    // SAFETY: RNDRESEEDCRNG has no argument.
    if added < 0 || unsafe { libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The kernel makes its id once, so it is the same in all copies: another one lies over it.
fn set_boot_id() -> io::Result<()> {
    let mut id = [0; 37];
    let mut source = File::open("/proc/sys/kernel/random/uuid")?;
    io::Read::read_exact(&mut source, &mut id)?;
    if fs::exists(OUR_BOOT_ID)? {
        // It is mounted already: the file below it changes.
        return fs::write(OUR_BOOT_ID, id);
    }
    fs::write(OUR_BOOT_ID, id)?;
    Ok(mount_bind(OUR_BOOT_ID, BOOT_ID)?)
}
