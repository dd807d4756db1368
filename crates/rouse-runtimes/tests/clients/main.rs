//! The clients as real processes, against a server that speaks the Runtime API and nothing else.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod api;
mod node;
mod python;
mod unique;
