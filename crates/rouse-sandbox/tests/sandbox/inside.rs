//! What a function sees of itself and of the world.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;

use crate::driver::{CLOCKS_AHEAD_S, Node, receive};

pub fn the_function_is_nobody(node: &Node) {
    let status = node.shell("id; hostname; cat /proc/self/status; cat /proc/self/cgroup; readlink /proc/self/ns/*; echo pid $$; ls /proc/self/fd | wc -w");
    for line in [
        "uid=993(sbx_user) gid=990(sbx_user) groups=990(sbx_user)",
        "sandbox",
        "pid 2",
    ] {
        assert!(
            status.lines().any(|other| other == line),
            "no line {line:?} in {status}"
        );
    }
    for (field, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
        ("Seccomp_filters", "1"),
    ] {
        let line = format!("{field}:\t{value}");
        assert!(status.contains(&line), "no {line:?} in {status}");
    }
    // Its control groups are the roots of what it can see.
    assert!(
        status.contains(":memory:/\n") || status.contains("0::/\n"),
        "{status}"
    );
    // Three streams, and the one with which `ls` reads the directory.
    assert!(status.ends_with("\n4\n"), "{status}");
}

pub fn the_root_is_read_only(node: &Node) {
    let output = node.shell("for d in / /usr /etc /var /dev /var/runtime /home; do touch $d/x 2>/dev/null && echo wrote $d; done; cat /var/runtime/client; cat /etc/passwd; test -x /usr/bin/python3 && echo python; echo > /dev/null; head -c 4 /dev/urandom | wc -c");
    assert!(!output.contains("wrote"), "{output}");
    assert!(output.starts_with("runtime client"), "{output}");
    assert!(
        output.contains("sbx_user:x:993:990:") && output.ends_with("python\n4\n"),
        "{output}"
    );
    assert_eq!(output.matches(":x:").count(), 3, "{output}");
}

pub fn the_hosts_directories_are_hidden(node: &Node) {
    let listing = node.shell("ls -A /root /home/sbx_user /srv /mnt /media /run /boot /sys /usr/share/doc /etc/ssh 2>/dev/null | grep -v ':$'; echo; echo end");
    assert_eq!(listing.trim(), "end");
    let top = node.shell("ls -A /; ls /var; ls /etc/shadow /etc/machine-id 2>/dev/null; ls /dev; tr '\\0' ' ' < /proc/1/cmdline; ls /proc | grep -c '^[0-9]'");
    let known = [
        "bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "etc", "nix", "proc",
        "sys", "dev", "tmp", "run", "var", "root", "home", "srv", "mnt", "media", "boot",
    ];
    let inside = [
        "task",
        "runtime",
        "null",
        "zero",
        "full",
        "random",
        "urandom",
        "tty",
        "fd",
        "stdin",
        "stdout",
        "stderr",
        "shm",
        "rouse-spawner",
    ];
    for name in top.split_whitespace() {
        assert!(
            known.contains(&name) || inside.contains(&name) || name.parse::<u32>().is_ok(),
            "{name} is visible"
        );
    }
}

pub fn there_is_only_a_loopback_interface(node: &Node) {
    let output = node.shell("tail -n +3 /proc/net/dev | cut -d: -f1; cat /proc/net/route | wc -l");
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), ["lo", "1"]);
}

pub fn the_code_is_attached_read_only(node: &Node) {
    let output =
        node.shell("pwd; cat handler; touch x 2>&1; grep ' /var/task ' /proc/self/mountinfo");
    assert!(output.starts_with("/var/task\ncode"), "{output}");
    assert!(output.contains("Read-only file system"), "{output}");
    assert!(output.contains("/var/task ro,nosuid,nodev"), "{output}");
}

pub fn the_scratch_space_is_private_and_limited(node: &Node) {
    let output = node.shell("echo x > /tmp/mine; stat -c %a /tmp; head -c 16000000 /dev/zero > /tmp/big; ls -l /tmp/big | cut -d' ' -f5; echo y > /dev/shm/z && cat /dev/shm/z");
    let lines: Vec<&str> = output.lines().collect();
    assert!(
        lines.contains(&"1777") && lines.last() == Some(&"y"),
        "{output}"
    );
    let size: u64 = lines
        .iter()
        .filter_map(|line| line.parse().ok())
        .find(|size| *size > 100_000)
        .unwrap();
    assert!(size <= 8 << 20, "{size}");
    assert_eq!(node.shell("ls -A /tmp"), "");
}

pub fn the_connection_is_made_ahead(node: &Node) {
    let mut sandbox = node.sandbox();
    let mut client = TcpStream::from(sandbox.client.try_clone().unwrap());
    client.write_all(b"next").unwrap();
    let mut received = [0; 4];
    sandbox.server.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"next");
    assert_eq!(
        sandbox.server.local_addr().unwrap().port(),
        rouse_sandbox::API_PORT
    );
    let output = node.start_program(&sandbox, &["/usr/bin/python3", "-c", "import socket; s = socket.create_connection(('127.0.0.1', 9001)); s.sendall(b'hello'); print(s.recv(10))"]);
    let (mut connection, _) = sandbox.listener.accept().unwrap();
    let mut hello = [0; 5];
    connection.read_exact(&mut hello).unwrap();
    connection.write_all(b"world").unwrap();
    let mut printed = String::new();
    { output }.read_to_string(&mut printed).unwrap();
    assert_eq!((&hello, printed.as_str()), (b"hello", "b'world'\n"));
    sandbox.destroy();
}

pub fn programs_work_under_the_filter(node: &Node) {
    let script = "
import subprocess, threading, multiprocessing, socket, tempfile, ssl, asyncio, os, signal, time, mmap
print(subprocess.run(['/bin/echo', 'child'], capture_output=True, text=True).stdout.strip())
results = []
threads = [threading.Thread(target=lambda: results.append(1)) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(len(results))
def square(x): return x * x
with multiprocessing.get_context('fork').Pool(2) as pool: print(sum(pool.map(square, [1, 2, 3])))
async def main():
    process = await asyncio.create_subprocess_exec('/bin/true')
    return await process.wait()
print(asyncio.run(main()))
socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
socket.socketpair()
print(len(tempfile.mkdtemp()) > 0, os.path.realpath('/proc/self/exe').startswith('/usr'))
try: socket.getaddrinfo('example.invalid', 80)
except OSError as error: print('no network')
";
    assert_eq!(
        node.python(script),
        "child\n4\n14\n0\nTrue True\nno network\n"
    );
    if std::path::Path::new("/usr/bin/node").exists() {
        let sandbox = node.sandbox();
        let script = "const {Worker} = require('worker_threads'); const {execFileSync} = require('child_process');\
            new Worker('require(\"worker_threads\").parentPort.postMessage(5)', {eval: true}).on('message', m => \
            console.log(m, execFileSync('/bin/echo', ['x']).toString().trim(), require('os').userInfo().username))";
        assert_eq!(
            node.run(&sandbox, &["node", "-e", script]),
            "5 x sbx_user\n"
        );
        sandbox.destroy();
    }
}

pub fn clocks_are_ahead(node: &Node) {
    let now = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    let before = now();
    let inside = node.python("import time; print(int(time.monotonic()))");
    let inside: i64 = inside.trim().parse().unwrap();
    assert!(
        (before + CLOCKS_AHEAD_S..=now() + CLOCKS_AHEAD_S).contains(&inside),
        "{inside}"
    );
}

pub fn orphans_are_reaped(node: &Node) {
    // The grandchild outlives its parent, becomes init's child, and must not stay a zombie.
    let script = "
import os, time
read, write = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        while os.getppid() != 1: os.sched_yield()
        os.write(write, str(os.getpid()).encode()); os._exit(0)
    os._exit(0)
os.wait()
grandchild = os.read(read, 10).decode()
while os.path.exists('/proc/' + grandchild): os.sched_yield()
print('reaped')
";
    assert_eq!(node.python(script), "reaped\n");
}

pub fn a_program_that_cannot_run_is_explained(node: &Node) {
    for (program, reason) in [
        (
            "/no/such/program",
            "cannot run /no/such/program: No such file",
        ),
        ("/etc/passwd", "cannot run /etc/passwd: Permission denied"),
        ("no-such-name", "cannot run no-such-name: No such file"),
    ] {
        let sandbox = node.sandbox();
        assert_eq!(node.run(&sandbox, &[program]), "");
        let (message, _) = receive(&sandbox.blank.as_ref().unwrap().1);
        let message = String::from_utf8(message).unwrap();
        assert!(message.starts_with(reason), "{message}");
        sandbox.destroy();
    }
    let readable = std::fs::metadata(&node.task).unwrap().permissions().mode() & 0o5;
    assert_eq!(readable, 0o5);
}
