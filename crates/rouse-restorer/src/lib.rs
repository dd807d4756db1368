//! The restorer: turns a blank process into an instance by running a list of operations.
//!
//! A restore replaces the whole address space of a process, including the code that does the
//! replacing. So the last steps run from a page of position-independent machine code at an
//! address that is free in the old layout and in the new one. That code is an interpreter: it
//! walks a list of [`Op`]s, nearly all of which are system calls with arguments that were worked
//! out ahead, once for a snapshot. It needs no stack, no libc and no relocation, and each
//! instance maps the same pages of it.
//!
//! - [`op`]: the operations and their layout in memory, and the interpreter's code;
//! - [`program`]: puts operations, their data and the code together into one image;
//! - [`sigframe`]: the signal frame through which a thread gets its registers back;
//! - [`enter`]: maps a program into the calling process and jumps into it.

pub mod enter;
pub mod op;
pub mod program;
pub mod sigframe;
