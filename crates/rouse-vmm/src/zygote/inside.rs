//! The life of a VMM process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rouse_pool::PoolId;
use rouse_pool::uffd::Device;
use rouse_sandbox::confine;
use rouse_snapshot::manifest::Subject as _;
use rouse_snapshot::model::{MachineSnapshot, ParentPool};

use super::CONTROL;
use super::messages::{self, Answer, Fresh, GivenLayer, Order, Parts};
use crate::devices::virtio::vsock::Dialer;
use crate::devices::virtio::{DeviceConfig, OpenDevices, OpenDisk};
use crate::jail::{self, Jail};
use crate::kernel::Kernel;
use crate::layout::MemorySize;
use crate::machine::{Blank, Config, Machine, Outcome};
use crate::memory::{self, Layer, Mapped, Source};
use crate::pauser::Pauser;
use crate::vcpu::VcpuCount;

/// What `main` of a VMM's program does with the arguments behind `vmm`: uid and gid.
pub fn main(uid: u32, gid: u32) -> ExitCode {
    // SAFETY: the supervisor has put the control socket there, and nobody else in this process uses the number.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL) };
    let outcome = jail::unshare()
        .map_err(|error| chain(&error))
        .and_then(|()| {
            // SAFETY: the process has a single thread, which was just checked.
            match unsafe { libc::fork() } {
                -1 => Err(io::Error::last_os_error().to_string()),
                0 => {
                    let outcome = live(&control, &Jail { uid, gid });
                    report(&control, outcome);
                    // SAFETY: ends the process, and runs nothing that it shares with its parent.
                    unsafe { libc::_exit(0) }
                }
                child => Ok(child),
            }
        });
    match outcome {
        // The control socket is the child's alone: its end is the VMM's.
        Ok(child) => {
            drop(control);
            wait(child)
        }
        Err(why) => {
            report(&control, Err(why));
            ExitCode::FAILURE
        }
    }
}

/// The warden: is there until the VMM has ended.
fn wait(child: libc::pid_t) -> ExitCode {
    let mut status = 0;
    // SAFETY: `status` is a valid place; the child is this process's own.
    while unsafe { libc::waitpid(child, &raw mut status, 0) } == -1 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::from(u8::from(status != 0))
}

fn report(control: &OwnedFd, outcome: Result<(), String>) {
    if let Err(mut why) = outcome {
        why.truncate(why.floor_char_boundary(1000));
        // Nobody may be there any more.
        drop(say(control, &Answer::Failed(why), &[]));
    }
}

fn say(control: &OwnedFd, answer: &Answer, with: &[BorrowedFd<'_>]) -> Result<(), String> {
    confine::send(control, &messages::encode(answer), with).map_err(|error| chain(&error))
}

/// An order, and the descriptors that came with it.
type Heard = (Order, Vec<OwnedFd>);

fn hear(control: &OwnedFd) -> Result<Option<Heard>, String> {
    let Some((bytes, descriptors)) = confine::receive(control).map_err(|error| chain(&error))?
    else {
        return Ok(None);
    };
    let order = postcard::from_bytes(&bytes).map_err(|error| chain(&error))?;
    Ok(Some((order, descriptors)))
}

/// All that is needed is opened, then the jail is entered, then orders are waited for.
fn live(control: &OwnedFd, jail: &Jail) -> Result<(), String> {
    let blank = Blank::make().map_err(|error| chain(&error))?;
    let device = Device::open().map_err(|error| format!("/dev/userfaultfd: {error}"))?;
    memory::pagemap().map_err(|error| format!("/proc/self/pagemap: {error}"))?;
    crate::snapshot::kvm_kind();
    jail::enter(jail).map_err(|error| chain(&error))?;
    say(control, &Answer::Ready, &[])?;
    match hear(control)? {
        // Not needed after all.
        None => Ok(()),
        Some((Order::Boot(fresh), descriptors)) => boot(control, blank, fresh, descriptors),
        Some((Order::Restore(parts), descriptors)) => {
            restore(control, blank, &device, parts, descriptors)
        }
        Some(_) => Err("there is no machine to do that with".to_owned()),
    }
}

fn boot(
    control: &OwnedFd,
    blank: Blank,
    fresh: Fresh,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    let mut descriptors = descriptors.into_iter();
    let mut file = || {
        let descriptor = descriptors.next().ok_or("the order lacks a descriptor")?;
        Ok::<_, String>(File::from(descriptor))
    };
    let console = Box::new(file()?);
    let kernel = Kernel {
        image: file()?.into(),
        format: fresh.kernel,
        initramfs: file()?.into(),
    };
    let config = Config {
        memory: MemorySize::mib(fresh.memory_mib).map_err(|error| chain(&error))?,
        vcpus: VcpuCount::new(fresh.vcpus).map_err(|error| chain(&error))?,
        command_line: fresh.command_line,
        devices: DeviceConfig::default(),
    };
    let devices = open_devices(fresh.parts.disks, fresh.parts.ports, &mut descriptors)?;
    let machine = Machine::boot_in(blank, &config, devices, &kernel, console)
        .map_err(|error| chain(&error))?;
    say(control, &Answer::Booted, &[])?;
    run(control, machine, None)
}

fn restore(
    control: &OwnedFd,
    blank: Blank,
    device: &Device,
    parts: Parts,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    let mut descriptors = descriptors.into_iter();
    let (Some(manifest), Some(console)) = (descriptors.next(), descriptors.next()) else {
        return Err("the order has no snapshot".to_owned());
    };
    let snapshot = messages::read_snapshot(manifest)?;
    let layers = layers(&parts.layers, &mut descriptors);
    let devices = open_devices(parts.disks, parts.ports, &mut descriptors)?;
    let mapped = Mapped::new(snapshot.hardware.memory_pages, &snapshot.memory, layers)
        .map_err(|error| chain(&error))?;
    let base = mapped.base();
    let mut told = false;
    let memory = mapped
        .watch(Some(device), |uffd, _| -> Result<(), Failure> {
            told = true;
            say(control, &Answer::Mapped { base }, &[uffd.as_fd()])?;
            // Whoever has it can read the faults of this process away: none is kept.
            drop(uffd);
            Ok(go(control)?)
        })
        .map_err(|Failure(why)| why)?;
    if !told {
        say(control, &Answer::Mapped { base }, &[])?;
        go(control)?;
    }
    let console = Box::new(File::from(console));
    let machine = Machine::restore_in(blank, &snapshot, memory, devices, console)
        .map_err(|error| chain(&error))?;
    say(control, &Answer::Restored, &[])?;
    run(control, machine, Some(&snapshot))
}

/// Pools and images, of descriptors in the order in which they were given.
fn layers(given: &[GivenLayer], descriptors: &mut impl Iterator<Item = OwnedFd>) -> Vec<Layer> {
    let layer = |(layer, fd): (&GivenLayer, OwnedFd)| Layer {
        source: Source::Given {
            view: fd.into(),
            pages: layer.pages,
            absent: layer.pool.map(PoolId),
        },
        name: layer.identity.map(|pool| ParentPool {
            pool,
            pages: layer.pages,
        }),
    };
    given.iter().zip(descriptors).map(layer).collect()
}

/// The devices, of descriptors in the order in which they were given.
fn open_devices(
    disks: Vec<String>,
    ports: Option<Vec<u32>>,
    descriptors: &mut impl Iterator<Item = OwnedFd>,
) -> Result<OpenDevices, String> {
    let mut next = || descriptors.next().ok_or("the order lacks a descriptor");
    let mut opened = Vec::new();
    for name in disks {
        let image = next()?.into();
        opened.push(OpenDisk { name, image });
    }
    let vsock = match ports {
        None => None,
        Some(ports) => {
            let node = next()?;
            Some(Dialer::Handed { node, ports })
        }
    };
    Ok(OpenDevices {
        disks: opened,
        vsock,
        balloon: DeviceConfig::default().balloon,
    })
}

/// Runs the machine to its end, but for what the supervisor wants in between.
fn run(
    control: &OwnedFd,
    mut machine: Machine,
    snapshot: Option<&MachineSnapshot>,
) -> Result<(), String> {
    let pauser = Pauser::default();
    let (sender, orders) = mpsc::channel();
    let listener = Listener {
        control: control.try_clone().map_err(|error| chain(&error))?,
        pauser: pauser.clone(),
        orders: sender,
    };
    thread::Builder::new()
        .name("orders".into())
        .spawn(move || listener.run())
        .map_err(|error| chain(&error))?;
    loop {
        match machine.run_until(&pauser).map_err(|error| chain(&error))? {
            Outcome::Ended(ended) => return say(control, &Answer::Ended(ended), &[]),
            Outcome::Paused => {}
        }
        // One order for each pause; several pauses that were asked for at once are one.
        while let Some((order, descriptors)) = next(&orders)? {
            obey(control, &mut machine, snapshot, order, descriptors)?;
        }
    }
}

/// The next order that is there; an error when no more can come.
fn next(orders: &Receiver<Heard>) -> Result<Option<Heard>, String> {
    match orders.try_recv() {
        Ok(order) => Ok(Some(order)),
        Err(mpsc::TryRecvError::Empty) => Ok(None),
        Err(mpsc::TryRecvError::Disconnected) => Err("the supervisor is gone".to_owned()),
    }
}

fn obey(
    control: &OwnedFd,
    machine: &mut Machine,
    snapshot: Option<&MachineSnapshot>,
    order: Order,
    descriptors: Vec<OwnedFd>,
) -> Result<(), String> {
    match order {
        Order::Rewind => {
            let snapshot = snapshot.ok_or("the machine has no snapshot")?;
            let rewound = machine.rewind(snapshot).map_err(|error| chain(&error))?;
            let pages = rewound.pages;
            say(control, &Answer::Rewound { pages }, &[])
        }
        Order::Snapshot(images) => {
            let images = layers(&images, &mut descriptors.into_iter());
            let written = machine
                .snapshot("machine", &images)
                .map_err(|error| chain(&error))?;
            let manifest = messages::memory_file(&written.snapshot.encode(None))
                .map_err(|error| chain(&error))?;
            let with = [manifest.as_fd(), written.pool.as_fd()];
            say(control, &Answer::Written, &with)
        }
        Order::Boot(_) | Order::Restore(_) | Order::Go => Err("a VMM has one machine".to_owned()),
    }
}

/// Hears orders while the machine runs, and pauses it for them.
struct Listener {
    control: OwnedFd,
    pauser: Pauser,
    orders: Sender<Heard>,
}

impl Listener {
    fn run(self) {
        // The order is there before the pause is.
        while let Ok(Some(heard)) = hear(&self.control) {
            if self.orders.send(heard).is_err() {
                return;
            }
            self.pauser.pause();
        }
        let Self { pauser, orders, .. } = self;
        drop(orders);
        pauser.pause();
    }
}

fn go(control: &OwnedFd) -> Result<(), String> {
    match hear(control)? {
        Some((Order::Go, _)) => Ok(()),
        Some(_) => Err("the machine is not restored yet".to_owned()),
        None => Err("the supervisor is gone".to_owned()),
    }
}

/// A failure inside of the closure that watches memory.
struct Failure(String);

impl From<String> for Failure {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<memory::MapError> for Failure {
    fn from(error: memory::MapError) -> Self {
        Self(chain(&error))
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += ": ";
        text += &error.to_string();
        cause = error.source();
    }
    text
}
