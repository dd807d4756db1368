//! How long the stages of invocations take, by boot path.

use std::sync::OnceLock;
use std::time::Duration;

use rouse_process::instance::{BootPath, Stage};

use super::histogram::{Distribution, Histogram};

/// Names of stages that one path has at most. They are written in the code, so that there are never more.
const MOST_STAGES: usize = 24;

type Slot = OnceLock<(&'static str, Box<Histogram>)>;

/// Durations of all stages. Slots are filled in the order in which stages are first seen, and stay.
#[derive(Debug)]
pub struct StageTimes {
    paths: [[Slot; MOST_STAGES]; BootPath::ALL.len()],
}

impl Default for StageTimes {
    fn default() -> Self {
        Self {
            paths: [const { [const { OnceLock::new() }; MOST_STAGES] }; BootPath::ALL.len()],
        }
    }
}

impl StageTimes {
    /// Counts the stages of one invocation.
    pub fn observe(&self, path: BootPath, stages: &[Stage]) {
        let slots = &self.paths[path as usize];
        for stage in stages {
            let found = slots
                .iter()
                .map(|slot| slot.get_or_init(|| (stage.name, Box::default())))
                .find(|(name, _)| *name == stage.name);
            debug_assert!(found.is_some(), "more stages than slots");
            if let Some((_, histogram)) = found {
                histogram.observe(Duration::from_micros(stage.us));
            }
        }
    }

    /// Path, stage and durations.
    pub fn read(&self) -> Vec<(&'static str, &'static str, Distribution)> {
        let paths = BootPath::ALL.into_iter().zip(&self.paths);
        paths
            .flat_map(|(path, slots)| {
                let filled = slots.iter().filter_map(OnceLock::get);
                filled.map(move |(stage, histogram)| (path.name(), *stage, histogram.read()))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_told_apart_by_name_and_path() {
        let times = StageTimes::default();
        let stage = |name, us| Stage { name, us };
        times.observe(BootPath::Warm, &[stage("queue", 20), stage("run", 500)]);
        times.observe(BootPath::Warm, &[stage("run", 700)]);
        times.observe(BootPath::Fork, &[stage("run", 900)]);
        let read = times.read();
        let found: Vec<_> = read
            .iter()
            .map(|(path, stage, times)| (*path, *stage, times.count()))
            .collect();
        assert_eq!(
            found,
            [("fork", "run", 1), ("warm", "queue", 1), ("warm", "run", 2)]
        );
        assert!((read[2].2.sum_s - 0.0012).abs() < 1e-9);
    }
}
