//! What is asked of the memory of snapshots, and what was reached.

use std::collections::BTreeMap;

use super::fleet::{Idle, Shared};
use super::live::Live;
use super::report::FunctionReport;
use super::situation::Situation;
use crate::bench::targets::{Bound, Target, target};

/// A part of the benchmark, or why there is none.
pub type Part<T> = Result<T, String>;

/// Everything that figures are made of.
#[derive(Debug)]
pub struct Found<'a> {
    /// Restores of each function.
    pub functions: &'a [FunctionReport],
    /// Live instances.
    pub live: &'a Part<Live>,
    /// Functions that share a template.
    pub shared: &'a Part<Shared>,
    /// Idle functions.
    pub idle: &'a Part<Idle>,
}

/// All figures, each once. Where several functions count, the worst one does.
pub fn all(found: &Found<'_>) -> Vec<Target> {
    use Situation::{Compressed, DiskLazy, DiskPrefetch, Dram, PacedCompressed, PacedPlain};
    let shared = |figure: fn(&Shared) -> (u64, u64)| {
        let shared = found.shared.as_ref().map_err(Clone::clone)?;
        Ok(ratio(figure(shared)))
    };
    let idle = found.idle.as_ref().map_err(Clone::clone);
    vec![
        target(
            "disk: p50 lazy / p50 prefetch, worst function".into(),
            Bound::AtLeast(4.0),
            worst(found.functions, DiskLazy, DiskPrefetch, f64::min),
        ),
        target(
            "disk: p50 prefetch / p50 dram, worst function".into(),
            Bound::AtMost(1.5),
            worst(found.functions, DiskPrefetch, Dram, f64::max),
        ),
        target(
            "compressed: p50 / p50 dram, worst function".into(),
            Bound::AtMost(1.3),
            worst(found.functions, Compressed, Dram, f64::max),
        ),
        target(
            "compressed: DRAM of the pool / DRAM compressed, worst function".into(),
            Bound::AtLeast(2.5),
            least_saved(found.functions),
        ),
        target(
            "disk of 500 MB/s: p50 uncompressed / p50 compressed, worst function".into(),
            Bound::AtLeast(1.0),
            worst(found.functions, PacedPlain, PacedCompressed, f64::min),
        ),
        target(
            "20 functions with one template: stored / 20 full images".into(),
            Bound::AtMost(0.25),
            shared(|shared| (shared.stored_kib, shared.full_stored_kib)),
        ),
        target(
            "20 functions with one template: DRAM / 20 full images".into(),
            Bound::AtMost(0.40),
            shared(|shared| (shared.dram_kib, shared.full_dram_kib)),
        ),
        target(
            "live instances: (memory of one more - 256 KiB) / its private pages".into(),
            Bound::AtMost(1.2),
            found.live.as_ref().map(Live::ratio).map_err(Clone::clone),
        ),
        target(
            "idle functions: DRAM held for each, KiB".into(),
            Bound::AtMost(64.0),
            idle.clone().map(|idle| idle.each_kib),
        ),
        target(
            "idle functions: p50 of the first call / p50 dram".into(),
            Bound::AtMost(1.5),
            idle.and_then(|idle| {
                let both = idle.first_p50_us.zip(idle.dram_p50_us);
                let (first, dram) = both.ok_or("no call was answered")?;
                Ok(first / dram)
            }),
        ),
    ]
}

/// The worst ratio of two situations among functions that have both.
fn worst(
    functions: &[FunctionReport],
    above: Situation,
    below: Situation,
    choose: fn(f64, f64) -> f64,
) -> Part<f64> {
    let ratios = functions
        .iter()
        .filter_map(|function| function.ratio(above, below));
    ratios
        .reduce(choose)
        .ok_or_else(|| "it was not measured".to_owned())
}

/// How many times less memory the snapshot takes that is compressed worst.
fn least_saved(functions: &[FunctionReport]) -> Part<f64> {
    let tried = functions.iter().filter(|f| f.compressed_bytes > 0);
    tried
        .map(|function| ratio((function.pool_pages * 4096, function.compressed_bytes)))
        .reduce(f64::min)
        .ok_or_else(|| "it was not measured".to_owned())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "memory of a machine is far below 2^52"
)]
fn ratio((above, below): (u64, u64)) -> f64 {
    above as f64 / below.max(1) as f64
}

/// p50s of situations, microseconds, for tests and charts.
pub fn p50s(function: &FunctionReport) -> BTreeMap<Situation, f64> {
    let rows = function.situations.iter();
    rows.filter_map(|(situation, seen)| Some((*situation, seen.row.p50_us?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::memory::live::Crowd;

    #[test]
    fn what_is_missing_is_explained() {
        let crowd = Crowd {
            instances: 1,
            pss_kib: 0,
            kernel_kib: 0,
            private_kib: 0,
            available_kib: 0,
        };
        let live = Live {
            one: crowd,
            many: crowd,
            added_kib: 1456.0,
            private_kib: 1000.0,
            system_kib: 0.0,
            wrong: 0,
        };
        let shared = Shared {
            functions: 20,
            stored_kib: 26,
            dram_kib: 39,
            full_stored_kib: 100,
            full_dram_kib: 100,
            wrong: 0,
        };
        let targets = all(&Found {
            functions: &[],
            live: &Ok(live),
            shared: &Ok(shared),
            idle: &Err("nobody idles".to_owned()),
        });
        let met: Vec<_> = targets.iter().map(|target| target.met).collect();
        let (yes, no) = (Some(true), Some(false));
        assert_eq!(
            met,
            [None, None, None, None, None, no, yes, yes, None, None]
        );
        let mut reasons = targets.iter().filter(|target| target.met.is_none());
        assert!(reasons.clone().all(|target| target.reason.is_some()));
        assert_eq!(
            reasons
                .next_back()
                .and_then(|target| target.reason.as_deref()),
            Some("nobody idles")
        );
    }
}
