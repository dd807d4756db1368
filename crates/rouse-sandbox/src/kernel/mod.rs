//! Kernel interfaces that no crate offers in the form needed here, one module each.

pub mod api_socket;
pub mod clone;
pub mod loopback;
pub mod luggage;
pub mod mount;
pub mod namespace;
pub mod notification;
pub mod process;
pub mod socket;
