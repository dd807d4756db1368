//! What functions print: read from their pipes, cut into lines, kept for `LogType=Tail`, and written to files.
//!
//! Writing happens on a thread of its own; an invocation only hands lines over, and drops them (counted) when the
//! thread or the function's allowance cannot keep up.

pub mod capture;
pub mod files;
pub mod limit;
