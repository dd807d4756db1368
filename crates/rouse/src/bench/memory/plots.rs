//! The figures as charts: one for each that is asked.

use super::figures::p50s;
use super::report::{FunctionReport, Report};
use super::situation::Situation;
use crate::bench::plot::Plot;

impl Report {
    /// A chart for each figure that was measured.
    pub fn plots(&self) -> Vec<Plot> {
        use Situation::{Compressed, DiskLazy, DiskPrefetch, Dram, PacedCompressed, PacedPlain};
        let times = |file, title: &str, situations: &[Situation]| {
            let group = |function: &FunctionReport| {
                let p50s = p50s(function);
                let bars = situations.iter().filter_map(|situation| {
                    let p50 = p50s.get(situation)?;
                    Some((situation.name().to_owned(), p50 / 1e3))
                });
                (function.name.clone(), bars.collect())
            };
            Plot {
                file,
                title: title.to_owned(),
                unit: "p50, ms",
                groups: self.functions.iter().map(group).collect(),
            }
        };
        let mut plots = vec![
            times(
                "disk-lazy-prefetch",
                "From disk: page by page, or the working set ahead",
                &[DiskLazy, DiskPrefetch],
            ),
            times(
                "disk-dram",
                "From disk with prefetch, and from DRAM",
                &[DiskPrefetch, Dram],
            ),
            times(
                "compressed-dram",
                "Compressed in DRAM, and from DRAM",
                &[Compressed, Dram],
            ),
            times(
                "disk-500",
                "From a disk of 500 MB/s",
                &[PacedPlain, PacedCompressed],
            ),
        ];
        plots.retain(|plot| plot.groups.iter().any(|(_, bars)| bars.len() > 1));
        #[expect(
            clippy::cast_precision_loss,
            reason = "memory of a machine in KiB is far below 2^52"
        )]
        let mib = |kib: u64| kib as f64 / 1024.0;
        let bar = |name: &str, value: f64| (name.to_owned(), value);
        let tried = self.functions.iter().filter(|f| f.compressed_bytes > 0);
        let memory = |function: &FunctionReport| {
            let bars = vec![
                bar("compressed", mib(function.compressed_bytes / 1024)),
                bar("pool", mib(function.pool_pages * 4)),
            ];
            (function.name.clone(), bars)
        };
        let groups: Vec<_> = tried.map(memory).collect();
        if !groups.is_empty() {
            plots.push(Plot {
                file: "compressed-memory",
                title: "DRAM of a snapshot".into(),
                unit: "MiB",
                groups,
            });
        }
        if let Some(live) = &self.live {
            let bars = vec![
                bar("one more instance", live.added_kib),
                bar("its private pages", live.private_kib),
                bar("allowed", 1.2 * live.private_kib + 256.0),
            ];
            plots.push(Plot {
                file: "live",
                title: format!("{} live instances", live.many.instances),
                unit: "KiB",
                groups: vec![("each".into(), bars)],
            });
        }
        if let Some(shared) = &self.shared {
            for (file, title, value, full) in [
                (
                    "template-stored",
                    "20 functions with one template, on disk",
                    shared.stored_kib,
                    shared.full_stored_kib,
                ),
                (
                    "template-dram",
                    "20 functions with one template, in DRAM",
                    shared.dram_kib,
                    shared.full_dram_kib,
                ),
            ] {
                let bars = vec![
                    bar("with a template", mib(value)),
                    bar("full images", mib(full)),
                ];
                plots.push(Plot {
                    file,
                    title: title.into(),
                    unit: "MiB",
                    groups: vec![("all".into(), bars)],
                });
            }
        }
        if let Some(idle) = &self.idle {
            plots.push(Plot {
                file: "idle-dram",
                title: format!("DRAM for each of {} idle functions", idle.functions),
                unit: "KiB",
                groups: vec![(
                    "each".into(),
                    vec![bar("held", idle.each_kib), bar("allowed", 64.0)],
                )],
            });
            if let (Some(first), Some(dram)) = (idle.first_p50_us, idle.dram_p50_us) {
                plots.push(Plot {
                    file: "idle-first-call",
                    title: "First call to an idle function".into(),
                    unit: "p50, ms",
                    groups: vec![(
                        "python".into(),
                        vec![bar("first", first / 1e3), bar("from DRAM", dram / 1e3)],
                    )],
                });
            }
        }
        plots
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::machine::Machine;
    use crate::bench::memory::figures::{self, Found};
    use crate::bench::memory::fleet::{Idle, Shared};
    use crate::bench::memory::live::{Crowd, Live};
    use crate::bench::memory::restores::{Paged, Seen};
    use crate::bench::report::Row;
    use crate::bench::targets::Target;

    fn seen(p50_us: f64) -> Seen {
        let row = Row {
            concurrency: 1,
            n: 1,
            p50_us: Some(p50_us),
            p99_us: Some(p50_us),
            stages_us: Vec::new(),
            minor_faults: None,
            pss_kib: None,
            uss_kib: None,
            copied_kib: None,
            wrong: 0,
            first_wrong: None,
        };
        let paged = Paged::default();
        Seen { row, paged }
    }

    /// A run in which everything was measured.
    fn report() -> Report {
        use Situation::{Compressed, DiskLazy, DiskPrefetch, Dram, PacedCompressed, PacedPlain};
        let all = [
            Dram,
            Compressed,
            DiskLazy,
            DiskPrefetch,
            PacedCompressed,
            PacedPlain,
        ];
        let functions = vec![FunctionReport {
            name: "python".into(),
            pool_pages: 1000,
            hot_pages: 100,
            stored_bytes: [1, 2],
            compressed_bytes: 1 << 20,
            situations: all.map(|situation| (situation, seen(1000.0))).into(),
        }];
        let crowd = Crowd {
            instances: 1,
            pss_kib: 1,
            kernel_kib: 1,
            private_kib: 1,
            available_kib: 1,
        };
        let live = Live {
            one: crowd,
            many: crowd,
            added_kib: 500.0,
            private_kib: 400.0,
            system_kib: 1.0,
            wrong: 0,
        };
        let shared = Shared {
            functions: 20,
            stored_kib: 1,
            dram_kib: 1,
            full_stored_kib: 9,
            full_dram_kib: 9,
            wrong: 0,
        };
        let idle = Idle {
            functions: 1000,
            before_kib: 1,
            after_kib: 2,
            each_kib: 3.0,
            first_p50_us: Some(2000.0),
            dram_p50_us: Some(1900.0),
            wrong: 0,
        };
        let targets = figures::all(&Found {
            functions: &functions,
            live: &Ok(live),
            shared: &Ok(shared),
            idle: &Ok(idle),
        });
        Report {
            machine: Machine::look(),
            paced: None,
            functions,
            live: Some(live),
            shared: Some(shared),
            idle: Some(idle),
            targets,
        }
    }

    #[test]
    fn each_figure_has_a_value_and_a_chart() {
        let report = report();
        assert!(report.targets.iter().all(|t: &Target| t.met.is_some()));
        let plots = report.plots();
        let files: BTreeMap<_, _> = plots.iter().map(|plot| (plot.file, plot.svg())).collect();
        // In the order of the figures.
        let wanted = [
            "disk-lazy-prefetch",
            "disk-dram",
            "compressed-dram",
            "compressed-memory",
            "disk-500",
            "template-stored",
            "template-dram",
            "live",
            "idle-dram",
            "idle-first-call",
        ];
        assert_eq!(wanted.len(), report.targets.len());
        assert_eq!(files.len(), wanted.len());
        for file in wanted {
            assert!(files[file].matches("<rect").count() > 2, "{file}");
        }
    }

    #[test]
    fn the_json_ends_with_the_targets() {
        let text = serde_json::to_string(&report()).unwrap();
        let (_, last) = text.rsplit_once(r#","targets":"#).unwrap();
        let targets: Vec<serde_json::Value> =
            serde_json::from_str(last.strip_suffix('}').unwrap()).unwrap();
        assert_eq!(targets.len(), 10);
        for target in targets {
            for key in ["name", "asked", "value", "met"] {
                assert!(target.get(key).is_some(), "{target}");
            }
        }
    }
}
