//! How a guest learns that it is a copy.
//!
//! Two machines of one snapshot have the same memory, and so the same state of the kernel's random number generator. Two
//! devices, which ACPI declares, tell the kernel:
//!
//! ```text
//!  guest address   layout::CLOCK_PAGE                       layout::GENERATION_ID
//!                  +---------------------------------------+---------------------------+
//!                  | VMClock: how often it was restored    | VMGenID: 16 random bytes  |
//!                  +---------------------------------------+---------------------------+
//! ```
//!
//! Linux (`drivers/virt/vmgenid.c`, since 5.18) mixes the id into its generator and reseeds, when the interrupt of the
//! event device says that it has changed. VMClock (`drivers/ptp/ptp_vmclock.c`, since 6.13) is a page that programs can map,
//! to notice without a system call.
//!
//! Order after a restore, all before the first instruction: the id is written; then the counters; then the interrupt is
//! raised. What runs before the kernel takes the interrupt still draws from the old generator: so the first program to run
//! after a restore waits for it (`rouse-guest`).

mod clock_page;
mod tables;

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::layout;

pub use clock_page::ClockPage;
pub use tables::describe;

/// The line of the event device that tells of a change. The last one of the controller.
pub const GSI: u32 = 23;

/// A machine cannot be given an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No random bytes.
    #[error("the host gives no random bytes")]
    Random(#[source] io::Error),
    /// The places are no memory.
    #[error("the identity cannot be written to the guest's memory")]
    Memory(#[from] GuestMemoryError),
    /// No interrupt.
    #[error("the guest cannot be told of its new identity")]
    Interrupt(#[source] io::Error),
    /// The page is none: the snapshot is damaged, or its guest has written there.
    #[error("the clock page of the guest is none")]
    NoClockPage,
}

/// The devices. They remember nothing but what is in the guest's memory.
pub struct Identity {
    interrupt: EventFd,
}

impl Identity {
    /// Makes them.
    ///
    /// # Errors
    /// If there is no eventfd.
    pub fn new() -> io::Result<Self> {
        let interrupt = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { interrupt })
    }

    /// What raises their interrupt.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// The identity of a machine that is about to boot.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn begin(&self, memory: &GuestMemoryMmap) -> Result<(), IdentityError> {
        memory.write_obj(fresh()?, GuestAddress(layout::GENERATION_ID))?;
        memory.write_slice(
            ClockPage::default().as_bytes(),
            GuestAddress(layout::CLOCK_PAGE),
        )?;
        Ok(())
    }

    /// Another identity, for a machine that is restored or rewound, before its first instruction.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn renew(&self, memory: &GuestMemoryMmap) -> Result<(), IdentityError> {
        memory.write_obj(fresh()?, GuestAddress(layout::GENERATION_ID))?;
        let mut page: ClockPage = memory.read_obj(GuestAddress(layout::CLOCK_PAGE))?;
        if !page.is_one() {
            return Err(IdentityError::NoClockPage);
        }
        // The guest does not run, so that nobody can see the page half written; the protocol of the page is kept anyway.
        page.disrupt();
        memory.write_slice(page.as_bytes(), GuestAddress(layout::CLOCK_PAGE))?;
        self.interrupt.write(1).map_err(IdentityError::Interrupt)
    }
}

/// Random bytes of the host.
fn fresh() -> Result<u128, IdentityError> {
    let mut bytes = [0_u8; 16];
    // 16 bytes are given whole or not at all.
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(16) => Ok(u128::from_ne_bytes(bytes)),
        Ok(_) => Err(IdentityError::Random(io::ErrorKind::UnexpectedEof.into())),
        Err(errno) => Err(IdentityError::Random(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("there is memory")
    }

    fn id(memory: &GuestMemoryMmap) -> u128 {
        memory
            .read_obj(GuestAddress(layout::GENERATION_ID))
            .expect("it is memory")
    }

    #[test]
    fn each_restore_has_another_identity_and_says_so() {
        let memory = memory();
        let identity = Identity::new().expect("an eventfd can be made");
        identity.begin(&memory).expect("it is memory");
        assert!(identity.interrupt().read().is_err(), "nobody was told");
        let mut seen = vec![id(&memory)];
        for restore in 1..=3 {
            identity.renew(&memory).expect("it is memory");
            assert_eq!(identity.interrupt().read().expect("raised"), 1);
            let new = id(&memory);
            assert!(new != 0 && !seen.contains(&new));
            seen.push(new);
            let page: ClockPage = memory
                .read_obj(GuestAddress(layout::CLOCK_PAGE))
                .expect("it is memory");
            assert_eq!(page.generation(), restore);
        }
    }

    #[test]
    fn a_page_that_is_none_is_refused() {
        let identity = Identity::new().expect("an eventfd can be made");
        assert!(matches!(
            identity.renew(&memory()),
            Err(IdentityError::NoClockPage)
        ));
    }
}
