//! Which request runs next: bounded queues, fairness, and what the host can take.
//!
//! ```text
//!              arrive            next             started            leave
//!   request ----------> Queued --------> Starting --------> Running --------> gone
//!      |                   |                 |
//!      | refused (429)     | leave: the      | leave: it failed,
//!      v                   v client went     v or was cancelled
//! ```
//! [`queue`] decides, as a pure type; [`gate`] lets tasks wait for its decisions; [`estimate`] knows what a function's
//! requests take. `docs/serving.md` says what is promised.

pub mod estimate;
pub mod gate;
pub mod queue;

pub use gate::{Gate, NotAdmitted, Permit, StartSlot};
pub use queue::{Capacity, FlowLimits, Throttle};
