//! The command as people run it: a real node, started by `rouse serve`, and the other commands against it. Needs root.

mod functions;
mod node;
mod quickstart;
mod serve;
