//! Makes and ends sandboxes in a loop, and prints what one costs. Needs root.
//!
//! `cargo run --example churn -- [ROUNDS] [PER_ROUND] [AT_A_TIME]`
//!
//! CPU time is that of the whole machine (kernel threads, interrupts and all), so other load counts: the smallest of
//! several rounds comes closest to the truth.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement ends where something unexpected happens"
)]

use std::fs;
use std::time::Instant;

use rouse_sandbox::{BlankContext, Limits, Network, SandboxConfig, SandboxKind, Spawner};

const LIMITS: Limits = Limits {
    memory: 256 << 20,
    pids: 64,
    cpu_millis: 2000,
    tmp: 8 << 20,
    network: Network::None,
};

fn wait_for_end(context: BlankContext) -> ! {
    let mut byte = [0];
    let _ = rustix::io::read(&context.control, &mut byte);
    std::process::exit(0)
}

/// Busy time of all CPUs, microseconds, in steps of a clock tick.
fn busy_us() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|field| field.parse().unwrap())
        .collect();
    // user, nice, system, irq, softirq; idle and iowait are between them.
    let ticks: u64 = [0, 1, 2, 5, 6].into_iter().map(|field| fields[field]).sum();
    ticks * 10_000
}

fn main() {
    let numbers: Vec<usize> = std::env::args()
        .skip(1)
        .map(|argument| argument.parse().unwrap())
        .collect();
    let number = |at: usize, otherwise| numbers.get(at).copied().unwrap_or(otherwise);
    let (rounds, per_round, at_a_time) = (number(0, 5), number(1, 400), number(2, 1));
    let runtime = tempfile::tempdir().unwrap();
    let config = SandboxConfig {
        root: "/".into(),
        runtime_dir: runtime.path().to_owned(),
        hidden: Vec::new(),
        cgroup: format!("rouse-churn-{}", std::process::id()),
        uid_base: 1 << 21,
        clock_offset: None,
        hand_over_memory_calls: false,
    };
    let spawner = Spawner::start(config, wait_for_end, wait_for_end).unwrap();
    println!("spawner {}", spawner.pid());
    for kind in [SandboxKind::Blank, SandboxKind::ForkTarget] {
        for round in 0..rounds {
            let (busy, begin) = (busy_us(), Instant::now());
            let mut created: Vec<u128> = std::thread::scope(|scope| {
                let worker = || {
                    (0..per_round / at_a_time)
                        .map(|_| {
                            let begin = Instant::now();
                            let sandbox = spawner.create(LIMITS, kind).unwrap();
                            let took = begin.elapsed().as_micros();
                            sandbox.destroy();
                            took
                        })
                        .collect::<Vec<_>>()
                };
                let workers: Vec<_> = (0..at_a_time).map(|_| scope.spawn(worker)).collect();
                workers
                    .into_iter()
                    .flat_map(|worker| worker.join().unwrap())
                    .collect()
            });
            let (wall, busy) = (begin.elapsed().as_micros(), busy_us() - busy);
            created.sort_unstable();
            let made = created.len();
            println!(
                "{kind:?} round {round}: {made} sandboxes, each {} us of CPU, {} us from creation to the end; created in p50 {} us, p99 {} us",
                busy / made as u64,
                wall / made as u128,
                created[made / 2],
                created[made * 99 / 100],
            );
        }
    }
    spawner.shutdown();
}
