//! Machines that really run. They need KVM on hardware, and `ROUSE_TEST_KERNEL`: the `vmlinuz` of a distribution. The test
//! bed has both (`cargo xtask hardware`).

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
    // ud2, with no handler.
    let kernel = prepared(&directory, &program(&[0x0f, 0x0b]), b"");
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
        &[0xeb, 0xfe][..],         // jmp to itself
        &[0xfa, 0xf4],             // cli; hlt: nothing wakes it up
        &[0xe4, 0x64, 0xeb, 0xfc], // in al, 0x64 for ever
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

#[test]
#[ignore = "needs KVM on hardware"]
fn a_guest_may_write_garbage_to_all_registers() {
    let directory = temporary();
    let image = directory.path().join("image");
    fs::write(&image, [0; 4096]).expect("it can be written");
    let code = [
        &[0xc7, 0x04, 0x25, 0x18, 0xa0, 0x00, 0x00][..], // mov dword [0xa018], a mapping of the fourth GiB
        &[0x83, 0x00, 0x00, 0xc0],
        &[0xbb, 0x08, 0x00, 0x00, 0x00],       // mov ebx, 8
        &[0xbf, 0x00, 0x00, 0x00, 0xd0],       // again: mov edi, 0xd0000000
        &[0x89, 0x07],                         // next: mov [rdi], eax
        &[0x8b, 0x0f],                         // mov ecx, [rdi]
        &[0x05, 0xb1, 0x79, 0x37, 0x9e],       // add eax, 0x9e3779b1
        &[0x83, 0xc7, 0x04],                   // add edi, 4
        &[0x81, 0xff, 0x00, 0x30, 0x00, 0xd0], // cmp edi, 0xd0003000
        &[0x75, 0xec],                         // jne next
        &[0xff, 0xcb],                         // dec ebx
        &[0x75, 0xe3],                         // jne again
        &[0x66, 0xba, 0x00, 0x06],             // mov dx, 0x600
        &[0xb0, 0x34],                         // mov al, 0x34
        &[0xee],                               // out dx, al: off
        &[0xf4],                               // hlt
    ]
    .concat();
    let kernel = prepared(&directory, &program(&code), b"");
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
    for violations in devices.violations() {
        assert!(
            violations.count() > 0,
            "nothing was noticed: {violations:?}"
        );
        assert!(["block", "vsock", "balloon"].contains(&violations.device()));
    }
}

#[test]
#[ignore = "needs KVM on hardware"]
fn a_guest_may_touch_whatever_it_likes() {
    let directory = temporary();
    let code = [
        &[0x66, 0xba, 0x00, 0x00][..],               // mov dx, 0
        &[0xb0, 0x00],                               // next: mov al, 0
        &[0xee],                                     // out dx, al
        &[0xef],                                     // out dx, eax
        &[0xec],                                     // in al, dx
        &[0xed],                                     // in eax, dx
        &[0x66, 0xff, 0xc2],                         // inc dx
        &[0x66, 0x81, 0xfa, 0x00, 0x10],             // cmp dx, 0x1000
        &[0x75, 0xf0],                               // jne next
        &[0x89, 0x04, 0x25, 0x00, 0x00, 0x00, 0x10], // mov [0x10000000], eax: there is no memory
        &[0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x10], // mov eax, [0x10000000]
        &[0x83, 0xf8, 0xff],                         // cmp eax, -1
        &[0x75, 0x08],                               // jne wrong
        &[0x66, 0xba, 0x00, 0x06],                   // mov dx, 0x600
        &[0xb0, 0x34],                               // mov al, 0x34
        &[0xee],                                     // out dx, al: off
        &[0xf4],                                     // hlt
        &[0x0f, 0x0b],                               // wrong: ud2
    ]
    .concat();
    let kernel = prepared(&directory, &program(&code), b"");
    let (ended, _) = run(&kernel, 1, 128, "");
    assert_eq!(ended, Ended::Off);
}
