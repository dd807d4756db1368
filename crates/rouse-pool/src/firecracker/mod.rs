//! Pages for other VMMs: Firecracker's userfaultfd protocol, from the side of the handler.
//!
//! ```text
//!  Firecracker                                       this process
//!  maps guest memory, makes a userfaultfd
//!  connects ------ JSON regions, userfaultfd ------> [`receive`]: parsed, checked
//!  runs the guest
//!    touches a page ---- fault ---------------->     [`Pages`]: absent, present or removed?
//!    waits                                           [`Contents`]: a file, or a stored snapshot
//!    goes on <---------- UFFDIO_COPY ------------
//!    balloon: madvise -- REMOVE ---------------->    zeros from now on
//!  ends ------------- the connection closes ----->   [`serve`] returns
//! ```
//!
//! What the kernel and Firecracker demand of a handler:
//!
//! - while a REMOVE is unread, all filling is refused: whoever fills must then read, and not wait. So one thread does both,
//!   and keeps a fault that it could not answer;
//! - a REMOVE and a fault may be read in another order than they happened. So all events that are there are read, and every
//!   REMOVE is taken in, before a fault is answered;
//! - a page that is there already is as good as filled, but its waiter must be woken;
//! - what was removed is zeros, and not what the file has;
//! - Firecracker never answers and keeps the connection open as long as it lives: its end is the end of the machine.
//!
//! Regions, faults and events come from another process, which may be under a guest's control: a page outside of the regions
//! is never filled, and no number in a message decides how much memory is taken.

mod contents;
mod error;
mod handshake;
mod import;
mod pages;
mod serve;

pub use contents::{Contents, FileContents, SnapshotContents};
pub use error::{HandshakeError, ServeError};
pub use handshake::{Handshake, receive};
pub use import::import;
pub use pages::{PageState, Pages, Region, Regions};
pub use serve::{Served, serve};
