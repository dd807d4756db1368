//! The same work for many items, on a few threads.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// More do not help: `pwrite` into one memfd takes the lock of its inode.
const MAX_THREADS: usize = 4;
/// Below this many items a thread is not worth its start.
const ITEMS_PER_THREAD: usize = 16;

/// Calls `run` with each number below `count`, from several threads, until one fails.
///
/// `scratch` makes what each thread keeps between its calls. Which of several errors comes back is
/// left to chance.
pub(super) fn for_each<S, E: Send>(
    count: usize,
    scratch: impl Fn() -> S + Sync,
    run: impl Fn(&mut S, usize) -> Result<(), E> + Sync,
) -> Result<(), E> {
    // The counter orders nothing: items are independent, and the end of the scope orders all work
    // before what comes next.
    let next = AtomicUsize::new(0);
    let failed = Mutex::new(None);
    let work = || {
        let mut state = scratch();
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= count {
                break;
            }
            if let Err(error) = run(&mut state, item) {
                next.store(count, Ordering::Relaxed);
                failed
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
                break;
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = (count / ITEMS_PER_THREAD).clamp(1, cores.min(MAX_THREADS));
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// The results of `run` for each number below `count`, in their order.
pub(super) fn map<S, T: Send, E: Send>(
    count: usize,
    scratch: impl Fn() -> S + Sync,
    run: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let done = Mutex::new(Vec::with_capacity(count));
    for_each(count, scratch, |state, item| {
        let result = run(state, item)?;
        done.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((item, result));
        Ok(())
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(item, _)| *item);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}
