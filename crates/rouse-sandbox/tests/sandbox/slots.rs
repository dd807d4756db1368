//! What one sandbox leaves for the next one in its slot.

use std::collections::BTreeSet;

use rouse_sandbox::Sandbox;

use crate::driver::Node;

/// Leaves one thing of each kind behind, and says when it is done.
const LITTER: &str = "
import ctypes, os, socket, threading
kept = []
def listen(family, kind, address):
    made = socket.socket(family, kind); made.bind(address); kept.append(made)
    if kind == socket.SOCK_STREAM: made.listen()
    return made
listen(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', 7001))
listen(socket.AF_INET6, socket.SOCK_STREAM, ('::1', 7002))
listen(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', 7003))
listen(socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + 'abstract')
if WAIT:
    # The side that closes first remembers the connection for a minute.
    server = listen(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', 7004))
    client = socket.create_connection(('127.0.0.1', 7004)); accepted, _ = server.accept()
    client.close(); accepted.recv(1); accepted.close()
libc = ctypes.CDLL(None)
assert libc.shmget(77, 4096, 0o1666) >= 0
assert libc.semget(77, 1, 0o1666) >= 0
assert libc.msgget(77, 0o1666) >= 0
assert libc.mq_open(b'/queue', os.O_CREAT | os.O_RDWR, 0o666, None) >= 0
for path in ['/tmp/file', '/dev/shm/file']: open(path, 'w').write('secret')
print('littered', flush=True)
";

/// Prints what of that it sees.
const LOOK: &str = "
import ctypes, os
libc = ctypes.CDLL(None)
print(os.uname().nodename, os.listdir('/tmp'), os.listdir('/dev/shm'))
print(libc.shmget(77, 0, 0), libc.semget(77, 0, 0), libc.msgget(77, 0), libc.mq_open(b'/queue', os.O_RDWR))
for table in ['tcp', 'tcp6', 'udp', 'udp6', 'unix']:
    lines = open('/proc/net/' + table).read().splitlines()[1:]
    # The runtime API's own port is 9001, 0x2329.
    print(table, [line for line in lines if ':2329' not in line])
print(open('/proc/net/sockstat').readline().strip(), 'tw', open('/proc/net/sockstat').read().split('tw ')[1].split()[0])
print([name for name in os.listdir('/proc') if name.isdigit()])
";

const CLEAN: &str = "sandbox [] []\n-1 -1 -1 -1\ntcp []\ntcp6 []\nudp []\nudp6 []\nunix []\nsockets: used 3 tw 0\n['1', '2']\n";

fn network_of(sandbox: &Sandbox) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let path = format!("/proc/{}/ns/net", sandbox.init.pid);
    std::fs::metadata(path).unwrap().ino()
}

fn python(node: &Node, sandbox: &Sandbox, script: &str) -> String {
    node.run(sandbox, &["/usr/bin/python3", "-c", script])
}

pub fn nothing_is_left_for_the_next(node: &Node) {
    // With and without remembered connections: their slots are refused and taken, respectively.
    for wait in ["True", "False"] {
        for _ in 0..10 {
            let sandbox = node.sandbox();
            let output = python(node, &sandbox, &format!("WAIT = {wait}\n{LITTER}"));
            assert_eq!(output, "littered\n");
            sandbox.destroy();
            let sandbox = node.sandbox();
            assert_eq!(python(node, &sandbox, LOOK), CLEAN);
            sandbox.destroy();
        }
    }
}

pub fn namespaces_are_used_again(node: &Node) {
    let networks: Vec<u64> = (0..50)
        .map(|_| {
            let sandbox = node.sandbox();
            let network = network_of(&sandbox);
            sandbox.destroy();
            network
        })
        .collect();
    let different: BTreeSet<_> = networks.iter().collect();
    assert!(different.len() < 20, "{networks:?}");
}

/// Numbers of the slots that have a control group somewhere.
pub fn slots(node: &Node) -> BTreeSet<u32> {
    let number = |path: std::path::PathBuf| path.file_name()?.to_str()?.parse().ok();
    let groups = crate::leftovers::groups(&node.config.cgroup);
    groups.into_iter().filter_map(number).collect()
}

pub fn empty_slots_go(node: &Node) {
    const BURST: usize = 40;
    let all: Vec<Sandbox> = (0..BURST).map(|_| node.sandbox()).collect();
    let most = slots(node);
    assert!(most.len() >= BURST, "{most:?}");
    all.into_iter().for_each(Sandbox::destroy);
    // Some are kept: the next request should not wait for namespaces.
    while slots(node).len() > 8 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    let again: Vec<Sandbox> = (0..BURST).map(|_| node.sandbox()).collect();
    assert!(slots(node).last() <= most.last(), "numbers are used again");
    for sandbox in again {
        assert_eq!(python(node, &sandbox, LOOK), CLEAN);
        sandbox.destroy();
    }
}
