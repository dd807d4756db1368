//! What to do with each function's memory. Only decides; nothing is looked at or done here.

use std::time::Duration;

use rouse_pool::cost::{Budgets, CostInputs, Subject, Tier, place};

use super::heat::Reading;

/// Of two functions that are equally hot, the one that is in memory stays there, and in near memory if it is there.
const INERTIA: f64 = 1.25;

/// A loaded snapshot.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    /// How often its function is called.
    pub heat: Reading,
    /// Are all its pages in memory to stay?
    pub is_resident: bool,
    /// Do its pages lie on far memory?
    pub is_far: bool,
    /// Was it stored anew, so that pages which are let go of cannot come any more?
    pub is_stale: bool,
    /// Do instances run that would have to bring in again what is let go of, soon after it was?
    pub is_in_use: bool,
    /// Are its stored pieces in memory?
    pub is_compressed: bool,
    /// Pages that are in memory now.
    pub resident_pages: u64,
    /// Pages that stay as long as it is loaded.
    pub wired_pages: u64,
    /// Pages that are still in near memory though all are in a file on far memory, for instances that started before.
    pub left_behind: u64,
    /// Pages of its pool.
    pub pool_pages: u64,
    /// Pages that a call touches.
    pub hot_pages: u64,
    /// Bytes of its pool on disk.
    pub stored_bytes: u64,
}

/// What is to be done with one snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// Its function is idle: nothing of it stays in memory.
    Unload,
    /// Its pages are let go of.
    Release,
    /// The same, but its stored pieces are kept in memory.
    Compress,
    /// All its pages are brought into memory, to stay.
    Promote,
    /// All its pages are brought to far memory, to stay, but for those that calls touch.
    PlaceFar,
}

/// A candidate's tier, and what has to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Where its pages belong.
    pub tier: Tier,
    /// How they get there.
    pub action: Action,
}

/// Decides for all candidates at once, in their order. `idle_limit` is the time after which a function that is not
/// called is forgotten.
pub fn plan(
    inputs: &CostInputs,
    budgets: &Budgets,
    idle_limit: Duration,
    candidates: &[Candidate],
) -> Vec<Decision> {
    let subjects: Vec<Subject> = candidates
        .iter()
        .map(|candidate| subject(candidate, idle_limit))
        .collect();
    let placed = place(inputs, budgets, &subjects);
    let pairs = candidates.iter().zip(placed);
    pairs
        .map(|(candidate, tier)| Decision {
            tier,
            action: action(candidate, tier, idle_limit),
        })
        .collect()
}

/// A language template, and which of the candidates map its pages.
#[derive(Debug, Clone)]
pub struct Family {
    /// The template. Its heat is that of all its functions together.
    pub template: Candidate,
    /// Indices of its functions.
    pub functions: Vec<usize>,
}

/// As [`plan`], with templates: decisions for the functions, then for the templates.
///
/// A template moves down as functions do. No function is in memory as a whole without its template: it would wait for the
/// template's pages all the same. A template that nobody is called of goes to disk.
pub fn plan_families(
    inputs: &CostInputs,
    budgets: &Budgets,
    idle_limit: Duration,
    functions: &[Candidate],
    families: &[Family],
) -> (Vec<Decision>, Vec<Decision>) {
    let templates = families.iter().map(|family| family.template);
    let all: Vec<Candidate> = functions.iter().copied().chain(templates).collect();
    let mut of_functions = plan(inputs, budgets, idle_limit, &all);
    let mut of_templates = of_functions.split_off(functions.len());
    for (family, decision) in families.iter().zip(&mut of_templates) {
        if family.template.is_stale {
            // Absent pages could not come any more.
            *decision = Decision {
                tier: Tier::Dram,
                action: Action::Keep,
            };
        } else if decision.action == Action::Unload {
            // Functions that are called again are made of it: it stays known.
            *decision = Decision {
                tier: Tier::Disk,
                action: action_in(&family.template, Tier::Disk),
            };
        }
        if is_whole(decision.tier) {
            continue;
        }
        for index in &family.functions {
            let function = &mut of_functions[*index];
            if is_whole(function.tier) && function.action != Action::Unload {
                *function = Decision {
                    tier: Tier::Disk,
                    action: action(&functions[*index], Tier::Disk, idle_limit),
                };
            }
        }
    }
    (of_functions, of_templates)
}

/// Are all pages of what is in that tier in memory?
fn is_whole(tier: Tier) -> bool {
    matches!(tier, Tier::Dram | Tier::Far)
}

/// A candidate with all its pages, wherever it may be.
pub fn subject_of(candidate: &Candidate) -> Subject {
    Subject {
        rate: candidate.heat.rate,
        pages: candidate.pool_pages,
        hot_pages: candidate.hot_pages,
        stored_bytes: candidate.stored_bytes,
        best: Tier::Dram,
    }
}

fn subject(candidate: &Candidate, idle_limit: Duration) -> Subject {
    let stays = candidate.is_resident || candidate.heat.is_called_again;
    let inertia = match (candidate.is_resident, candidate.is_far) {
        (true, false) => INERTIA * INERTIA,
        (true, true) => INERTIA,
        (false, _) => 1.0,
    };
    Subject {
        rate: candidate.heat.rate * inertia,
        pages: match stays {
            true => candidate.pool_pages,
            false => candidate.resident_pages,
        },
        best: match candidate.heat.idle > idle_limit {
            true => Tier::Disk,
            false => Tier::Dram,
        },
        ..subject_of(candidate)
    }
}

fn action(candidate: &Candidate, tier: Tier, idle_limit: Duration) -> Action {
    match tier {
        _ if candidate.heat.idle > idle_limit => Action::Unload,
        // It is loaded again with the next call.
        _ if candidate.is_stale && !(tier == Tier::Dram && candidate.is_resident) => Action::Unload,
        tier => action_in(candidate, tier),
    }
}

fn action_in(candidate: &Candidate, tier: Tier) -> Action {
    let can_shrink = candidate.is_resident
        || (candidate.resident_pages > candidate.wired_pages && !candidate.is_in_use);
    match tier {
        Tier::Dram if candidate.is_resident && candidate.is_far => Action::Promote,
        Tier::Dram if candidate.is_resident || !candidate.heat.is_called_again => Action::Keep,
        Tier::Dram => Action::Promote,
        Tier::Far if candidate.is_resident && candidate.is_far => match candidate.left_behind {
            0 => Action::Keep,
            _ => Action::PlaceFar,
        },
        Tier::Far if candidate.is_resident || candidate.heat.is_called_again => Action::PlaceFar,
        Tier::Far if can_shrink => Action::Release,
        Tier::Far => Action::Keep,
        Tier::Compressed if !candidate.is_compressed || can_shrink => Action::Compress,
        Tier::Disk if can_shrink || candidate.is_compressed => Action::Release,
        Tier::Compressed | Tier::Disk => Action::Keep,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(600);
    const PAGE: u64 = 4096;

    fn candidate(rate: f64, is_resident: bool) -> Candidate {
        Candidate {
            heat: Reading {
                rate,
                idle: Duration::from_secs(1),
                is_called_again: rate > 0.0,
            },
            is_resident,
            is_far: false,
            is_stale: false,
            is_compressed: false,
            is_in_use: false,
            resident_pages: if is_resident { 1000 } else { 30 },
            wired_pages: 10,
            left_behind: 0,
            pool_pages: 1000,
            hot_pages: 200,
            stored_bytes: 400 * PAGE,
        }
    }

    fn actions(pages: u64, candidates: &[Candidate]) -> Vec<Action> {
        let budgets = Budgets {
            dram: pages * PAGE,
            far: 0,
            compressed: 0,
        };
        plan(&CostInputs::default(), &budgets, IDLE, candidates)
            .into_iter()
            .map(|decision| decision.action)
            .collect()
    }

    #[test]
    fn what_is_called_again_comes_in_and_the_coldest_goes() {
        let (hot, cold) = (candidate(2.0, false), candidate(0.1, true));
        assert_eq!(actions(3000, &[hot, cold]), [Action::Promote, Action::Keep]);
        assert_eq!(
            actions(1500, &[hot, cold]),
            [Action::Promote, Action::Release]
        );
    }

    #[test]
    fn equals_do_not_change_places() {
        let (inside, outside) = (candidate(1.0, true), candidate(1.1, false));
        let found = actions(1500, &[outside, inside]);
        assert_eq!(found, [Action::Release, Action::Keep]);
    }

    #[test]
    fn a_single_call_promotes_nothing() {
        let mut once = candidate(0.01, false);
        once.heat.is_called_again = false;
        assert_eq!(actions(3000, &[once]), [Action::Keep]);
    }

    #[test]
    fn what_is_idle_is_unloaded_however_much_room_there_is() {
        let mut idle = candidate(0.0, true);
        idle.heat.idle = IDLE * 2;
        assert_eq!(actions(u64::MAX / PAGE, &[idle]), [Action::Unload]);
    }

    fn families(
        pages: u64,
        functions: &[Candidate],
        template: Candidate,
    ) -> (Vec<Tier>, Tier, Action) {
        let budgets = Budgets {
            dram: pages * PAGE,
            far: 0,
            compressed: 0,
        };
        let family = Family {
            template,
            functions: (0..functions.len()).collect(),
        };
        let (of_functions, of_templates) = plan_families(
            &CostInputs::default(),
            &budgets,
            IDLE,
            functions,
            std::slice::from_ref(&family),
        );
        let tiers = of_functions.iter().map(|decision| decision.tier);
        (
            tiers.collect(),
            of_templates[0].tier,
            of_templates[0].action,
        )
    }

    #[test]
    fn a_template_stays_as_long_as_a_function_does() {
        let functions = [candidate(2.0, true), candidate(0.1, true)];
        let template = candidate(2.1, true);
        let found = families(3000, &functions, template);
        assert_eq!(
            found,
            (vec![Tier::Dram, Tier::Dram], Tier::Dram, Action::Keep)
        );
        // The colder function goes first.
        let found = families(2000, &functions, template);
        assert_eq!(
            found,
            (vec![Tier::Dram, Tier::Disk], Tier::Dram, Action::Keep)
        );
        let found = families(500, &functions, template);
        assert_eq!(
            found,
            (vec![Tier::Disk, Tier::Disk], Tier::Disk, Action::Release)
        );
        // Functions that touch nothing of their template go with it all the same.
        let functions = [candidate(2.0, true), candidate(1.9, true)];
        let unused = Candidate {
            hot_pages: 0,
            ..template
        };
        let found = families(2500, &functions, unused);
        assert_eq!(
            found,
            (vec![Tier::Disk, Tier::Disk], Tier::Disk, Action::Release)
        );
    }

    #[test]
    fn a_template_of_which_nothing_is_called_goes_to_disk_and_stays_known() {
        let mut template = candidate(0.0, true);
        template.heat.idle = IDLE * 2;
        let found = families(3000, &[], template);
        assert_eq!(found, (vec![], Tier::Disk, Action::Release));
    }

    #[test]
    fn what_cannot_shrink_is_not_let_go_of_again_and_again() {
        let mut small = candidate(0.0, false);
        small.resident_pages = small.wired_pages;
        assert_eq!(actions(1, &[small]), [Action::Keep]);
    }
}
