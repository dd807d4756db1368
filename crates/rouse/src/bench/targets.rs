//! What the boot paths are asked to reach. Latencies and memory are ratios against figures of the same run, since
//! absolute ones say more about the machine than about rouse.

use std::fmt;

use serde::{Serialize, Serializer};

use super::paths::BenchPath;
use super::report::{FunctionReport, Row};

/// One figure that is asked for.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// What is compared.
    pub name: String,
    /// The bound.
    pub asked: Bound,
    /// What was reached; `null` where it could not be measured.
    pub value: Option<f64>,
    /// Whether the bound holds; `null` where it could not be measured.
    pub met: Option<bool>,
    /// Why it could not be measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A bound of a figure. Written `<= 1.5`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// At most.
    AtMost(f64),
    /// At least.
    AtLeast(f64),
    /// Less than.
    Below(f64),
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
            Self::Below(bound) => write!(f, "< {bound}"),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= bound,
            Self::AtLeast(bound) => value >= bound,
            Self::Below(bound) => value < bound,
        }
    }
}

/// The pause of a checkpoint, or why it is not known.
pub type Pause = Result<u64, String>;

/// Function whose cold start and restore are compared.
const HEAVY: &str = "python-numpy-pillow";

/// All targets, for the functions that were measured.
pub fn all(
    functions: &[FunctionReport],
    concurrencies: &[usize],
    pause_us: Option<Pause>,
) -> Vec<Target> {
    let mut targets = Vec::new();
    for function in functions {
        for path in [BenchPath::Fork, BenchPath::Restore] {
            for concurrency in concurrencies {
                for (percentile, figure, bound) in
                    [("p50", p50 as Figure, 1.5), ("p99", p99 as Figure, 3.0)]
                {
                    let name = format!(
                        "{}: {} {percentile} / floor {percentile}, at concurrency {concurrency}",
                        function.name,
                        path.name()
                    );
                    targets.push(ratio(
                        function,
                        name,
                        (path, figure),
                        (BenchPath::Floor, figure),
                        *concurrency,
                        Bound::AtMost(bound),
                    ));
                }
            }
        }
        if function.name == HEAVY {
            let name = format!("{HEAVY}: cold p50 / restore p50, at concurrency 1");
            targets.push(ratio(
                function,
                name,
                (BenchPath::Cold, p50),
                (BenchPath::Restore, p50),
                1,
                Bound::AtLeast(50.0),
            ));
        }
        for path in [BenchPath::Fork, BenchPath::Restore] {
            let name = format!(
                "{}: memory copied by {} / by the floor's child",
                function.name,
                path.name()
            );
            targets.push(ratio(
                function,
                name,
                (path, copied),
                (BenchPath::Floor, copied),
                1,
                Bound::AtMost(1.3),
            ));
        }
    }
    if let Some(pause) = pause_us {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a pause in microseconds fits 52 bits"
        )]
        let value = pause.map(|us| us as f64 / 1e3);
        targets.push(target(
            "checkpoint's pause at 64 MiB resident, ms".to_owned(),
            Bound::Below(150.0),
            value,
        ));
    }
    targets
}

type Figure = fn(&Row) -> Option<f64>;

fn p50(row: &Row) -> Option<f64> {
    row.p50_us
}

fn p99(row: &Row) -> Option<f64> {
    row.p99_us
}

fn copied(row: &Row) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "KiB of a process fit 52 bits")]
    row.copied_kib.map(|kib| kib as f64)
}

fn ratio(
    function: &FunctionReport,
    name: String,
    above: (BenchPath, Figure),
    below: (BenchPath, Figure),
    concurrency: usize,
    bound: Bound,
) -> Target {
    let figure = |(path, figure): (BenchPath, Figure)| {
        let missing = || match (&function.no_floor, path) {
            (Some(reason), BenchPath::Floor) => reason.clone(),
            _ => format!("no figure for {}", path.name()),
        };
        function
            .row(path, concurrency)
            .and_then(figure)
            .ok_or_else(missing)
    };
    let value = figure(above).and_then(|above| Ok(above / figure(below)?));
    target(name, bound, value)
}

/// A figure that was reached, or why it is not known.
pub fn target(name: String, asked: Bound, value: Result<f64, String>) -> Target {
    match value {
        Ok(value) => Target {
            name,
            asked,
            value: Some((value * 1000.0).round() / 1000.0),
            met: Some(asked.holds(value)),
            reason: None,
        },
        Err(reason) => Target {
            name,
            asked,
            value: None,
            met: None,
            reason: Some(reason),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn row(us: f64, kib: u64) -> Row {
        Row {
            concurrency: 1,
            n: 1,
            p50_us: Some(us),
            p99_us: Some(2.0 * us),
            stages_us: Vec::new(),
            minor_faults: Some(1),
            pss_kib: Some(kib),
            uss_kib: Some(kib),
            copied_kib: Some(kib),
            wrong: 0,
            first_wrong: None,
        }
    }

    #[test]
    fn bounds_are_checked_and_gaps_are_explained() {
        let paths = BTreeMap::from([
            (BenchPath::Floor, vec![row(1000.0, 100)]),
            (BenchPath::Fork, vec![row(1500.0, 131)]),
            (BenchPath::Restore, vec![row(1501.0, 130)]),
            (BenchPath::Cold, vec![row(80_000.0, 9000)]),
        ]);
        let heavy = FunctionReport {
            name: HEAVY.to_owned(),
            paths,
            no_floor: None,
        };
        let node = FunctionReport {
            name: "node".to_owned(),
            paths: BTreeMap::from([(BenchPath::Fork, vec![row(1.0, 1)])]),
            no_floor: Some("no compiler".to_owned()),
        };
        let targets = all(&[heavy, node], &[1], Some(Err("no snapshot".to_owned())));
        let met = |needle: &str| {
            targets
                .iter()
                .find(|target| target.name.contains(needle))
                .map(|target| target.met)
        };
        assert_eq!(met("numpy-pillow: fork p50"), Some(Some(true)));
        assert_eq!(met("numpy-pillow: restore p50"), Some(Some(false)));
        assert_eq!(met("cold p50 / restore p50"), Some(Some(true)));
        assert_eq!(met("copied by fork"), Some(Some(false)));
        assert_eq!(met("copied by restore"), Some(Some(true)));
        let node_fork = targets
            .iter()
            .find(|target| target.name.starts_with("node: fork p50"))
            .expect("target");
        assert_eq!(
            (node_fork.met, node_fork.reason.as_deref()),
            (None, Some("no compiler"))
        );
        let pause = targets.last().expect("pause");
        assert_eq!(
            (pause.met, serde_json::to_value(pause.asked).expect("json")),
            (None, serde_json::json!("< 150"))
        );
    }
}
