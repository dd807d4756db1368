//! Versions of a function's snapshot: at which point they are taken, which of them is used, and which are kept.
//!
//! ```text
//!   policy ---> build (engine::build) ---> a version: directory REVISION-N
//!                                             |  auto: measured against the current one, and kept only if better
//!                                             v
//!   kept versions <--- the one before --- current <--- rollback, or the current one is damaged
//!        |
//!        `--- the oldest, when there are too many: removed, and collected from the chunk store
//! ```
//! A snapshot never contains what a caller has sent: what runs before it are events that the function's owner gave, in an
//! instance that was started for it. [`warm_up`] runs them, [`policy`] decides, [`compare`] measures, [`history`] is what is
//! stored, [`switch`] changes which version is current. docs/snapshot-point.md says why.

pub mod compare;
pub mod describe;
pub mod history;
pub mod policy;
pub mod switch;
pub mod take;
pub mod warm_up;
