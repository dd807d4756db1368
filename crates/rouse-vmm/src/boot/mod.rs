//! What lies in a guest's memory and registers when its kernel gets control: Linux's 64-bit boot protocol
//! (Linux: Documentation/arch/x86/boot.rst).

mod acpi;
mod load;
mod registers;

pub use load::{LoadError, load};
pub use registers::{RegistersError, start};

/// Where the kernel is entered.
#[derive(Debug, Clone, Copy)]
pub struct Entry(pub u64);
