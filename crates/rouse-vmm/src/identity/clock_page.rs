//! The page of VMClock, version 1 (`include/uapi/linux/vmclock-abi.h`; the specification is that of the Amazon Nitro and
//! QEMU teams). rouse says in it how often a machine was disrupted, and nothing of time: its guests have KVM's clock.

use vm_memory::ByteValued;

const MAGIC: u32 = u32::from_le_bytes(*b"VCLK");
const SIZE: u32 = 0x1000;
const VERSION: u16 = 1;
/// `VMCLOCK_COUNTER_INVALID`: no time is given.
const COUNTER_INVALID: u8 = 0xff;
/// `VMCLOCK_TIME_UTC`: the kind of time that would be given.
const TIME_UTC: u8 = 0;
/// `VMCLOCK_STATUS_UNKNOWN`.
const STATUS_UNKNOWN: u8 = 0;
/// `VMCLOCK_FLAG_VM_GEN_COUNTER_PRESENT` and `VMCLOCK_FLAG_NOTIFICATION_PRESENT`.
const FLAGS: u64 = 1 << 8 | 1 << 9;

/// `struct vmclock_abi`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ClockPage {
    magic: u32,
    size: u32,
    version: u16,
    counter_id: u8,
    time_type: u8,
    /// Odd while the page is being changed.
    sequence: u32,
    disruption_marker: u64,
    flags: u64,
    reserved: [u8; 2],
    clock_status: u8,
    leap_second_smearing: u8,
    tai_offset: i16,
    leap_indicator: u8,
    counter_period_shift: u8,
    counter_value: u64,
    counter_period: [u64; 3],
    time_sec: u64,
    time_frac_sec: u64,
    time_errors: [u64; 2],
    generation: u64,
}

const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(ClockPage, sequence) == 12);
    assert!(offset_of!(ClockPage, disruption_marker) == 16);
    assert!(offset_of!(ClockPage, flags) == 24);
    assert!(offset_of!(ClockPage, clock_status) == 34);
    assert!(offset_of!(ClockPage, counter_value) == 40);
    assert!(offset_of!(ClockPage, time_sec) == 72);
    assert!(offset_of!(ClockPage, generation) == 104);
    assert!(size_of::<ClockPage>() == 112);
};

// SAFETY: only numbers, without padding (112 bytes are the sum of the fields), and any bytes are a value of it.
unsafe impl ByteValued for ClockPage {}

impl Default for ClockPage {
    fn default() -> Self {
        Self {
            magic: MAGIC,
            size: SIZE,
            version: VERSION,
            counter_id: COUNTER_INVALID,
            time_type: TIME_UTC,
            sequence: 0,
            disruption_marker: 0,
            flags: FLAGS,
            reserved: [0; 2],
            clock_status: STATUS_UNKNOWN,
            leap_second_smearing: 0,
            tai_offset: 0,
            leap_indicator: 0,
            counter_period_shift: 0,
            counter_value: 0,
            counter_period: [0; 3],
            time_sec: 0,
            time_frac_sec: 0,
            time_errors: [0; 2],
            generation: 0,
        }
    }
}

impl ClockPage {
    /// As it lies in the guest's memory.
    pub fn as_bytes(&self) -> &[u8] {
        self.as_slice()
    }

    pub(super) fn is_one(&self) -> bool {
        (self.magic, self.version) == (MAGIC, VERSION)
    }

    /// The machine has been restored: its clocks may have jumped, and it may have become several.
    pub(super) fn disrupt(&mut self) {
        self.disruption_marker = self.disruption_marker.wrapping_add(1);
        self.generation = self.generation.wrapping_add(1);
        // Even: the page is complete.
        self.sequence = (self.sequence | 1).wrapping_add(1);
    }

    /// How often the machine was restored.
    #[cfg(test)]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}
