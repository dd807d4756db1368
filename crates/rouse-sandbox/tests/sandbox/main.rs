//! Starts a real spawner and looks at its sandboxes from inside and outside. Needs root.
//!
//! A program of its own instead of `#[test]` functions: the spawner is forked while the process has one thread.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends where something unexpected happens"
)]

mod driver;
mod escape;
mod inside;
mod leftovers;
mod limits;
mod network;
mod residue;
mod slots;

use std::panic::{AssertUnwindSafe, catch_unwind};

use driver::Node;

type Test = (&'static str, fn(&Node));

/// Tests that share one spawner.
const TESTS: &[Test] = &[
    ("the function is nobody", inside::the_function_is_nobody),
    (
        "the root is the host's programs, read-only",
        inside::the_root_is_read_only,
    ),
    (
        "the host's directories are hidden",
        inside::the_hosts_directories_are_hidden,
    ),
    (
        "there is only a loopback interface",
        inside::there_is_only_a_loopback_interface,
    ),
    (
        "the code is attached read-only",
        inside::the_code_is_attached_read_only,
    ),
    (
        "the scratch space is private and limited",
        inside::the_scratch_space_is_private_and_limited,
    ),
    (
        "the runtime API's connection is made ahead",
        inside::the_connection_is_made_ahead,
    ),
    (
        "programs work under the filter",
        inside::programs_work_under_the_filter,
    ),
    (
        "the clocks are ahead as configured",
        inside::clocks_are_ahead,
    ),
    ("orphans are reaped", inside::orphans_are_reaped),
    (
        "a program that cannot run is explained",
        inside::a_program_that_cannot_run_is_explained,
    ),
    ("escapes are refused", escape::escapes_are_refused),
    ("init is out of reach", escape::init_is_out_of_reach),
    ("memory is limited", limits::memory_is_limited),
    ("processes are limited", limits::processes_are_limited),
    (
        "a sandbox sees nothing of the one before",
        slots::nothing_is_left_for_the_next,
    ),
    (
        "canaries of all classes are not found by the next",
        residue::canaries_are_not_found,
    ),
    (
        "a used sandbox is as a new one, field by field",
        residue::a_used_sandbox_is_as_a_new_one,
    ),
    (
        "namespaces serve one sandbox after the other",
        slots::namespaces_are_used_again,
    ),
    ("empty slots go when a burst is over", slots::empty_slots_go),
    (
        "the network is reached only where it is asked for",
        network::only_outbound_sandboxes_reach_the_network,
    ),
    (
        "killing init ends everything",
        leftovers::killing_init_ends_everything,
    ),
    ("exits are reported", leftovers::exits_are_reported),
    (
        "a template host has the host's view",
        leftovers::a_template_host_has_the_hosts_view,
    ),
    (
        "what is kept outlives the processes",
        leftovers::what_is_kept_outlives_the_processes,
    ),
    (
        "a hundred sandboxes leave nothing",
        leftovers::a_hundred_sandboxes_leave_nothing,
    ),
];

fn main() {
    // An argument picks the tests whose names contain it.
    let picked = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let wanted = |name: &str| {
        picked
            .as_ref()
            .is_none_or(|part| name.contains(part.as_str()))
    };
    let started = |name| catch_unwind(AssertUnwindSafe(|| Node::start(name)));
    let (mut passed, mut failed) = (0, 0);
    let mut count = |name: &str, good: bool| {
        println!("test {name} ... {}", if good { "ok" } else { "FAILED" });
        *(if good { &mut passed } else { &mut failed }) += 1;
    };
    // These fork nodes of their own, so they come before this process has threads.
    for (name, test) in leftovers::FORKING.iter().filter(|(name, _)| wanted(name)) {
        count(name, catch_unwind(test).is_ok());
    }
    match started("main") {
        Ok(node) => {
            for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
                count(name, catch_unwind(AssertUnwindSafe(|| test(&node))).is_ok());
            }
            let good = catch_unwind(AssertUnwindSafe(|| {
                leftovers::shutdown_leaves_nothing(node)
            }))
            .is_ok();
            count("shutdown leaves nothing", good);
        }
        Err(_) => count("the spawner starts", false),
    }
    println!("{passed} passed, {failed} failed");
    std::process::exit(i32::from(failed > 0));
}
