//! The devices as ACPI declares them.
//!
//! A machine of the reduced kind has no general-purpose events. What tells its kernel that something has happened is the
//! *generic event device*: it has an interrupt, and a method that is run when it comes, which notifies the others.

use acpi_tables::Aml;
use acpi_tables::aml;

use super::GSI;
use crate::layout;

/// What a device is notified of: VMGenID and VMClock both call it 0x80.
const CHANGED: u8 = 0x80;
/// `_STA`: present, enabled, shown, working.
const PRESENT: u8 = 0xf;

/// The devices, for the table DSDT.
pub fn describe() -> Vec<u8> {
    let mut bytes = Vec::new();
    generation_id().to_aml_bytes(&mut bytes);
    clock(&mut bytes);
    events(&mut bytes);
    bytes
}

struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn generation_id() -> Encoded {
    let mut bytes = Vec::new();
    let id = aml::Name::new("_HID".into(), &"VMGENCTR");
    let compatible = aml::Name::new("_CID".into(), &"VM_Gen_Counter");
    let description = aml::Name::new("_DDN".into(), &"VM_Gen_Counter");
    let number = aml::Name::new("_UID".into(), &0_u8);
    let state = aml::Name::new("_STA".into(), &PRESENT);
    // The address in two halves.
    let (low, high) = halves(layout::GENERATION_ID);
    let address = aml::Name::new("ADDR".into(), &aml::Package::new(vec![&low, &high]));
    aml::Device::new(
        "_SB_.VGEN".into(),
        vec![&id, &compatible, &description, &number, &state, &address],
    )
    .to_aml_bytes(&mut bytes);
    Encoded(bytes)
}

fn clock(bytes: &mut Vec<u8>) {
    let id = aml::Name::new("_HID".into(), &"AMZNC10C");
    let compatible = aml::Name::new("_CID".into(), &"VMCLOCK");
    let description = aml::Name::new("_DDN".into(), &"VMCLOCK");
    let number = aml::Name::new("_UID".into(), &0_u8);
    let state = aml::Name::new("_STA".into(), &PRESENT);
    let begin = layout::CLOCK_PAGE;
    let page = aml::AddressSpace::new_memory(
        aml::AddressSpaceCacheable::Cacheable,
        false,
        begin,
        begin + 0xfff,
        None,
    );
    let resources = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&page]));
    aml::Device::new(
        "_SB_.VCLK".into(),
        vec![&id, &compatible, &description, &number, &state, &resources],
    )
    .to_aml_bytes(bytes);
}

fn events(bytes: &mut Vec<u8>) {
    let id = aml::Name::new("_HID".into(), &"ACPI0013");
    let number = aml::Name::new("_UID".into(), &0_u8);
    let interrupt = aml::Interrupt::new(true, true, false, false, GSI);
    let resources = aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&interrupt]));
    let generation_id = aml::Path::new("\\_SB_.VGEN");
    let clock = aml::Path::new("\\_SB_.VCLK");
    let tell_id = aml::Notify::new(&generation_id, &CHANGED);
    let tell_clock = aml::Notify::new(&clock, &CHANGED);
    let cause = aml::Arg(0);
    let ours = aml::Equal::new(&cause, &GSI);
    let tell = aml::If::new(&ours, vec![&tell_id, &tell_clock]);
    let method = aml::Method::new("_EVT".into(), 1, true, vec![&tell]);
    aml::Device::new("_SB_.GED_".into(), vec![&id, &number, &resources, &method])
        .to_aml_bytes(bytes);
}

fn halves(address: u64) -> (u32, u32) {
    let low = u32::try_from(address & 0xffff_ffff).expect("it is masked");
    let high = u32::try_from(address >> 32).expect("it is shifted");
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_device_is_declared_with_its_ids() {
        let bytes = describe();
        for word in [
            &b"VMGENCTR"[..],
            b"VM_Gen_Counter",
            b"AMZNC10C",
            b"VMCLOCK",
            b"ACPI0013",
            b"_EVT",
        ] {
            let found = bytes.windows(word.len()).any(|window| window == word);
            assert!(found, "{}", String::from_utf8_lossy(word));
        }
        assert_eq!(halves(0x12_3456_789a), (0x3456_789a, 0x12));
    }
}
