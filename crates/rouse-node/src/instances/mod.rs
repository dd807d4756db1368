//! Instances that can be named: listed, forked, given an event, ended.
//!
//! | kind | comes from | is given events |
//! |---|---|---|
//! | *kept* | a request that it has answered, where instances are used again | by the node, and by whoever names it |
//! | *held* | `start` or `fork` | only by whoever names it |
//!
//! ```text
//!            start              fork                      end, its time is over, its process ends
//!  snapshot -------> held -----------------> held ... N ------------------------------> gone
//!                     |   waits in its seat,   ^
//!                     '---> a request ---------'
//! ```
//! A held instance is one that somebody has a use for: its state. The node does not replace it when it is gone.

pub mod fork;
mod id;
pub mod list;
mod roster;
mod start;

pub use id::{InstanceId, NoInstanceId};
pub use roster::{Badge, Roster};
