//! Collects samples and takes percentiles of them.

use std::collections::BTreeMap;

use super::caller::{InstanceMemory, Sample};

/// Everything that was seen on one path.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    times: Vec<f64>,
    stages: BTreeMap<String, Vec<f64>>,
    /// In the order in which the node reports them.
    stage_order: Vec<String>,
    memory: Vec<InstanceMemory>,
    /// Answers that were wrong, or did not come.
    pub wrong: u64,
    /// The first of them.
    pub first_wrong: Option<String>,
}

impl Samples {
    /// Adds a timed request.
    pub fn add(&mut self, sample: Sample) {
        self.times.push(sample.us);
        for (name, us) in sample.stages {
            if !self.stage_order.contains(&name) {
                self.stage_order.push(name.clone());
            }
            self.stages.entry(name).or_default().push(us);
        }
    }

    /// Adds a measured request.
    pub fn add_memory(&mut self, memory: InstanceMemory) {
        self.memory.push(memory);
    }

    /// Counts a request that failed.
    pub fn add_wrong(&mut self, reason: impl FnOnce() -> String) {
        self.wrong += 1;
        self.first_wrong.get_or_insert_with(reason);
    }

    /// Takes over what another thread saw.
    pub fn merge(&mut self, other: Self) {
        self.times.extend(other.times);
        for name in other.stage_order {
            if !self.stage_order.contains(&name) {
                self.stage_order.push(name);
            }
        }
        for (name, times) in other.stages {
            self.stages.entry(name).or_default().extend(times);
        }
        self.memory.extend(other.memory);
        self.wrong += other.wrong;
        self.first_wrong = self.first_wrong.take().or(other.first_wrong);
    }

    /// Timed requests.
    pub fn len(&self) -> usize {
        self.times.len()
    }

    /// Percentile of the times, microseconds.
    pub fn percentile(&self, percent: u32) -> Option<f64> {
        percentile(&self.times, percent)
    }

    /// Median of each stage, microseconds, in the order of the stages.
    pub fn stages(&self) -> Vec<(String, f64)> {
        let median = |name: &String| Some((name.clone(), percentile(self.stages.get(name)?, 50)?));
        self.stage_order.iter().filter_map(median).collect()
    }

    /// Percentile of a stage, microseconds.
    pub fn stage_percentile(&self, name: &str, percent: u32) -> Option<f64> {
        percentile(self.stages.get(name)?, percent)
    }

    /// Median of a memory figure.
    pub fn memory(&self, figure: impl Fn(&InstanceMemory) -> u64) -> Option<u64> {
        let mut figures: Vec<u64> = self.memory.iter().map(figure).collect();
        figures.sort_unstable();
        figures.get(figures.len().saturating_sub(1) / 2).copied()
    }
}

/// The smallest value that at least `percent` of all do not exceed (nearest rank).
pub fn percentile(values: &[f64], percent: u32) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (sorted.len() * percent as usize).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(100.0));
        assert_eq!(percentile(&values, 99), Some(198.0));
        assert_eq!(percentile(&[7.0], 99), Some(7.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn threads_are_merged() {
        let mut one = Samples::default();
        one.add(Sample {
            us: 1.0,
            stages: vec![("map".to_owned(), 0.5)],
        });
        let mut two = Samples::default();
        two.add(Sample {
            us: 3.0,
            stages: vec![("sandbox".to_owned(), 2.0), ("map".to_owned(), 0.7)],
        });
        two.add_wrong(|| "late".to_owned());
        one.merge(two);
        assert_eq!(
            (one.len(), one.percentile(99), one.wrong),
            (2, Some(3.0), 1)
        );
        assert_eq!(
            one.stages(),
            [("map".to_owned(), 0.5), ("sandbox".to_owned(), 2.0)]
        );
    }
}
