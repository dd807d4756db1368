//! Takes a real function through cold start, checkpoint, restore and fork, without a node: this
//! test plays the runtime API by hand.
//!
//! No test harness: the spawner must be forked while the process has one thread. The first
//! argument is the number of restores and forks.

#![allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rouse_process::instance::{Instance, LaunchSpec};
use rouse_process::launcher::{Launcher, LauncherConfig, Residency};
use rouse_sandbox::{Limits, SandboxConfig};

/// What is silent for this long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

const FUNCTION: &str = r#"
import os, socket, sys, threading
connection = socket.create_connection(("127.0.0.1", 9001))
state = {"calls": 0, "squares": [n * n for n in range(100000)]}
event = threading.Event()
done = threading.Event()
def work():
    while True:
        event.wait()
        event.clear()
        state["calls"] += 1
        done.set()
threading.Thread(target=work, daemon=True).start()
def request(text):
    connection.sendall(text.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            sys.exit("the connection was closed")
        data += part
    return data.split(b"\r\n\r\n", 1)[1]
while True:
    body = request("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: x\r\n\r\n")
    event.set()
    done.wait()
    done.clear()
    child = os.popen("echo from a child").read().strip()
    print("log line", state["calls"], flush=True)
    answer = "|".join([body.decode(), str(state["calls"]), str(sum(state["squares"])), str(os.getpid()), str(os.getuid()), child])
    request(f"POST /answer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(answer)}\r\n\r\n{answer}")
"#;

fn main() {
    let scratch = tempfile::tempdir().unwrap();
    let task_dir = scratch.path().join("task");
    std::fs::create_dir(&task_dir).unwrap();
    std::fs::write(task_dir.join("main.py"), FUNCTION).unwrap();
    let runtime_dir = scratch.path().join("runtime");
    std::fs::create_dir(&runtime_dir).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(scratch.path(), readable).unwrap();
    let launcher = Launcher::start(LauncherConfig {
        sandbox: SandboxConfig {
            root: "/".into(),
            runtime_dir,
            hidden: Vec::new(),
            cgroup: format!("rouse-test-{}", std::process::id()),
            uid_base: 0x7000_0000,
            clock_offset: None,
            hand_over_memory_calls: false,
        },
        clock_file: scratch.path().join("clock"),
        store: scratch.path().into(),
        ready_sandboxes: 2,
        most_ready_sandboxes: 2,
        ready_clones: 2,
        record_order: false,
        huge_pages: false,
    })
    .unwrap_or_else(|e| panic!("{}", chain(&e)));
    let spec = LaunchSpec {
        argv: ["/usr/bin/python3", "-u", "/var/task/main.py"]
            .map(String::from)
            .to_vec(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        task_dir,
        cwd: "/var/task".into(),
        limits: Limits {
            memory: 512 << 20,
            pids: 100,
            cpu_millis: 2000,
            tmp: 64 << 20,
            network: rouse_sandbox::Network::None,
        },
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let rounds = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(5);
    runtime.block_on(round_trip(
        &launcher,
        &spec,
        &scratch.path().join("snapshots/f"),
        rounds,
    ));
    drop(runtime);
    drop(launcher);
    println!("1 passed, 0 failed");
}

async fn round_trip(launcher: &Launcher, spec: &LaunchSpec, dir: &Path, rounds: usize) {
    let mut cold = launcher
        .cold(spec)
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    let listener = cold.listener.take().unwrap();
    let accepted = tokio::task::spawn_blocking(move || {
        listener.set_nonblocking(false).unwrap();
        let (mut connection, peer) = listener.accept().unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = read(&mut connection).unwrap();
        (connection, peer.port(), head)
    });
    let (_connection, port, head) = tokio::time::timeout(PATIENCE, accepted)
        .await
        .unwrap_or_else(|_| {
            panic!(
                "no request; failure {:?}, exit {:?}",
                cold.failure(),
                cold.exit.borrow()
            )
        })
        .unwrap();
    assert!(
        head.starts_with("GET /2018-06-01/runtime/invocation/next"),
        "{head}"
    );
    let report = launcher
        .checkpoint(cold, port, spec, dir)
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    println!("{report:?}");
    let image = launcher
        .load(dir, &[], Residency::Now)
        .await
        .unwrap_or_else(|e| panic!("{}", chain(&e)));
    for i in 0..rounds {
        let restored = launcher
            .restore(&image, spec)
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        check(restored, &format!("restore {i}")).await;
    }
    for i in 0..rounds {
        let clone = launcher
            .fork(&image, spec)
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        check(clone, &format!("fork {i}")).await;
    }
}

async fn check(mut instance: Instance, event: &str) {
    let mut parked = instance.parked.take().unwrap();
    let log = instance.log.take().unwrap();
    let begin = std::time::Instant::now();
    let event_text = event.to_owned();
    let answered = tokio::task::spawn_blocking(move || {
        parked.set_nonblocking(false).unwrap();
        parked.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{event_text}",
            event_text.len()
        );
        parked.write_all(head.as_bytes()).unwrap();
        (read(&mut parked), parked)
    });
    let (request, mut parked) = answered.await.unwrap();
    let took = begin.elapsed();
    let request = request.unwrap_or_else(|e| {
        let (failure, exit) = (instance.failure(), instance.exit.borrow().clone());
        instance.kill();
        panic!(
            "{event}: {e}; failure {failure:?}, exit {exit:?}, log {}",
            drain(log.try_clone().unwrap())
        )
    });
    let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(
        body,
        format!("{event}|1|333328333350000|2|993|from a child"),
        "{request}"
    );
    println!(
        "{event}: {took:?} {:?} {:?}",
        instance.stages(),
        instance.memory()
    );
    parked
        .write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    assert!(
        read(&mut parked)
            .unwrap()
            .starts_with("GET /2018-06-01/runtime/invocation/next")
    );
    instance.kill();
    instance.exit.wait_for(|exit| exit.is_some()).await.unwrap();
    assert_eq!(drain(log), "log line 1\n");
}

fn drain(log: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(log).read_to_string(&mut text).unwrap();
    text
}

fn read(connection: &mut TcpStream) -> std::io::Result<String> {
    let mut buffer = vec![0; 65536];
    let len = connection.read(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..len]).into_owned())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!("\n  caused by: {cause}");
        next = cause.source();
    }
    text
}
