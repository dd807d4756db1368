//! The Lambda Runtime API `2018-06-01`, served to one instance.
//!
//! [`session`] is the state machine: which request is legal when, and what waits for what. [`server`] speaks HTTP.

pub mod server;
pub mod session;
