//! Machines that really run. They need KVM on hardware, and `ROUSE_TEST_KERNEL`: the `vmlinuz` of a distribution. The test
//! bed has both (`cargo xtask hardware`).

mod programs;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rouse_vmm::devices::virtio::{DeviceConfig, Disk, Vsock};
use rouse_vmm::kernel::{Kernel, KernelFormat, import};
use rouse_vmm::{Config, Ended, Machine, MemorySize, Outcome, Pauser, VcpuCount};
use tempfile::TempDir;

/// What a machine says on its console. Shown when a test fails.
#[derive(Clone, Default)]
struct Console(Arc<Mutex<Vec<u8>>>);

impl Console {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn distribution_kernel() -> PathBuf {
    std::env::var_os("ROUSE_TEST_KERNEL")
        .expect("ROUSE_TEST_KERNEL names a kernel")
        .into()
}

/// A prepared kernel of the given parts.
fn prepared(directory: &TempDir, image: &[u8], initramfs: &[u8]) -> Kernel {
    fs::write(directory.path().join("kernel"), image).expect("it can be written");
    fs::write(directory.path().join("initramfs"), initramfs).expect("it can be written");
    Kernel::open(directory.path()).expect("it is a kernel")
}

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

/// Boots and runs a machine to its end: how that was, and what was on the console.
fn run(kernel: &Kernel, vcpus: u8, memory_mib: u32, command_line: &str) -> (Ended, String) {
    let config = config(vcpus, memory_mib, command_line);
    let console = Console::default();
    let machine = Machine::boot(&config, kernel, Box::new(console.clone()))
        .unwrap_or_else(|error| panic!("the machine cannot be made: {error}: {error:?}"));
    let ended = machine.run().unwrap_or_else(|error| {
        panic!("the machine failed: {error}: {error:?}\n{}", console.text())
    });
    (ended, console.text())
}

fn config(vcpus: u8, memory_mib: u32, command_line: &str) -> Config {
    Config {
        memory: MemorySize::mib(memory_mib).expect("a possible size"),
        vcpus: VcpuCount::new(vcpus).expect("a possible number"),
        command_line: command_line.to_owned(),
        devices: DeviceConfig::default(),
    }
}

/// A `vmlinux` that is this machine code and no more.
fn program(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u64 = 0x100_0000;
    const HEADERS: u64 = 64 + 56;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend([ADDRESS, 64, 0].map(u64::to_le_bytes).as_flattened());
    file.extend(
        [0, 0, 64, 56, 1, 0, 0, 0]
            .map(u16::to_le_bytes)
            .as_flattened(),
    );
    // One segment to load; read, write, execute.
    file.extend([1, 7].map(u32::to_le_bytes).as_flattened());
    let size = code.len() as u64;
    let segment = [HEADERS, ADDRESS, ADDRESS, size, size, 0x1000];
    // No field lies between the two sizes and the alignment.
    file.extend(segment.map(u64::to_le_bytes).as_flattened());
    assert_eq!(file.len() as u64, HEADERS);
    file.extend_from_slice(code);
    file
}

fn import_distribution_kernel(directory: &TempDir) -> Kernel {
    let target = directory.path().join("prepared");
    import::import(Path::new(&distribution_kernel()), None, &target).expect("it can be prepared")
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_distribution_kernel_boots_the_guest_and_is_switched_off() {
    let directory = temporary();
    let kernel = import_distribution_kernel(&directory);
    assert_eq!(kernel.format, KernelFormat::Vmlinux);
    let (ended, console) = run(&kernel, 2, 256, "quiet");
    assert_eq!(ended, Ended::Off, "{console}");
    let ready = console
        .lines()
        .find_map(|line| line.split_once("rouse-guest: ready: "))
        .unwrap_or_else(|| panic!("the guest was not ready:\n{console}"))
        .1;
    assert!(ready.contains("2 processors"), "{ready}");
    assert!(
        ready.contains("clock kvm-clock") || ready.contains("clock tsc"),
        "{ready}"
    );
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_guest_without_a_kernel_ends_by_a_triple_fault() {
    let directory = temporary();
    let kernel = prepared(&directory, &program(programs::undefined()), b"");
    for vcpus in [1, 4] {
        let (ended, console) = run(&kernel, vcpus, 128, "");
        assert_eq!((ended, console.as_str()), (Ended::TripleFault, ""));
    }
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_kernel_that_panics_resets_its_machine() {
    let directory = temporary();
    let kernel = import_distribution_kernel(&directory);
    // No first program, and no disk to look for one.
    let image = fs::read(kernel.image.path().expect("it has a name")).expect("it was prepared");
    let kernel = prepared(&directory, &image, b"");
    let (ended, console) = run(&kernel, 1, 256, "quiet");
    assert_eq!(ended, Ended::Reset, "{console}");
    assert!(console.contains("Kernel panic"), "{console}");
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_machine_is_stopped_whatever_its_guest_does() {
    let directory = temporary();
    let programs = [
        programs::spinning(),
        programs::halted(),
        programs::reading(),
    ];
    for code in programs {
        let kernel = prepared(&directory, &program(code), b"");
        let console = Box::new(Console::default());
        let mut machine =
            Machine::boot(&config(4, 128, ""), &kernel, console).expect("it can be made");
        let pauser = Pauser::default();
        let asked = pauser.clone();
        let running = thread::spawn(move || machine.run_until(&asked));
        pauser.pause();
        let outcome = running.join().expect("it does not panic");
        assert_eq!(outcome.expect("it is stopped"), Outcome::Paused);
    }
}

/// Runs a guest that is hostile to a disk, a vsock device and a balloon, and returns how often each has noticed.
fn violations_of(code: &[u8]) -> Vec<(&'static str, u64)> {
    let directory = temporary();
    let image = directory.path().join("image");
    fs::write(&image, [0; 1 << 16]).expect("it can be written");
    let kernel = prepared(&directory, &program(code), b"");
    let config = Config {
        devices: DeviceConfig {
            disks: vec![Disk {
                name: "/".to_owned(),
                image,
            }],
            vsock: Some(Vsock {
                directory: directory.path().to_owned(),
            }),
            ..DeviceConfig::default()
        },
        ..config(1, 128, "")
    };
    let machine =
        Machine::boot(&config, &kernel, Box::new(Console::default())).expect("it can be made");
    let devices = machine.devices();
    assert_eq!(machine.run().expect("it runs to its end"), Ended::Off);
    devices
        .violations()
        .into_iter()
        .map(|violations| (violations.device(), violations.count()))
        .collect()
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_guest_may_write_garbage_to_all_registers() {
    let noticed = violations_of(programs::any_register());
    assert_eq!(noticed.len(), 3, "{noticed:?}");
    for (device, count) in noticed {
        assert!(["block", "vsock", "balloon"].contains(&device));
        assert!(count > 0, "{device} has noticed nothing");
    }
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_guest_may_fill_all_queues_with_garbage() {
    let noticed = violations_of(programs::any_queue());
    assert_eq!(noticed.len(), 3, "{noticed:?}");
    for (device, count) in noticed {
        assert!(count > 0, "{device} has noticed nothing");
    }
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_guest_may_touch_whatever_it_likes() {
    let directory = temporary();
    let kernel = prepared(&directory, &program(programs::any_port()), b"");
    let (ended, _) = run(&kernel, 1, 128, "");
    assert_eq!(ended, Ended::Off);
}
