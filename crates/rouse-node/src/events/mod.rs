//! Asynchronous invocations: stored before they are acknowledged, delivered in the background, tried again, and found
//! again after a restart.
//!
//! ```text
//!   Invoke (Event) --> stored --> attempt --> answered ------------> on-success destination
//!                        ^           |
//!                        | pause     | failed
//!                        +-----------+------ no attempt left, ----> on-failure destination
//!                                            or too old              and dead-letter queue
//! ```
//! Delivery is at least once, as in Lambda: a node that is killed during an attempt makes it again. What follows from the end
//! of an event is stored in the transaction that removes it, as events of their own, so that none gets lost in between.
//!
//! | module | holds |
//! |---|---|
//! | [`policy`] | what may be decided for a function: retries, age, destinations |
//! | [`delivery`] | acceptance and attempts |
//! | [`outcome`] | what a destination is told |
//! | [`queues`] | queues as directories, for destinations that are not functions |
//! | [`control`] | Lambda's operations on the policy |

pub mod control;
pub mod delivery;
pub mod outcome;
pub mod policy;
pub mod queues;

pub use delivery::{EventSender, MAX_EVENT};
