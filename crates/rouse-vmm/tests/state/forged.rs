//! Snapshots with changed fields, given to a real KVM: restored or refused, run or ended, but nothing of this process is
//! harmed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rouse_snapshot::model::MachineSnapshot;
use rouse_vmm::devices::virtio::DeviceConfig;
use rouse_vmm::snapshot::Written;
use rouse_vmm::{Machine, Pauser};

use super::unwatched;

const ATTEMPTS: u64 = 60;

/// xorshift: the same changes each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn pick(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}

/// Changes one field of a processor, of the chips, of a device or of the memory.
fn change(snapshot: &mut MachineSnapshot, numbers: &mut Numbers) {
    let value = match numbers.pick(3) {
        0 => 0,
        1 => u64::MAX,
        _ => numbers.next(),
    };
    let count = snapshot.vcpus.len();
    let vcpu = &mut snapshot.vcpus[numbers.pick(count)];
    match numbers.pick(14) {
        0 => vcpu.general[numbers.pick(18)] = value,
        1 => {
            let count = vcpu.msrs.len();
            vcpu.msrs[numbers.pick(count)].1 = value;
        }
        2 => vcpu.lapic[numbers.pick(1024)] = value as u8,
        3 => vcpu.xsave[numbers.pick(1024)] = value as u8,
        4 => vcpu.special.cr3 = value,
        5 => vcpu.special.cr4 ^= 1 << (value % 32),
        6 => vcpu.special.segments[numbers.pick(8)].base = value,
        7 => vcpu.special.gdt.0 = value,
        8 => vcpu.mp_state = (value % 5) as u32,
        9 => snapshot.chips.io_apic.redirections[numbers.pick(24)] = value,
        10 => snapshot.chips.clock.clock_ns = value >> 1,
        11 => vcpu.events.interrupt.number = value as u8,
        12 => {
            let count = vcpu.cpuid.len();
            vcpu.cpuid[numbers.pick(count)].ecx = value as u32;
        }
        _ => {
            let bytes = &mut snapshot.devices[0].bytes;
            let count = bytes.len();
            bytes[numbers.pick(count)] = value as u8;
        }
    }
}

pub fn fields(written: &Written) {
    let mut numbers = Numbers(0x5eed_0000_0001);
    let (mut refused, mut ran) = (0, 0);
    for _ in 0..ATTEMPTS {
        let mut snapshot = written.snapshot.clone();
        change(&mut snapshot, &mut numbers);
        let memory = unwatched(written.memory().unwrap());
        match Machine::restore(
            &snapshot,
            memory,
            &DeviceConfig::default(),
            Box::new(std::io::sink()),
        ) {
            Err(_) => refused += 1,
            Ok(machine) => {
                run_shortly(machine);
                ran += 1;
            }
        }
    }
    println!("forged: {refused} refused, {ran} ran");
    assert!(refused > 0 && ran > 0);
}

/// However it ends.
fn run_shortly(mut machine: Machine) {
    let pauser = Pauser::default();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(50));
                pauser.pause();
            }
        });
        drop(machine.run_until(&pauser));
        over.store(true, Ordering::Release);
    });
}
