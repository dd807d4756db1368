//! What the first program inside of a microVM and the host say to each other.
//!
//! The program itself is `src/main.rs`. Host and guest are of one release: the host brings the program along.

pub mod owners;
pub mod protocol;
