//! From a table to a filter of system calls.
//!
//! Two filters, because one has a single answer to what it does not allow: the first says of a few calls that they do not
//! exist, which the C library asks for and has another way; the second ends the process at anything that is not in the
//! table. That is a bug of this program or a guest that has got out of its devices: there is nothing to go on with.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::table::{ABSENT, Only, Rule};

/// A filter cannot be made or installed.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The table is not one.
    #[error("the filter of system calls cannot be made")]
    Make(#[from] seccompiler::BackendError),
    /// The kernel refuses it.
    #[error("the filter of system calls cannot be installed")]
    Install(#[source] seccompiler::Error),
}

/// Installs a table on the calling thread, and on those that it starts.
pub fn install(table: &[Rule]) -> Result<(), FilterError> {
    for program in [absent()?, allowed(table)?] {
        seccompiler::apply_filter(&program).map_err(FilterError::Install)?;
    }
    Ok(())
}

fn absent() -> Result<BpfProgram, FilterError> {
    let rules = ABSENT.iter().map(|call| (*call, Vec::new())).collect();
    let errno = SeccompAction::Errno(libc::ENOSYS as u32);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?.try_into()?)
}

fn allowed(table: &[Rule]) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    // What does not exist is answered by the other filter, whose answer counts only if this one allows the call.
    for call in ABSENT {
        rules.insert(*call, Vec::new());
    }
    for rule in table {
        let of_call = rules.entry(rule.call).or_default();
        match rule.only {
            Only::Any => {}
            Only::OneOf(argument, values) => {
                for value in values {
                    of_call.push(condition(argument, SeccompCmpOp::Eq, *value)?);
                }
            }
            Only::Masked(argument, mask, value) => {
                of_call.push(condition(argument, SeccompCmpOp::MaskedEq(mask), value)?);
            }
        }
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?;
    Ok(filter.try_into()?)
}

fn condition(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, FilterError> {
    let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

#[cfg(test)]
mod tests {
    use super::super::table::{VCPU, VMM};
    use super::*;

    #[test]
    fn the_tables_can_be_compiled_and_each_rule_has_a_reason() {
        for table in [VMM, VCPU] {
            let program = allowed(table).expect("a table");
            assert!(program.len() < 4096);
            for rule in table {
                assert!(rule.reason.len() > 8, "{rule:?}");
                let unconditional = table
                    .iter()
                    .filter(|other| other.call == rule.call && matches!(other.only, Only::Any));
                let all = table.iter().filter(|other| other.call == rule.call);
                // A rule beside one that allows everything would narrow it to itself.
                assert!(unconditional.count() == 0 || all.count() == 1, "{rule:?}");
            }
        }
        absent().expect("a filter");
    }

    #[test]
    fn a_processor_may_do_nothing_that_the_main_thread_may_not() {
        for rule in VCPU {
            assert!(
                VMM.iter().any(|other| other.call == rule.call),
                "the filter of the main thread holds for all: {rule:?}"
            );
        }
    }
}
