//! A function in a machine: from the kernel's first instruction to its answer, and from a snapshot to the answers of copies,
//! in this process, in another one, and in jailed ones.
//!
//! Needs KVM on hardware, and `ROUSE_TEST_MACHINE`: a directory with a prepared kernel (`kernel`) and an image of a root with
//! Python in it (`root`). `cargo xtask hardware` makes both and runs this in the test bed.

mod api;
mod elsewhere;
mod guest;
mod jailed;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use rouse_pool::keeper;
use rouse_snapshot::model::MachineSnapshot;
use rouse_vmm::agent::{self, Agent, Owner, Owners, Start};
use rouse_vmm::devices::virtio::Disk;
use rouse_vmm::memory::{MapError, Mapped, Memory, known_pages};
use rouse_vmm::snapshot::Written;
use rouse_vmm::{Ended, Machine, Outcome, image};
use serde_json::Value;

use api::Api;
use guest::{Guest, Host};

/// The test bed is slow.
const PATIENCE: Duration = Duration::from_secs(600);

const HANDLER: &str = include_str!("app.py");

fn prepared() -> PathBuf {
    std::env::var_os("ROUSE_TEST_MACHINE")
        .expect("ROUSE_TEST_MACHINE names a directory")
        .into()
}

/// The disks of a machine: the prepared root, the runtime's clients, the function.
fn disks(directory: &Path) -> Vec<Disk> {
    let runtime = directory.join("runtime");
    rouse_runtimes::install(&runtime).expect("the clients can be written");
    let task = directory.join("task");
    std::fs::create_dir(&task).expect("it can be made");
    std::fs::write(task.join("app.py"), HANDLER).expect("it can be written");
    let image = |name: &str, source: &Path| {
        let image = source.with_extension("erofs");
        image::build(source, &image).expect("the image can be made");
        Disk {
            name: name.to_owned(),
            image,
        }
    };
    vec![
        Disk {
            name: "/".to_owned(),
            image: prepared().join("root"),
        },
        image("/var/runtime", &runtime),
        image("/var/task", &task),
    ]
}

fn start() -> Start {
    let runtime = rouse_runtimes::command(
        rouse_runtimes::Runtime::Python3,
        &rouse_runtimes::Interpreters::default(),
        Path::new("/nonexistent"),
        "app.handler",
    );
    let mut environment = runtime.env;
    for (name, value) in [
        ("AWS_LAMBDA_RUNTIME_API", "127.0.0.1:9001"),
        ("AWS_LAMBDA_FUNCTION_NAME", "tested"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
        ("LAMBDA_TASK_ROOT", "/var/task"),
        ("PATH", "/usr/bin:/bin"),
    ] {
        environment.push((name.to_owned(), value.to_owned()));
    }
    Start {
        arguments: runtime.argv,
        environment,
        directory: "/var/task".to_owned(),
        owner: (993, 990),
        fresh: agent::fresh().expect("the host has randomness"),
    }
}

/// Memory whose pages are all there.
fn unwatched(mapped: Mapped) -> Memory {
    mapped
        .watch(None, |_, _| -> Result<(), MapError> {
            panic!("no page can be absent")
        })
        .expect("it can be mapped")
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some((elsewhere::ROLE, arguments)) = arguments
        .split_first()
        .map(|(first, rest)| (first.as_str(), rest))
    {
        return elsewhere::main(arguments);
    }
    if let [role, uid, gid] = &arguments[..]
        && role == "vmm"
    {
        let number = |text: &str| text.parse().expect("a number");
        return rouse_vmm::zygote::vmm_main(number(uid), number(gid));
    }
    if !arguments.iter().any(|argument| argument == "--ignored") {
        println!("0 passed; 1 ignored: needs KVM on hardware");
        return ExitCode::SUCCESS;
    }
    // Before the first thread.
    let keeper = keeper::start().expect("the pager's keeper starts");
    let (pager, _events) = keeper.connect().expect("it answers");
    let directory = tempfile::tempdir().expect("a directory can be made");
    let disks = disks(directory.path());
    let (written, before) = a_function_answers_from_its_machine(&disks);
    println!("test a_function_answers_from_its_machine ... ok");

    let mut answers = vec![before];
    for id in [4, 5] {
        let host = Host::listen(disks.clone());
        let memory = unwatched(written.memory().expect("there is memory for it"));
        let machine = Machine::restore(&written.snapshot, memory, &host.devices, guest::console())
            .unwrap_or_else(|error| panic!("it cannot be restored: {error}: {error:?}"));
        let guest = Guest::run(machine);
        let (answer, _waits) = goes_on(host.agent(), host.api(), id);
        answers.push(answer);
        let (_, outcome) = guest.wait();
        assert_eq!(outcome, Outcome::Ended(Ended::Off));
        assert!(!host.was_asked_elsewhere());
    }
    println!("test copies_in_this_process_answer ... ok");

    let store = directory.path().join("store");
    elsewhere::keep(&written, &store);
    drop(written);
    let host = Host::listen(disks.clone());
    let process = elsewhere::start(&store, &host.devices);
    let (answer, _waits) = goes_on(host.agent(), host.api(), 6);
    answers.push(answer);
    process.join().expect("it does not panic");
    assert!(!host.was_asked_elsewhere());
    println!("test one_in_another_process_answers_from_the_store ... ok");

    for id in [7, 8] {
        answers.push(jailed::answers(&pager, &store, &disks, id));
    }
    println!("test jailed_ones_answer_from_the_store ... ok");

    for value in ["random", "boot_id"] {
        let distinct: std::collections::BTreeSet<_> = answers
            .iter()
            .map(|answer| answer[value].as_str())
            .collect();
        assert_eq!(distinct.len(), answers.len(), "{value}: {answers:?}");
    }
    println!("test none_repeats_what_another_drew ... ok\n5 passed; 0 failed");
    ExitCode::SUCCESS
}

/// From the kernel's first instruction to answers; then the machine is written down while its function waits for an event.
/// With it comes the function's last answer.
fn a_function_answers_from_its_machine(disks: &[Disk]) -> (Written, Value) {
    let first = Host::listen(disks.to_vec());
    let mut guest = Guest::run(guest::boot(&first, &prepared()));
    let mut agent = first.agent();
    let report = agent.ready().expect("the machine boots");
    assert!(report.contains("1 processors"), "{report}");
    agent.start(start()).expect("the runtime starts");
    let mut api = first.api();

    let answer = api.invoke(1, r#"{"name":"Ada"}"#);
    assert_eq!(answer["event"]["name"], "Ada");
    assert_eq!(
        (&answer["count"], &answer["user"], &answer["written"]),
        (&1.into(), &993.into(), &1.into())
    );
    assert_eq!(answer["pid1"], "init");

    // A function that is not content with its one connection: it gets no more than there may be, and nobody else suffers.
    let flood = api.invoke(2, "\"flood\"");
    let (opened, refused) = (flood["opened"].as_u64(), flood["refused"].as_u64());
    assert!(
        opened.is_some_and(|opened| (1..64).contains(&opened)),
        "{flood}"
    );
    assert_eq!(opened.unwrap_or(0) + refused.unwrap_or(0), 200);
    // What a connection holds, with the buffers of its socket.
    assert!(
        flood["sent"].as_u64().is_some_and(|sent| sent < 64 << 20),
        "{flood}"
    );
    let before = api.invoke(3, "[]");
    assert_eq!(before["count"], 3);

    // It waits for the next event, and is stopped there.
    api.next();
    let owners = agent.pause().expect("it stops");
    let (machine, outcome) = guest.pause();
    assert_eq!(outcome, Outcome::Paused);
    for violations in machine.devices().violations() {
        assert_eq!(violations.last(), None, "{}", violations.device());
    }
    let written = machine
        .snapshot("function", &[])
        .expect("it can be written down");
    whose_pages_are_known(&owners, &written.snapshot);
    drop((machine, agent, api));
    assert!(first.printed().contains("hello from the function"));
    (written, before)
}

/// The guest has said whose its pages are, and what it calls free costs nothing, although the function has used it.
fn whose_pages_are_known(owners: &Owners, snapshot: &MachineSnapshot) {
    let memory = snapshot.hardware.memory_pages;
    assert!(owners.pages() <= memory, "{} of {memory}", owners.pages());
    let count = |wanted: Owner| -> u64 {
        (owners.runs())
            .filter(|(_, owner)| *owner == wanted)
            .map(|(range, _)| range.end - range.start)
            .sum()
    };
    let counts = Owner::ALL.map(|owner| (owner.name(), count(owner)));
    for owner in [
        Owner::Free,
        Owner::Kernel,
        Owner::PageTable,
        Owner::Code,
        Owner::File,
        Owner::Data,
        Owner::Heap,
        Owner::Stack,
        Owner::Anonymous,
    ] {
        assert_ne!(count(owner), 0, "{}: {counts:?}", owner.name());
    }
    let stored: u64 = (known_pages(owners, &snapshot.memory).iter())
        .filter(|known| known.owner == Owner::Free)
        .map(|known| known.pages.end - known.pages.start)
        .sum();
    println!("free pages in the pool: {stored}; pages by owner: {counts:?}");
    // A few are used between the count and the pause, or fill gaps.
    assert!(stored < count(Owner::Free) / 10, "{stored} of {counts:?}");
}

/// A copy of the machine answers the next event, on the connection on which it waits, and is switched off. Without that
/// connection it would ask on another one, until it is off.
fn goes_on(mut agent: Agent, mut api: Api, id: u32) -> (Value, Api) {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("it is later");
    agent
        .resume(agent::fresh().expect("the host has randomness"))
        .expect("it goes on");
    // For the guest it is still open: nothing is asked for again.
    api.event(id, "[]");
    let answer = api.response(id);
    assert_eq!(answer["count"], 4);
    let time = answer["time"].as_f64().expect("a number");
    assert!(time >= now.as_secs_f64(), "{time} {now:?}");
    // It waits again, there and not on another one.
    api.next();
    agent.off().expect("it is asked");
    (answer, api)
}
