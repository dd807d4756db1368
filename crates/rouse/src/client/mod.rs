//! The client of a node: its HTTP connection, and the operations of its API.

pub mod api;
pub mod connection;
pub mod endpoint;
pub mod path;
pub mod shapes;
