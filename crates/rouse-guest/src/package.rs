//! The disk with the function's package.
//!
//! A language template has none. It starts without: the driver lets go of the disk's device, and with the disk all goes that the
//! kernel has kept of it. A machine that is made of the template has a package as that disk; there the driver takes the device up
//! again, and reads what it is now.

use std::fs;
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

use crate::root;

/// Where the function sees its package.
const PLACE: &str = "/var/task";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// The device without a driver, by its name.
#[derive(Debug)]
pub struct Device(String);

/// Lets go of the disk.
pub fn let_go() -> Result<Device, String> {
    let disk = root::disk_of(PLACE)?;
    let name = disk.file_name().unwrap_or_default();
    let device = Path::new("/sys/block").join(name).join("device");
    let failed = |error: &dyn std::fmt::Display| format!("cannot let go of {PLACE}: {error}");
    let device = fs::canonicalize(device).map_err(|error| failed(&error))?;
    let device = device.file_name().and_then(|name| name.to_str());
    let device = device.ok_or_else(|| failed(&"its device has no name"))?;
    unmount(PLACE, UnmountFlags::empty()).map_err(|errno| failed(&errno))?;
    fs::write(format!("{DRIVER}/unbind"), device).map_err(|error| failed(&error))?;
    Ok(Device(device.to_owned()))
}

impl Device {
    /// Takes the disk up, whatever it is now, and mounts it.
    pub fn take_up(&self) -> Result<(), String> {
        fs::write(format!("{DRIVER}/bind"), &self.0)
            .map_err(|error| format!("cannot take up {PLACE}: {error}"))?;
        root::read_only(&root::disk_of(PLACE)?, Path::new(PLACE))
    }
}
