//! Samples of a pool, to train a dictionary on.

use std::io;

use rouse_snapshot::model::PAGE_SIZE;

use crate::pool::Pool;

/// Pages of a sample: those of the longest piece. Shorter samples gave dictionaries that gain less.
const PAGES: u64 = 16;
/// Bytes of all samples together: some 80 times a dictionary, 1 s of a processor. Half of a small pool gave dictionaries that
/// gain half as much as all of it.
const BYTES: u64 = 8 << 20;

/// Samples that lie evenly over a pool; those that repeat one byte are left out.
///
/// # Errors
/// What reading the pool says.
pub fn samples(pool: &Pool) -> io::Result<Vec<Vec<u8>>> {
    let there = pool.pages() / PAGES;
    let step = there.div_ceil(BYTES / (PAGES * PAGE_SIZE)).max(1);
    let mut found = Vec::new();
    for index in (0..there).step_by(step as usize) {
        let mut sample = vec![0; (PAGES * PAGE_SIZE) as usize];
        pool.read(index * PAGES, &mut sample)?;
        if sample.iter().any(|byte| *byte != sample[0]) {
            found.push(sample);
        }
    }
    Ok(found)
}
