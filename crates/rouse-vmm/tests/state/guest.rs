//! A guest that counts aloud: each line has the next number, a random one from the kernel, the time since its boot, and how
//! often the kernel has reseeded its generator because it learnt that it is a copy.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use rouse_initramfs::Archive;
use rouse_snapshot::model::MachineSnapshot;
use rouse_vmm::devices::virtio::DeviceConfig;
use rouse_vmm::kernel::{Kernel, import};
use rouse_vmm::memory::Memory;
use rouse_vmm::{Config, Machine, MemorySize, Pauser, VcpuCount};

use super::{Shared, paused};

/// Nothing but the shell's own words, and one program: a timer must fire, too.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
n=0
while :; do
  n=$((n + 1))
  read random < /proc/sys/kernel/random/uuid
  read uptime rest < /proc/uptime
  reseeds=$(/bin/busybox dmesg | /bin/busybox grep -c 'virtual machine fork')
  echo \"tick $n $random $uptime $reseeds.\"
  /bin/busybox sleep 0.05
done
";

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    pub number: u64,
    pub random: String,
    /// Hundredths of a second.
    pub uptime: u64,
    /// By its log.
    pub reseeds: u64,
}

impl Tick {
    pub fn parse(line: &str) -> Option<Self> {
        // A line that was cut off has no full stop.
        let mut words = line
            .trim_end()
            .strip_prefix("tick ")?
            .strip_suffix('.')?
            .split(' ');
        Some(Self {
            number: words.next()?.parse().ok()?,
            random: words.next()?.to_owned(),
            uptime: words.next()?.replace('.', "").parse().ok()?,
            reseeds: words.next()?.parse().ok()?,
        })
    }
}

/// The console: pauses the machine when enough was said.
#[derive(Default)]
struct Said {
    text: String,
    ticks: Vec<Tick>,
    /// Pause at so many.
    enough: usize,
}

struct Console(Shared<Said>, Pauser);

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            if *byte != b'\n' {
                said.text.push(char::from(*byte));
                continue;
            }
            let line = std::mem::take(&mut said.text);
            if std::env::var_os("ROUSE_TEST_SHOW").is_some() {
                println!("  guest: {line}");
            }
            if let Some(tick) = Tick::parse(&line) {
                said.ticks.push(tick);
                if said.ticks.len() == said.enough {
                    self.1.pause();
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub struct Guest {
    pub machine: Machine,
    pauser: Pauser,
    said: Shared<Said>,
}

impl Guest {
    /// A machine of a snapshot.
    pub fn restore(snapshot: &MachineSnapshot, memory: Memory) -> Self {
        Self::new(|console| {
            Machine::restore(snapshot, memory, &DeviceConfig::default(), console)
                .unwrap_or_else(|error| panic!("cannot restore: {error}: {error:?}"))
        })
    }

    fn new(make: impl FnOnce(Box<dyn Write + Send>) -> Machine) -> Self {
        let (pauser, said) = (Pauser::default(), Shared::default());
        let console = Console(Arc::clone(&said), pauser.clone());
        Self {
            machine: make(Box::new(console)),
            pauser,
            said,
        }
    }

    /// Runs until it has said so many lines, and returns them.
    pub fn run_for(&mut self, ticks: usize) -> Vec<Tick> {
        self.lock().enough = ticks;
        paused(&mut self.machine, &self.pauser);
        std::mem::take(&mut self.lock().ticks)
    }

    /// The line that it was about to say is not said any more.
    pub fn forget(&self) {
        *self.lock() = Said::default();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The guest, booted by the distribution's kernel.
pub fn boot(vcpus: u8, memory_mib: u32) -> (Guest, Kernel) {
    let directory = tempfile::tempdir().unwrap();
    let kernel: PathBuf = std::env::var_os("ROUSE_TEST_KERNEL")
        .expect("ROUSE_TEST_KERNEL names a kernel")
        .into();
    let target = directory.path().join("prepared");
    let kernel = import::import(&kernel, None, &target).unwrap();
    let busybox = std::fs::read(Path::new("/bin/busybox")).unwrap();
    let mut archive = Archive::default();
    for name in ["bin", "dev", "proc"] {
        archive.directory(name);
    }
    archive.file("bin/busybox", 0o755, &busybox);
    archive.file("init", 0o755, INIT.as_bytes());
    std::fs::write(kernel.initramfs.path().unwrap(), archive.finish()).unwrap();
    let config = Config {
        memory: MemorySize::mib(memory_mib).unwrap(),
        vcpus: VcpuCount::new(vcpus).unwrap(),
        command_line: "quiet".into(),
        devices: DeviceConfig::default(),
    };
    let guest = Guest::new(|console| {
        Machine::boot(&config, &kernel, console)
            .unwrap_or_else(|error| panic!("cannot boot: {error}: {error:?}"))
    });
    // The kernel's file is compared later.
    let _ = directory.keep();
    (guest, kernel)
}
