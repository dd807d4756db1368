//! The pages that an invocation touches, learnt while a function runs and made ready in later boots (REAP).
//!
//! ```text
//!  boot --- answered --> page tables --> observation --> heat of each page --> set --> programs
//!   ^        (schedule: which?)            |                  | decays          |
//!   |                                      `-- predicted? used, missed, wasted  |
//!   `--------------- prepared with the set, or blind -----------<---------------'
//! ```
//! | module | |
//! |---|---|
//! | [`observation`] | what an instance has touched, and which of that proves nothing |
//! | [`heat`] | how often each page is touched, with decay |
//! | [`costs`] | what the touch of a page costs, prepared and not |
//! | [`schedule`] | which invocations are observed, and which boots are blind |
//! | [`learner`] | when the set changes, is recorded anew, or is switched off |
//! | [`stored`] | the file beside the manifest |
//!
//! `docs/working-sets.md` says why it is built so.

pub mod costs;
mod heat;
mod learner;
mod observation;
mod schedule;
pub(crate) mod stored;

pub use costs::Costs;
pub use learner::{Learner, Outcome, WorkingSetReport};
pub use observation::Observation;
pub use rouse_snapshot::working_set::WorkingSet;
pub(crate) use schedule::Schedule;
