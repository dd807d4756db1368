//! What things cost on this host, and what follows from it: the tier of a function's pages, the codec of a piece,
//! whether a page is mapped or copied ahead.
//!
//! Nothing here is a fixed threshold: [`CostInputs`] is measured, and every decision is a comparison of two expected
//! times. `docs/tiers.md` has the formulas.

mod choice;
mod inputs;
mod map_or_copy;
mod mapping;
mod measure;
mod placement;
mod stored;

pub use choice::CostChoice;
pub use inputs::{CodecCost, CostInputs, Transfer};
pub use map_or_copy::{CopyChoices, MOST_HOLE_BYTES, MapOrCopy};
pub use measure::measure_far;
pub use placement::{Budgets, Subject, Tier, place};
pub use stored::{COSTS_FILE, MEASUREMENTS, Measured};
