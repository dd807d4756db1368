//! What microVMs are asked to reach.

use std::collections::BTreeMap;

use super::report::{Cold, Middle, Profile};
use super::restored::Way;
use super::stored::{Learnt, Size};
use crate::bench::targets::{Bound, Target, target};

/// What a VMM may take beside its guest's pages, KiB.
const VMM_KIB: f64 = 4096.0;

/// All targets.
pub fn targets(
    cold: &Cold,
    profile: &Profile,
    stored: Size,
    learnt: &Learnt,
    restores: &BTreeMap<Way, Middle>,
) -> Vec<Target> {
    let of = |way: Way| {
        let missing = || format!("nothing was restored from: {}", way.name());
        restores.get(&way).ok_or_else(missing)
    };
    let prefetch = || of(Way::Prefetch);
    let reconnects = || {
        #[expect(clippy::cast_precision_loss, reason = "there are few machines")]
        let sum = restores
            .values()
            .map(|middle| middle.reconnects)
            .sum::<u64>() as f64;
        prefetch().map(|_| sum)
    };
    vec![
        target(
            "cold boot to answer / restore to answer, by the clock".to_owned(),
            Bound::AtLeast(20.0),
            prefetch().and_then(|restore| ratio(cold.spent.wall_ms, restore.spent.wall_ms)),
        ),
        target(
            "cold boot to answer / restore to answer, processor time".to_owned(),
            Bound::AtLeast(20.0),
            prefetch().and_then(|restore| ratio(cold.spent.cpu_ms, restore.spent.cpu_ms)),
        ),
        target(
            "faults of a restore with prefetch / without".to_owned(),
            Bound::AtMost(0.05),
            prefetch().and_then(|restore| ratio(restore.faults, of(Way::Lazy)?.faults)),
        ),
        target(
            "connections opened again by restored guests".to_owned(),
            Bound::AtMost(0.0),
            reconnects(),
        ),
        target(
            "stored bytes / memory of the guest".to_owned(),
            Bound::AtMost(0.12),
            Ok(stored.part_of_memory()),
        ),
        target(
            "stored bytes of a child / memory of the guest".to_owned(),
            Bound::AtMost(0.03),
            Ok(learnt.child.part_of_memory()),
        ),
        target(
            "precision of predicting the working set by owners of pages / without".to_owned(),
            Bound::AtLeast(1.5),
            ratio(learnt.aware.with.precision, learnt.aware.without.precision),
        ),
        target(
            "private memory of a restored VM / (1.3 x pages that it wrote + 4 MiB)".to_owned(),
            Bound::AtMost(1.0),
            prefetch().and_then(|restore| {
                let allowed = 1.3 * restore.written_pages * 4.0 + VMM_KIB;
                ratio(restore.private_kib, allowed)
            }),
        ),
        target(
            "private memory of a VMM beside its guest's pages, MiB".to_owned(),
            Bound::AtMost(VMM_KIB / 1024.0),
            prefetch().map(|restore| restore.vmm_kib / 1024.0),
        ),
        target(
            "processor time of a cold boot that its three largest parts name".to_owned(),
            Bound::AtLeast(0.5),
            three_largest(profile),
        ),
    ]
}

fn ratio(above: f64, below: f64) -> Result<f64, String> {
    if below > 0.0 {
        Ok(above / below)
    } else {
        Err("there was nothing to compare with".to_owned())
    }
}

fn three_largest(profile: &Profile) -> Result<f64, String> {
    let mut parts: Vec<f64> = (profile.boot.parts.iter())
        .map(|part| part.spent.cpu_ms)
        .collect();
    parts.sort_by(|a, b| b.total_cmp(a));
    ratio(parts.iter().take(3).sum(), profile.boot.spent.cpu_ms)
}
