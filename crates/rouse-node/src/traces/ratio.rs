//! Which share of the requests is traced.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Ratio {
    /// Of 2^48.
    parts: u64,
}

/// What a ratio counts.
const WHOLE: u64 = 1 << 48;

/// It is no number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a number from 0 to 1")]
pub struct NoRatio;

impl Ratio {
    /// All.
    pub const ALL: Ratio = Ratio { parts: WHOLE };

    /// Is this trace among them? The same on every node, as it follows from the last 48 bits of the id.
    pub fn has(self, trace: u128) -> bool {
        ((trace as u64) & (WHOLE - 1)) < self.parts
    }
}

impl TryFrom<f64> for Ratio {
    type Error = NoRatio;

    fn try_from(ratio: f64) -> Result<Self, NoRatio> {
        match (0.0..=1.0).contains(&ratio) {
            true => Ok(Ratio {
                parts: (ratio * WHOLE as f64) as u64,
            }),
            false => Err(NoRatio),
        }
    }
}

impl From<Ratio> for f64 {
    fn from(ratio: Ratio) -> f64 {
        ratio.parts as f64 / WHOLE as f64
    }
}

impl FromStr for Ratio {
    type Err = NoRatio;

    fn from_str(text: &str) -> Result<Self, NoRatio> {
        text.parse::<f64>().map_err(|_| NoRatio)?.try_into()
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_numbers_from_0_to_1() {
        for wrong in ["-0.1", "1.1", "NaN", "inf", "half", ""] {
            assert_eq!(wrong.parse::<Ratio>(), Err(NoRatio), "{wrong}");
        }
        assert_eq!("1".parse(), Ok(Ratio::ALL));
        assert_eq!("0.25".parse::<Ratio>().map(f64::from), Ok(0.25));
    }

    #[test]
    fn a_share_of_all_traces_is_taken() {
        let quarter: Ratio = "0.25".parse().unwrap();
        assert!(quarter.has((WHOLE / 4 - 1).into()) && !quarter.has((WHOLE / 4).into()));
        // What is in front of the last 48 bits does not matter.
        assert!(quarter.has(u128::MAX << 48));
        assert!(Ratio::ALL.has(u128::MAX));
        assert!(!"0".parse::<Ratio>().unwrap().has(0));
    }
}
