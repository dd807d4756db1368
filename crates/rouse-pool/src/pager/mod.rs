//! The pager: a process that fills pool pages when somebody touches them, or before.
//!
//! It is started by the [keeper](crate::keeper), shares the keeper's descriptors, and may die at
//! any moment: the next one goes on with what lies in the [arena]. `docs/pager.md` has the whole
//! picture. This module is the process; [`keeper`](crate::keeper) is the daemon's side.

pub(crate) mod arena;
pub(crate) mod batch;
mod buffer;
mod engine;
pub(crate) mod protocol;
mod ranges;
mod reads;
mod reserve;
mod source;
mod target;
mod wire;

use std::sync::atomic::Ordering;

use rustix::process::Pid;

use arena::Arena;
use engine::Engine;
pub(crate) use source::read_copy;
pub use source::{MAX_PACKS, PoolSource};
pub(crate) use target::resident_pages;

/// The life of a pager. Returns its exit status: 0 when there is nothing left to do.
pub(crate) fn run(arena: &'static Arena, keeper: Pid) -> i32 {
    arena.generation.fetch_add(1, Ordering::Relaxed);
    let own = rustix::process::getpid().as_raw_pid() as u32;
    arena.pager.store(own, Ordering::Relaxed);
    reserve::touch();
    match Engine::start(arena, keeper).and_then(Engine::run) {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("rouse pager: {error}"));
            1
        }
    }
}

/// To whoever reads the daemon's log. Unlike `eprintln`, it does not mind when nobody does.
pub(crate) fn complain(text: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
