//! The switch: three registers of ACPI's reduced hardware, as the tables announce them.

use super::Request;

/// ACPI's sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register: nothing ever wakes this machine.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI's reset register.
pub const RESET: u16 = 0x602;
/// What is written to it.
pub const RESET_VALUE: u8 = 1;
/// The sleep type that stands for off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// "SLP_EN", and where the type lies beside it.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// It has no state.
pub struct Power;

impl Power {
    pub fn read(port: u16) -> Option<u8> {
        matches!(port, SLEEP_CONTROL | SLEEP_STATUS | RESET).then_some(0)
    }

    pub fn write(port: u16, value: u8) -> Option<Request> {
        const OFF: u8 = SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT;
        match (port, value) {
            (SLEEP_CONTROL, OFF) => Some(Request::Off),
            (RESET, RESET_VALUE) => Some(Request::Reset),
            _ => None,
        }
    }
}
