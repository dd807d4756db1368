//! The states of one instance, as a type without an instance.
//!
//! ```text
//!                 came up             begin
//!   Booting -----------------> Ready ----------------> Busy
//!      |                         ^                      |  |
//!      | begin (with its event)  |       answered       |  |
//!      +-------------------------|--------------------->+  |
//!                                +----------------------+  | failed: no answer, in time or at all
//!                                                          v
//!          end, from any of them: ---> Gone <---------- Poisoned
//! ```
//! Only a `Ready` instance may be kept, and only a kept one is given another event. `Poisoned` is one whose function may still run, or
//! has left things half done: nothing but its end can follow.

use std::fmt;

/// Where an instance is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// It starts.
    Booting,
    /// It has nothing to do, and could be given an event.
    Ready,
    /// It has an event, or gets it as soon as it is up.
    Busy,
    /// It has not answered, and must not be used again.
    Poisoned,
    /// It has ended.
    Gone,
}

/// What happens to an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It asks for work, and has none.
    CameUp,
    /// It is given an event.
    Begin,
    /// It has answered, with a result or with an error of the function.
    Answered,
    /// It did not answer: its time is over, or its start failed.
    Failed,
    /// Its process has ended, by itself or by us.
    End,
}

/// A step that an instance in this state cannot take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an instance that is {from} cannot take the step {step:?}")]
pub struct Illegal {
    /// Where it is.
    pub from: State,
    /// What was wanted.
    pub step: Step,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Booting => "booting",
            State::Ready => "ready",
            State::Busy => "busy",
            State::Poisoned => "poisoned",
            State::Gone => "gone",
        })
    }
}

impl State {
    /// Where a step leads.
    pub fn after(self, step: Step) -> Result<State, Illegal> {
        match (self, step) {
            (State::Booting, Step::CameUp) => Ok(State::Ready),
            (State::Booting | State::Ready, Step::Begin) => Ok(State::Busy),
            (State::Busy, Step::Answered) => Ok(State::Ready),
            (State::Booting | State::Busy, Step::Failed) => Ok(State::Poisoned),
            // The end may be heard of more than once: from the kernel, and from whoever has caused it.
            (_, Step::End) => Ok(State::Gone),
            (from, step) => Err(Illegal { from, step }),
        }
    }

    /// May it be given another event?
    pub fn is_reusable(self) -> bool {
        self == State::Ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: [Step; 5] = [
        Step::CameUp,
        Step::Begin,
        Step::Answered,
        Step::Failed,
        Step::End,
    ];

    /// What is remembered without a state: events given and answered, and the two ways in which it is over.
    #[derive(Default)]
    struct Oracle {
        is_up: bool,
        given: u32,
        answered: u32,
        has_failed: bool,
        has_ended: bool,
    }

    impl Oracle {
        fn owes_an_answer(&self) -> bool {
            self.given > self.answered
        }

        /// Is the step possible? Then it is taken.
        fn take(&mut self, step: Step) -> bool {
            let is_over = self.has_failed || self.has_ended;
            let is_possible = match step {
                Step::End => true,
                _ if is_over => false,
                Step::CameUp => !self.is_up && self.given == 0,
                Step::Begin => !self.owes_an_answer(),
                Step::Answered => self.owes_an_answer(),
                Step::Failed => self.owes_an_answer() || (!self.is_up && self.given == 0),
            };
            if is_possible {
                match step {
                    Step::CameUp => self.is_up = true,
                    Step::Begin => self.given += 1,
                    Step::Answered => self.answered += 1,
                    Step::Failed => self.has_failed = true,
                    Step::End => self.has_ended = true,
                }
            }
            is_possible
        }

        /// May it be used again? Never, once an answer is missing.
        fn is_reusable(&self) -> bool {
            let is_over = self.has_failed || self.has_ended;
            !is_over && !self.owes_an_answer() && (self.is_up || self.answered > 0)
        }
    }

    proptest! {
        #[test]
        fn states_say_what_the_history_says(steps in prop::collection::vec(0..STEPS.len(), 0..40)) {
            let mut state = State::Booting;
            let mut oracle = Oracle::default();
            for step in steps.into_iter().map(|index| STEPS[index]) {
                let after = state.after(step);
                prop_assert_eq!(after.is_ok(), oracle.take(step), "{} {:?}", state, step);
                match after {
                    Ok(next) => state = next,
                    Err(illegal) => prop_assert_eq!(illegal, Illegal { from: state, step }),
                }
                prop_assert_eq!(state.is_reusable(), oracle.is_reusable());
                prop_assert_eq!(state == State::Gone, oracle.has_ended);
            }
        }
    }

    #[test]
    fn an_illegal_step_names_where_it_was_to_be_taken() {
        let illegal = State::Poisoned.after(Step::Begin).unwrap_err();
        assert_eq!(
            illegal.to_string(),
            "an instance that is poisoned cannot take the step Begin"
        );
    }
}
