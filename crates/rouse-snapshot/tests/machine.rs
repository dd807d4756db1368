//! Manifests of virtual machines and of memory images: what is written is what is read, and what makes no sense is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod forge;

use forge::forge;
use proptest::prelude::*;
use rouse_snapshot::manifest::{AnySnapshot, Binding, ManifestError, Subject, encode};
use rouse_snapshot::model::*;
use rouse_snapshot::page_map::Domain;

fn vcpu(id: u32) -> VcpuState {
    VcpuState {
        cpuid: vec![
            CpuidEntry {
                function: 1,
                ebx: id << 24,
                ..CpuidEntry::default()
            },
            CpuidEntry {
                function: 0xb,
                index: 1,
                flags: 1,
                ..CpuidEntry::default()
            },
        ],
        mp_state: 3,
        general: std::array::from_fn(|register| register as u64 + 1),
        special: SpecialRegisters {
            segments: [Segment {
                limit: u32::MAX,
                selector: 16,
                type_: 11,
                present: 1,
                s: 1,
                l: 1,
                g: 1,
                ..Segment::default()
            }; 8],
            gdt: (0xffff_fe00_0000_1000, 127),
            idt: (0xffff_fe00_0000_0000, 4095),
            cr0: 0x8005_0033,
            cr3: 0x10_0000,
            cr4: 0x7506f0,
            efer: 0xd01,
            apic_base: 0xfee0_0900,
            ..SpecialRegisters::default()
        },
        xsave: (0..4096).map(|at| (at % 7) as u8).collect(),
        xcrs: vec![(0, 7)],
        debug: DebugRegisters {
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            ..DebugRegisters::default()
        },
        lapic: (0..1024).map(|at| (at % 5) as u8).collect(),
        msrs: vec![(0x10, 77), (0x6e0, 99), (0xc000_0080, 0xd01)],
        events: VcpuEvents {
            interrupt: InterruptEvent {
                injected: true,
                number: 0xec,
                soft: false,
                shadow: 0,
            },
            flags: 0xd,
            ..VcpuEvents::default()
        },
        tsc_khz: 2_000_000,
        tsc_offset: Some(u64::MAX - 5),
    }
}

fn run(page: u64, pages: u64, pool_page: u64) -> PageRun {
    PageRun {
        address: page * PAGE_SIZE,
        pages,
        pool_page,
    }
}

fn machine() -> MachineSnapshot {
    MachineSnapshot {
        host: MachineHost {
            kernel: "6.12 #1".into(),
            kvm: "kvm_amd".into(),
            cpu: [3; 32],
        },
        hardware: Hardware {
            memory_pages: 32768,
            kernel: [4; 32],
        },
        memory: vec![
            run(0, 16, 0),
            run(4096, 100, pool_page(1, 7)),
            run(5000, 4, 16),
        ],
        vcpus: vec![vcpu(0), vcpu(1)],
        chips: ChipState {
            clock: ClockState {
                clock_ns: 1_000_000_007,
                realtime_ns: Some(1_800_000_000_000_000_000),
                host_tsc: None,
            },
            pics: [[1; 16], [2; 16]],
            io_apic: IoApicState {
                base_address: 0xfec0_0000,
                id: 0,
                redirections: std::array::from_fn(|pin| pin as u64),
                ..IoApicState::default()
            },
        },
        devices: vec![DeviceState {
            name: "console".into(),
            version: 1,
            bytes: vec![1, 2, 3],
        }],
        pool_pages: 20,
        parents: vec![ParentPool {
            pool: [9; 32],
            pages: 200,
        }],
    }
}

fn image() -> MemoryImage {
    MemoryImage {
        pages: 1 << 18,
        memory: vec![run(0, 16, 0), run(1000, 4, 16)],
        pool_pages: 20,
    }
}

fn binding() -> Binding {
    Binding {
        page_map: [0x33; 32],
        pool: [8; 32],
        tenant: "default".into(),
        domain: Domain::Tenant,
    }
}

#[test]
fn what_was_encoded_is_decoded() {
    let (machine, image) = (machine(), image());
    let manifest = MachineSnapshot::decode(&machine.encode(Some(&binding()))).unwrap();
    assert_eq!(
        (manifest.snapshot, manifest.binding),
        (machine.clone(), Some(binding()))
    );
    let manifest = MemoryImage::decode(&encode(&image)).unwrap();
    assert_eq!((manifest.snapshot, manifest.binding), (image.clone(), None));
    let any = |bytes: &[u8]| AnySnapshot::decode(bytes).unwrap().snapshot;
    assert_eq!(
        any(&encode(&machine)),
        AnySnapshot::MicroVm(Box::new(machine))
    );
    assert_eq!(any(&encode(&image)), AnySnapshot::Memory(Box::new(image)));
}

#[test]
fn one_kind_is_not_read_as_another() {
    let (machine, image) = (encode(&machine()), encode(&image()));
    let reasons = [
        ProcessSnapshot::decode(&machine).unwrap_err(),
        MemoryImage::decode(&machine).unwrap_err(),
        MachineSnapshot::decode(&image).unwrap_err(),
    ];
    assert_eq!(
        reasons.map(|error| error.to_string()),
        [
            "the manifest is of a virtual machine, not of a process",
            "the manifest is of a virtual machine, not of a memory image",
            "the manifest is of a memory image, not of a virtual machine",
        ]
    );
}

#[test]
fn what_no_machine_can_be_in_is_refused() {
    let refuse = |reason: &str, change: &dyn Fn(&mut MachineSnapshot)| {
        let mut snapshot = machine();
        change(&mut snapshot);
        let error = snapshot.check().unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} instead of {reason:?}");
        // The same when it comes from a file.
        let error = MachineSnapshot::decode(&encode(&snapshot)).unwrap_err();
        assert!(matches!(error, ManifestError::Invalid(_)), "{error}");
    };
    let refuse_vcpu = |reason: &str, change: &dyn Fn(&mut VcpuState)| {
        refuse(reason, &|snapshot| change(&mut snapshot.vcpus[1]));
    };
    refuse("host: the kind of KVM", &|s| s.host.kvm.clear());
    refuse("no memory, or too much", &|s| s.hardware.memory_pages = 0);
    refuse("no memory, or too much", &|s| {
        s.hardware.memory_pages = 1 << 40
    });
    refuse("outside of it", &|s| {
        s.memory[2].address = 32768 * PAGE_SIZE
    });
    refuse("outside the pool", &|s| s.memory[0].pages = 21);
    refuse("pool that it may not use", &|s| {
        s.memory[0].pool_page = pool_page(2, 0)
    });
    refuse("not sorted, or overlap", &|s| s.memory.swap(0, 1));
    refuse("no processors, or too many", &|s| s.vcpus.clear());
    refuse("no processors, or too many", &|s| {
        s.vcpus = vec![vcpu(0); 33]
    });
    refuse_vcpu("processor 1: it has no features", &|v| v.cpuid.clear());
    refuse_vcpu("features is there twice", &|v| v.cpuid[1] = v.cpuid[0]);
    refuse_vcpu("none that a processor can be in", &|v| v.mp_state = 5);
    refuse_vcpu("larger than its bits", &|v| v.special.segments[3].dpl = 4);
    refuse_vcpu("paging without protected mode", &|v| v.special.cr0 ^= 1);
    refuse_vcpu("64-bit mode in one register", &|v| v.special.efer ^= 1 << 8);
    refuse_vcpu("without large page tables", &|v| v.special.cr4 = 0);
    refuse_vcpu("page-directory pointers", &|v| {
        v.special.pdptrs = Some([0; 4])
    });
    refuse_vcpu("task priority", &|v| v.special.cr8 = 16);
    refuse_vcpu("a length that none has", &|v| v.xsave.truncate(4092));
    refuse_vcpu("a length that none has", &|v| v.xsave = vec![0; 16388]);
    refuse_vcpu("control register is there twice", &|v| v.xcrs.push((0, 1)));
    refuse_vcpu("another length", &|v| v.lapic.push(0));
    refuse_vcpu("not sorted", &|v| v.msrs.swap(0, 1));
    refuse_vcpu("not sorted", &|v| v.msrs[1].0 = 0x10);
    refuse_vcpu("unknown flags", &|v| v.events.flags = 0x40);
    refuse_vcpu("a number that none has", &|v| {
        v.events.exception.number = 32
    });
    refuse_vcpu("on its way twice", &|v| {
        (v.events.exception.injected, v.events.exception.pending) = (true, true);
    });
    refuse_vcpu("larger than its bits", &|v| v.events.interrupt.shadow = 4);
    refuse_vcpu("impossible address", &|v| v.events.sipi_vector = 256);
    refuse_vcpu("stands still or is too fast", &|v| v.tsc_khz = 0);
    refuse("impossible time", &|s| s.chips.clock.clock_ns = u64::MAX);
    refuse("wall time is impossible", &|s| {
        s.chips.clock.realtime_ns = Some(u64::MAX)
    });
    refuse("not page aligned", &|s| s.chips.io_apic.base_address = 1);
    refuse("a device is there twice", &|s| {
        s.devices.push(s.devices[0].clone())
    });
    refuse("cannot have that name", &|s| {
        s.devices[0].name = "../etc".into()
    });
}

#[test]
fn an_image_that_cannot_be_is_refused() {
    let refuse = |reason: &str, change: &dyn Fn(&mut MemoryImage)| {
        let mut image = image();
        change(&mut image);
        let error = image.check().unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?}");
    };
    refuse("no memory, or too much", &|i| i.pages = 0);
    refuse("outside the pool", &|i| i.pool_pages = 19);
    refuse("outside of it", &|i| i.pages = 1003);
}

#[test]
fn the_golden_files_are_what_is_written() {
    let files = [
        ("v3.machine", machine().encode(Some(&binding()))),
        ("v3.memory", image().encode(Some(&binding()))),
    ];
    for (name, bytes) in files {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("ROUSE_WRITE_GOLDEN").is_some() {
            std::fs::write(&path, &bytes).unwrap();
        }
        let golden = std::fs::read(&path).unwrap();
        assert!(golden == bytes, "the bytes of {name} changed");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 600, ..ProptestConfig::default() })]

    /// Whatever field is changed, a manifest is refused, or is a value that is valid and gives the same bytes again.
    #[test]
    fn a_changed_field_is_refused_or_valid(
        of_image: bool, section: prop::sample::Index, at: prop::sample::Index, value: u8, long: bool
    ) {
        let bytes = if of_image { encode(&image()) } else { encode(&machine()) };
        let forged = forge(bytes, section, |contents| {
            if !contents.is_empty() {
                let at = at.index(contents.len());
                let end = if long { (at + 8).min(contents.len()) } else { at + 1 };
                contents[at..end].fill(value);
            }
        });
        if let Ok(manifest) = AnySnapshot::decode(&forged) {
            prop_assert_eq!(manifest.snapshot.check(), Ok(()));
            prop_assert!(manifest.snapshot.encode(manifest.binding.as_ref()) == forged);
        }
    }

    #[test]
    fn a_manifest_cut_off_is_refused(keep: prop::sample::Index) {
        let bytes = encode(&machine());
        let keep = keep.index(bytes.len());
        prop_assert!(MachineSnapshot::decode(&bytes[..keep]).is_err());
    }
}
