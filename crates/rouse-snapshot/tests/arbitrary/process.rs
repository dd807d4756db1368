//! Arbitrary processes and threads.

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use rouse_snapshot::model::*;

use super::{file_id, path};

fn siginfos() -> impl Strategy<Value = Vec<Vec<u8>>> {
    vec(vec(any::<u8>(), 128), 0..3)
}

pub fn process() -> impl Strategy<Value = ProcessState> {
    let mm = (any::<[u16; 11]>(), vec(any::<[u8; 16]>(), 0..20)).prop_map(|(ends, auxv)| {
        let [a, b, c, d, e, f, g, h, i, j, k] = ends.map(u64::from);
        MmLayout {
            fields: MmFields {
                start_code: a,
                end_code: a + b,
                start_data: c,
                end_data: c + d,
                start_brk: e,
                brk: e + f,
                start_stack: g,
                arg_start: h,
                arg_end: h + i,
                env_start: j,
                env_end: j + k,
            },
            auxv: auxv.concat(),
        }
    });
    let signals = btree_map(
        (1u32..=64).prop_filter("has an action", |signal| ![9, 19].contains(signal)),
        any::<[u64; 4]>(),
        0..6,
    )
    .prop_map(|actions| {
        let action = |(signal, [handler, flags, restorer, mask]): (u32, [u64; 4])| SignalAction {
            signal,
            handler,
            flags,
            restorer,
            mask,
        };
        actions.into_iter().map(action).collect::<Vec<_>>()
    });
    let interval_timers = any::<[(u64, u64); 3]>().prop_map(|timers| {
        timers.map(|(value_us, interval_us)| IntervalTimer {
            value_us,
            interval_us,
        })
    });
    let posix_timers = btree_map(0.., any::<[u64; 5]>(), 0..4).prop_map(|timers| {
        let timer =
            |(id, [clock, notify, value, remaining_ns, interval_ns]): (i32, [u64; 5])| PosixTimer {
                id,
                clock: clock as i32,
                notify: notify as i32,
                signal: 34,
                value,
                notify_tid: 0,
                remaining_ns,
                interval_ns,
            };
        timers.into_iter().map(timer).collect::<Vec<_>>()
    });
    let rlimits = btree_map(0u32..16, any::<(u64, u64)>(), 0..5).prop_map(|limits| {
        limits
            .into_iter()
            .map(|(which, (a, b))| (which, a.min(b), a.max(b)))
            .collect::<Vec<_>>()
    });
    let timers = (interval_timers, posix_timers);
    let plain = any::<(bool, bool, bool, u64, u64)>();
    (
        file_id(),
        mm,
        path(),
        0u32..=0o777,
        signals,
        siginfos(),
        timers,
        rlimits,
        plain,
    )
        .prop_map(
            |(exe, mm, cwd, umask, signal_actions, pending, timers, rlimits, plain)| ProcessState {
                exe,
                mm,
                cwd,
                umask,
                signal_actions,
                pending,
                interval_timers: timers.0,
                posix_timers: timers.1,
                rlimits,
                child_subreaper: plain.0,
                thp_disable: plain.1,
                dumpable: plain.2.into(),
                protection_keys: (plain.3 as u16) & !1,
                membarrier: plain.4 as u32,
                monotonic_ns: plain.3,
                boottime_ns: plain.4,
            },
        )
}

pub fn threads(xsave_len: usize) -> impl Strategy<Value = Vec<Thread>> {
    let rseq = (1u64..1 << 40, any::<[u32; 2]>(), 0u32..64).prop_map(
        |(address, [signature, flags], len)| Rseq {
            address,
            len,
            signature,
            flags,
        },
    );
    let regs = any::<[u64; 20]>().prop_map(
        |[
            r15,
            r14,
            r13,
            r12,
            rbp,
            rbx,
            r11,
            r10,
            r9,
            r8,
            rax,
            rcx,
            rdx,
            rsi,
            rdi,
            rip,
            eflags,
            rsp,
            fs_base,
            gs_base,
        ]| {
            Registers {
                r15,
                r14,
                r13,
                r12,
                rbp,
                rbx,
                r11,
                r10,
                r9,
                r8,
                rax,
                rcx,
                rdx,
                rsi,
                rdi,
                rip,
                eflags,
                rsp,
                fs_base,
                gs_base,
            }
        },
    );
    let state = (
        regs,
        vec(any::<u8>(), xsave_len),
        siginfos(),
        option::of(rseq),
    );
    let plain = any::<([u64; 5], (u64, i32, u64), (u32, i32, u32))>();
    let thread = (state, plain, vec(1u8.., 0..=15), 0i32..=64).prop_map(
        |((regs, xsave, pending, rseq), (numbers, alt, sched), name, parent_death_signal)| {
            let [signal_mask, head, len, clear_child_tid, timer_slack_ns] = numbers;
            Thread {
                tid: 0,
                regs,
                xsave,
                signal_mask,
                alt_stack: AltStack {
                    sp: alt.0,
                    flags: alt.1,
                    size: alt.2,
                },
                pending,
                robust_list: (head, len),
                rseq,
                clear_child_tid,
                name,
                sched: Sched {
                    policy: sched.0,
                    nice: sched.1,
                    priority: sched.2,
                },
                parent_death_signal,
                timer_slack_ns,
                io_priority: numbers[0] as u32,
                affinity: numbers[1].to_le_bytes().to_vec(),
            }
        },
    );
    btree_map(1i32.., thread, 1..4).prop_map(|threads| {
        threads
            .into_iter()
            .map(|(tid, thread)| Thread { tid, ..thread })
            .collect()
    })
}
