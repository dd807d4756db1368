//! Limits that a function runs into.

use rouse_sandbox::{Limits, SandboxKind};

use crate::driver::{LIMITS, Node};

pub fn memory_is_limited(node: &Node) {
    let limits = Limits {
        memory: 48 << 20,
        ..LIMITS
    };
    // The second one reuses the first one's slot: what was counted before must not show.
    for _ in 0..2 {
        let sandbox = node.spawner.create(limits, SandboxKind::Blank).unwrap();
        assert_eq!(sandbox.oom_kills(), 0);
        let output = node.run(
            &sandbox,
            &[
                "/usr/bin/python3",
                "-c",
                "print('start', flush=True); x = bytearray(100 << 20); print(len(x))",
            ],
        );
        assert_eq!(output, "start\n");
        assert_eq!(sandbox.oom_kills(), 1);
        assert!(
            sandbox.memory_peak() > 40 << 20,
            "{}",
            sandbox.memory_peak()
        );
        assert!(sandbox.memory_peak() <= limits.memory);
        sandbox.destroy();
    }
    let sandbox = node.sandbox();
    assert!(
        sandbox.memory_peak() < 40 << 20,
        "{}",
        sandbox.memory_peak()
    );
    assert_eq!(
        node.run(
            &sandbox,
            &["/usr/bin/python3", "-c", "print(len(bytearray(100 << 20)))"]
        ),
        "104857600\n"
    );
    assert_eq!(sandbox.oom_kills(), 0);
    sandbox.destroy();
}

pub fn processes_are_limited(node: &Node) {
    let limits = Limits { pids: 10, ..LIMITS };
    let sandbox = node.spawner.create(limits, SandboxKind::Blank).unwrap();
    let script = "
import os, time
made = 0
try:
    while True:
        if os.fork() == 0: time.sleep(100)
        made += 1
except BlockingIOError: print(made, flush=True)
os.kill(-1, 9)
";
    // Init and the function itself are two of the ten.
    assert_eq!(
        node.run(&sandbox, &["/usr/bin/python3", "-c", script]),
        "8\n"
    );
    sandbox.destroy();
}
