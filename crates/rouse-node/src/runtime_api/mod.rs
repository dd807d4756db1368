//! The Lambda Runtime API `2018-06-01`, served to one instance.
//!
//! [`session`] is the state machine: which request is legal when, and what waits for what. [`server`] has the connections,
//! [`routes`] speaks HTTP on them, and [`answers`] is what is said to requests that were made before a snapshot.

pub mod answers;
pub mod routes;
pub mod server;
pub mod session;

#[cfg(test)]
mod tests;
