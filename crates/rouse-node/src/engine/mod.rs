//! From a request to an answer: which boot path, one instance, its end.
//!
//! [`function`] is what the node knows about a function while it runs, [`environment`] what its processes see,
//! [`admission`] which request runs next, [`runner`] one instance with its runtime API, [`lifecycle`] its states, [`build`]
//! the way to a snapshot, [`trial`] whether it works, [`rehearsal`] the first look at what its calls touch, [`invoke`] one
//! invocation, and [`report`] the texts that Lambda has for how it ended.

pub mod admission;
pub mod build;
pub mod environment;
pub mod function;
pub mod invoke;
pub mod lifecycle;
pub mod parking;
mod rehearsal;
pub mod report;
pub mod runner;
pub mod standby;
pub mod trial;
