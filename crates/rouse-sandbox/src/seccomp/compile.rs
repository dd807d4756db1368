//! Turns rules into a filter program that decides by bisection.
//!
//! ```text
//! load architecture; another one than this: kill
//! load number
//!   >= 200 ? --- yes --> >= 300 ? ...            a binary tree over ranges of numbers
//!            --- no  --> >= 50  ? ...            with the same verdict
//!                                 leaf: return, or look at arguments and return
//! ```

/// What happens to a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Allow,
    /// It fails with this error.
    Errno(i32),
    /// It fails with this error if the condition holds.
    If(Condition, i32),
    /// It fails with this error unless the condition holds.
    Unless(Condition, i32),
}

/// A property of a system call's arguments. Only their low halves are compared: the kernel reads the arguments used
/// here as 32-bit values (or, for `clone`, ignores the high half of its flags).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The argument has one of these bits.
    AnyBit {
        /// Which argument, from 0.
        argument: u32,
        /// The bits.
        mask: u64,
    },
    /// The argument is one of these.
    OneOf {
        /// Which argument, from 0.
        argument: u32,
        /// The values.
        values: &'static [u64],
    },
    /// `socket(domain, type, protocol)` of a harmless kind: UNIX, IPv4, IPv6 (raw ones excluded), netlink route.
    Socket,
}

/// Some system calls with the same verdict.
#[derive(Debug)]
pub struct Rule {
    /// Their numbers.
    pub calls: &'static [libc::c_long],
    /// What happens to them.
    pub verdict: Verdict,
    /// Why.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "read by people, and by the test that demands one")
    )]
    pub reason: &'static str,
}

type Instruction = libc::sock_filter;

/// `AUDIT_ARCH_X86_64`: EM_X86_64 (62), 64-bit, little-endian.
pub(super) const ARCHITECTURE: u32 = 62 | 0x8000_0000 | 0x4000_0000;
/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER_OFFSET: u32 = 0;
pub(super) const ARCHITECTURE_OFFSET: u32 = 4;
pub(super) const ARGUMENTS_OFFSET: u32 = 16;

/// Compiles rules into a filter; numbers above `last_known` (those of the x32 ABI among them) do not exist.
pub fn compile(rules: &[Rule], last_known: u32) -> Vec<Instruction> {
    // Programs of another architecture see other numbers: nothing of the table would hold for them.
    let mut program = vec![
        load(ARCHITECTURE_OFFSET),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        give(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER_OFFSET),
    ];
    program.extend(bisect(&ranges(rules, last_known)));
    program
}

/// Ranges of numbers with the same verdict: each starts at its number and ends where the next starts.
fn ranges(rules: &[Rule], last_known: u32) -> Vec<(u32, Verdict)> {
    let mut verdicts = vec![Verdict::Allow; last_known as usize + 1];
    for rule in rules {
        for call in rule.calls {
            if let Some(verdict) = verdicts.get_mut(*call as usize) {
                *verdict = rule.verdict;
            }
        }
    }
    verdicts.push(Verdict::Errno(libc::ENOSYS));
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    for (number, verdict) in verdicts.into_iter().enumerate() {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((number as u32, verdict));
        }
    }
    ranges
}

fn bisect(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    if let [(_, verdict)] = ranges {
        return leaf(*verdict);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let (first, low, high) = (high[0].0, bisect(low), bisect(high));
    let mut program = match u8::try_from(low.len()) {
        Ok(distance) => vec![jump(libc::BPF_JGE, first, distance, 0)],
        // Conditional jumps reach 255 instructions far, unconditional ones any distance.
        Err(_) => vec![jump(libc::BPF_JGE, first, 0, 1), go(low.len() as u32)],
    };
    program.extend(low);
    program.extend(high);
    program
}

fn leaf(verdict: Verdict) -> Vec<Instruction> {
    let errno = |errno: i32| give(libc::SECCOMP_RET_ERRNO | errno as u32);
    let allow = give(libc::SECCOMP_RET_ALLOW);
    let (condition, holds, else_) = match verdict {
        Verdict::Allow => return vec![allow],
        Verdict::Errno(number) => return vec![errno(number)],
        Verdict::If(condition, number) => (condition, errno(number), allow),
        Verdict::Unless(condition, number) => (condition, allow, errno(number)),
    };
    let mut program = test(condition);
    program.extend([else_, holds]);
    program
}

/// Goes on at the instruction behind it if the condition does not hold, and at the one after that if it does.
fn test(condition: Condition) -> Vec<Instruction> {
    match condition {
        Condition::AnyBit { argument, mask } => vec![
            load_argument(argument),
            jump(libc::BPF_JSET, mask as u32, 1, 0),
        ],
        Condition::OneOf { argument, values } => {
            let mut program = vec![load_argument(argument)];
            let tests = values.iter().enumerate().map(|(at, value)| {
                jump(libc::BPF_JEQ, *value as u32, (values.len() - at) as u8, 0)
            });
            program.extend(tests);
            program
        }
        Condition::Socket => {
            let families = [libc::AF_INET as u32, libc::AF_INET6 as u32];
            vec![
                load_argument(0),
                jump(libc::BPF_JEQ, libc::AF_UNIX as u32, 9, 0),
                jump(libc::BPF_JEQ, families[0], 4, 0),
                jump(libc::BPF_JEQ, families[1], 3, 0),
                jump(libc::BPF_JEQ, libc::AF_NETLINK as u32, 0, 5),
                load_argument(2),
                jump(libc::BPF_JEQ, libc::NETLINK_ROUTE as u32, 4, 3),
                // The type without SOCK_NONBLOCK and SOCK_CLOEXEC.
                load_argument(1),
                and(0xf),
                jump(libc::BPF_JEQ, libc::SOCK_RAW as u32, 0, 1),
            ]
        }
    }
}

pub(super) fn load(offset: u32) -> Instruction {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0, 0)
}

pub(super) fn load_argument(argument: u32) -> Instruction {
    load(ARGUMENTS_OFFSET + 8 * argument)
}

fn and(mask: u32) -> Instruction {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, mask, 0, 0)
}

pub(super) fn jump(test: u32, value: u32, yes: u8, no: u8) -> Instruction {
    instruction(libc::BPF_JMP | test | libc::BPF_K, value, yes, no)
}

fn go(distance: u32) -> Instruction {
    instruction(libc::BPF_JMP | libc::BPF_JA, distance, 0, 0)
}

pub(super) fn give(value: u32) -> Instruction {
    instruction(libc::BPF_RET | libc::BPF_K, value, 0, 0)
}

fn instruction(code: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Runs a program as the kernel does.
#[cfg(test)]
pub(super) fn run(
    program: &[Instruction],
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
) -> u32 {
    let (mut at, mut value) = (0, 0u32);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        let code = u32::from(code);
        at += 1;
        if code == libc::BPF_RET {
            return k;
        } else if code == libc::BPF_LD | libc::BPF_ABS {
            value = match k {
                NUMBER_OFFSET => number,
                ARCHITECTURE_OFFSET => architecture,
                offset => {
                    let at = offset - ARGUMENTS_OFFSET;
                    (arguments[(at / 8) as usize] >> (8 * (at % 8))) as u32
                }
            };
        } else if code == libc::BPF_ALU | libc::BPF_AND {
            value &= k;
        } else if code == libc::BPF_JMP | libc::BPF_JA {
            at += k as usize;
        } else {
            let holds = match code & 0xf0 {
                libc::BPF_JEQ => value == k,
                libc::BPF_JGE => value >= k,
                libc::BPF_JSET => value & k != 0,
                other => panic!("unknown test {other:#x}"),
            };
            at += usize::from(if holds { jt } else { jf });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{LAST_KNOWN, RULES};
    use super::*;

    /// The oracle: what the table says, read rule by rule.
    fn expected(number: u32, arguments: [u64; 3]) -> u32 {
        let verdict = RULES
            .iter()
            .find(|rule| rule.calls.contains(&libc::c_long::from(number)))
            .map_or(Verdict::Allow, |rule| rule.verdict);
        let verdict = if number > LAST_KNOWN {
            Verdict::Errno(libc::ENOSYS)
        } else {
            verdict
        };
        let holds = |condition| match condition {
            Condition::AnyBit { argument, mask } => arguments[argument as usize] & mask != 0,
            Condition::OneOf { argument, values } => values.contains(&arguments[argument as usize]),
            Condition::Socket => match arguments[0] as i32 {
                libc::AF_UNIX => true,
                libc::AF_INET | libc::AF_INET6 => arguments[1] & 0xf != libc::SOCK_RAW as u64,
                libc::AF_NETLINK => arguments[2] == libc::NETLINK_ROUTE as u64,
                _ => false,
            },
        };
        let errno = match verdict {
            Verdict::Allow => None,
            Verdict::Errno(number) => Some(number),
            Verdict::If(condition, number) => holds(condition).then_some(number),
            Verdict::Unless(condition, number) => (!holds(condition)).then_some(number),
        };
        errno.map_or(libc::SECCOMP_RET_ALLOW, |number| {
            libc::SECCOMP_RET_ERRNO | number as u32
        })
    }

    fn widened([a, b, c]: [u64; 3]) -> [u64; 6] {
        [a, b, c, 0, 0, 0]
    }

    #[test]
    fn the_program_says_what_the_table_says() {
        let program = compile(RULES, LAST_KNOWN);
        let interesting = [
            0,
            1,
            2,
            3,
            10,
            16,
            17,
            40,
            0xffff_ffff,
            libc::CLONE_NEWUSER as u64,
            libc::TIOCSTI,
            0x0008_0003,
        ];
        for number in (0..1000).chain([0x4000_0000, 0x4000_0009, u32::MAX]) {
            for first in interesting {
                for second in interesting {
                    for third in [0, 15] {
                        let arguments = [first, second, third];
                        assert_eq!(
                            run(&program, ARCHITECTURE, number, widened(arguments)),
                            expected(number, arguments),
                            "{number} {arguments:x?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn another_architecture_is_killed() {
        // AUDIT_ARCH_I386
        assert_eq!(
            run(&compile(RULES, LAST_KNOWN), 0x4000_0003, 1, [0; 6]),
            libc::SECCOMP_RET_KILL_PROCESS
        );
    }

    #[test]
    fn every_rule_has_a_reason_and_no_call_two_rules() {
        let mut seen = std::collections::BTreeSet::new();
        for rule in RULES {
            assert!(!rule.reason.is_empty());
            for call in rule.calls {
                assert!(seen.insert(*call), "{call} stands in two rules");
            }
        }
    }
}
