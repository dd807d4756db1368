//! `kill -9` in the middle of writing: what was acknowledged is there afterwards.
//!
//! The child is this test program again. It writes functions, builds and events and prints each acknowledgement; the
//! parent kills it at some point, opens the store and compares.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use rouse_node::function::record::{CodeRef, FunctionRecord, FunctionSettings, State};
use rouse_node::store::{EventRecord, Store};

const DIRECTORY: &str = "ROUSE_STORE_CRASH_TEST";

fn record(name: &str) -> FunctionRecord {
    FunctionRecord {
        name: name.into(),
        version: "$LATEST".into(),
        settings: FunctionSettings {
            runtime: "python3.11".into(),
            role: "role".into(),
            handler: "app.handler".into(),
            description: "x".repeat(200),
            timeout_s: 3,
            memory_mib: 128,
            ephemeral_mib: 512,
            environment: std::collections::BTreeMap::new(),
            has_environment: false,
            architecture: "x86_64".into(),
            snap_start: "None".into(),
            tracing_mode: "PassThrough".into(),
            log_format: "Text".into(),
            application_log_level: None,
            system_log_level: None,
            log_group: "/aws/lambda/f".into(),
            tags: std::collections::BTreeMap::new(),
            snapshot_point: None,
        },
        code: CodeRef {
            sha256_hex: "00".repeat(32),
            size: 1,
        },
        revision_id: "r".into(),
        last_modified_ms: 1,
        state: State::Done,
        last_update: State::Done,
        next_version: 1,
        serving: rouse_node::ServingPolicy::default(),
        events: rouse_node::events::policy::EventPolicy::default(),
    }
}

fn event(id: &str) -> EventRecord {
    EventRecord {
        request_id: id.into(),
        function: "f".into(),
        version: "$LATEST".into(),
        client_context: None,
        accepted_ms: 1,
        attempts: 0,
        failures: 0,
        hops: 0,
        queue: None,
    }
}

/// Does nothing unless the parent below starts it.
#[test]
fn child_writes_until_it_is_killed() {
    let Ok(directory) = std::env::var(DIRECTORY) else {
        return;
    };
    let store = Store::open(&Path::new(&directory).join("meta.redb")).unwrap();
    let mut out = std::io::stdout();
    for n in 0u64.. {
        let name = format!("f{n}");
        store
            .put_functions(&[&record(&name), &record(&format!("twin-{name}"))])
            .unwrap();
        writeln!(out, "ACK function {name}").unwrap();
        let id = store
            .add_event(&event(&format!("e{n}")), &vec![b'x'; 5000])
            .unwrap();
        writeln!(out, "ACK event {id}").unwrap();
        if n % 3 == 2 {
            store.remove_functions(&[format!("f{}", n - 1)]).unwrap();
            writeln!(out, "ACK removed f{}", n - 1).unwrap();
        }
        out.flush().unwrap();
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    for acknowledgements in [1, 7, 40] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_writes_until_it_is_killed", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (mut functions, mut events, mut removed) =
            (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut seen = 0;
        let mut killed = false;
        // What is still in the pipe after the kill was acknowledged as well.
        while let Some(Ok(line)) = lines.next() {
            let Some(acknowledged) = line.split("ACK ").nth(1) else {
                continue;
            };
            match acknowledged.split_once(' ') {
                Some(("function", name)) => drop(functions.insert(name.to_owned())),
                Some(("event", id)) => drop(events.insert(id.parse::<u64>().unwrap())),
                Some(("removed", name)) => drop(removed.insert(name.to_owned())),
                other => panic!("{other:?}"),
            }
            seen += 1;
            if seen >= acknowledgements && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        let store = Store::open(&dir.path().join("meta.redb")).unwrap();
        let stored: BTreeSet<String> = store
            .functions()
            .unwrap()
            .into_iter()
            .map(|f| f.name)
            .collect();
        for name in functions.difference(&removed) {
            // The last removal may have been stored and not acknowledged.
            let number: u64 = name[1..].parse().unwrap();
            let maybe_removed = number % 3 == 1 && functions.len() as u64 == number + 2;
            assert!(stored.contains(name) || maybe_removed, "{name}");
        }
        assert!(removed.iter().all(|name| !stored.contains(name)));
        // Both of a transaction or none.
        for name in stored.iter().filter(|name| !name.starts_with("twin-")) {
            assert!(stored.contains(&format!("twin-{name}")), "{name}");
        }
        let kept: BTreeSet<u64> = store
            .events()
            .unwrap()
            .into_iter()
            .map(|(id, _)| id)
            .collect();
        assert!(events.is_subset(&kept));
        for id in &kept {
            assert_eq!(store.payload(*id).unwrap().unwrap().len(), 5000);
        }
    }
}
