//! The switch: three registers of ACPI's reduced hardware, as the tables announce them, and one of the keyboard controller.
//!
//! The latter is where kernels turn to when ACPI does not reset the machine, or is not up yet. There is no keyboard and no
//! table says that there is; but a kernel that resets looks at its status first, 65,536 times if it seems busy, which in a
//! virtual machine takes minutes.

use super::Request;

/// ACPI's sleep control register.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's sleep status register: nothing ever wakes this machine.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI's reset register.
pub const RESET: u16 = 0x602;
/// What is written to it.
pub const RESET_VALUE: u8 = 1;
/// The keyboard controller's status and command register.
pub const KEYBOARD: u16 = 0x64;
/// Its command to pulse the line that resets the processor.
pub const KEYBOARD_RESET: u8 = 0xfe;
/// The sleep type that stands for off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// "SLP_EN", and where the type lies beside it.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// It has no state.
pub struct Power;

impl Power {
    /// What `port` reads as, if it is one of its own.
    #[must_use]
    pub fn read(port: u16) -> Option<u8> {
        matches!(port, SLEEP_CONTROL | SLEEP_STATUS | RESET | KEYBOARD).then_some(0)
    }

    /// What writing `value` to `port` asks for.
    #[must_use]
    pub fn write(port: u16, value: u8) -> Option<Request> {
        const OFF: u8 = SLEEP_ENABLE | SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT;
        match (port, value) {
            (SLEEP_CONTROL, OFF) => Some(Request::Off),
            (RESET, RESET_VALUE) | (KEYBOARD, KEYBOARD_RESET) => Some(Request::Reset),
            _ => None,
        }
    }
}
