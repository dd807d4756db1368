//! The pager against real processes: instances that map pools, fork, move and drop their memory,
//! while pagers die, pages are taken out, and packs are damaged.
//!
//! Keeper and instances must be forked before there are threads, so every test is a process of its
//! own: this program, started again with the test's name.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::single_range_in_vec_init,
    reason = "lists of ranges are meant, some have one"
)]

mod anew;
mod contents;
mod death;
mod failures;
mod huge;
mod inside;
mod memory;
mod moves;
mod numa;
mod outside;
mod serving;
mod socket;
#[path = "../store_sample/mod.rs"]
mod store_sample;
mod touches;

use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

type Test = (&'static str, fn());

const TESTS: &[&[Test]] = &[
    serving::TESTS,
    moves::TESTS,
    death::TESTS,
    failures::TESTS,
    anew::TESTS,
    memory::TESTS,
    huge::TESTS,
    numa::TESTS,
    touches::TESTS,
];

/// Tests that run at a time: each has several busy processes.
const AT_A_TIME: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let all = || TESTS.iter().copied().flatten();
    if let [flag, name] = &arguments[..]
        && flag == "--run"
    {
        let (_, test) = all().find(|(other, _)| other == name).expect("a test");
        test();
        return ExitCode::SUCCESS;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(*f));
    let names: Vec<&str> = all()
        .map(|(name, _)| *name)
        .filter(|name| wanted(name))
        .collect();
    if arguments.iter().any(|argument| argument == "--list") {
        names.iter().for_each(|name| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let output = run(name);
                    if output.status.success() {
                        println!("test {name} ... ok");
                    } else {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("test {name} ... FAILED ({})", output.status);
                        print!("{}", String::from_utf8_lossy(&output.stdout));
                        print!("{}", String::from_utf8_lossy(&output.stderr));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} passed; {failed} failed", names.len() - failed);
    ExitCode::from(u8::from(failed > 0))
}

fn run(name: &str) -> Output {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--run", name])
        .output()
        .expect("the test could not be started")
}
