//! Generators must differ between processes that are equal to the byte, their process id included.
//!
//! Such processes are made here without a snapshot: the program is pid 1 of a pid namespace, and its children are made by the
//! bare system call, each as pid 1 of a further namespace. OpenSSL and others detect a fork by a changed pid: they do not here,
//! which the control without reseeding shows. Needs root, as namespaces do.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::api::runtime_dir;

const CLONES: usize = 4;

/// Runs a program as pid 1 of a new pid namespace and returns the lines it and its children print.
fn run(program: &str, arguments: &[&str], script: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script");
    std::fs::write(&file, script).unwrap();
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", program])
        .args(arguments)
        .arg(&file)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text.lines().map(str::to_owned).collect()
}

/// `name value` lines: how many different values there are of each name must be `expected`.
fn assert_distinct(lines: &[String], names: &[&str], expected: usize) {
    for name in names {
        let values: Vec<_> = lines
            .iter()
            .filter_map(|line| line.strip_prefix(&format!("{name} ")))
            .collect();
        assert_eq!(values.len(), CLONES, "{name}: {lines:#?}");
        assert_eq!(
            values.iter().collect::<HashSet<_>>().len(),
            expected,
            "{name}: {values:?}"
        );
    }
}

fn python(reseed: bool) -> Vec<String> {
    let script = format!(
        "import ctypes, os, random, ssl, sys, tempfile, uuid
sys.path.append({runtime:?})
import _rouse_unique
random.random(), ssl.RAND_bytes(8), next(tempfile._get_candidate_names()), uuid.uuid1(), uuid.getnode()
_rouse_unique.prepare()
_rouse_unique.settle()
libc = ctypes.CDLL(None, use_errno=True)
for _ in range({CLONES}):
    # clone(SIGCHLD | CLONE_NEWPID) on x86-64
    pid = libc.syscall(56, 17 | 0x20000000, 0, 0, 0, 0)
    assert pid >= 0, os.strerror(ctypes.get_errno())
    if pid == 0:
        assert os.getpid() == 1
        if {reseed}:
            _rouse_unique.reseed()
        print('random', random.random())
        print('ssl', ssl.RAND_bytes(16).hex())
        print('tempfile', next(tempfile._get_candidate_names()))
        print('uuid4', uuid.uuid4())
        print('uuid1', str(uuid.uuid1())[19:])
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
",
        runtime = runtime_dir().join("python3"),
        reseed = if reseed { "True" } else { "False" },
    );
    run("/usr/bin/python3", &[], &script)
}

#[test]
fn python_generators() {
    let lines = python(true);
    assert_distinct(
        &lines,
        &["random", "ssl", "tempfile", "uuid4", "uuid1"],
        CLONES,
    );
    let control = python(false);
    assert_distinct(&control, &["random", "ssl", "tempfile"], 1);
}

/// A native module whose one function makes the system call.
fn clone_addon() -> PathBuf {
    let output =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clone-{}.node", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/clone_addon.rs");
    let compiler = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(compiler)
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "cdylib",
            "--crate-name",
            "clone_addon",
            "-C",
            "panic=abort",
            "-o",
        ])
        .arg(&output)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success());
    output
}

fn node(addon: &Path, reseed: bool) -> Vec<String> {
    let script = format!(
        "const fs = require('fs'), crypto = require('crypto');
const unique = require({unique:?});
const clone = require({addon:?});
Math.random(); crypto.randomBytes(8); crypto.randomUUID(); crypto.randomInt(10); globalThis.crypto.randomUUID();
for (let i = 0; i < {CLONES}; i++) {{
  const pid = clone();
  if (pid < 0) throw new Error('clone');
  if (pid === 0) {{
    if ({reseed}) unique.reseed();
    const print = (name, value) => fs.writeSync(1, `${{name}} ${{value}}\\n`);
    print('math', Math.random());
    print('bytes', crypto.randomBytes(16).toString('hex'));
    print('uuid', crypto.randomUUID());
    print('webuuid', globalThis.crypto.randomUUID());
    print('webbytes', globalThis.crypto.getRandomValues(new Uint32Array(4)).join());
    print('int', crypto.randomInt(2 ** 47));
    clone.exit();
  }}
}}
fs.writeSync(1, 'parent\\n');
clone.wait();
process.reallyExit(0);
",
        unique = runtime_dir().join("nodejs/unique.cjs"),
    );
    run("/usr/bin/node", &[], &script)
}

#[test]
fn node_generators() {
    let addon = clone_addon();
    let names = ["math", "bytes", "uuid", "webuuid", "webbytes", "int"];
    assert_distinct(&node(&addon, true), &names, CLONES);
    assert_distinct(
        &node(&addon, false),
        &["math", "bytes", "uuid", "webuuid", "webbytes"],
        1,
    );
    std::fs::remove_file(addon).unwrap();
}

#[test]
fn math_random_is_uniform_and_random_int_keeps_its_contract() {
    let script = format!(
        "require({unique:?});
const crypto = require('crypto'), assert = require('assert');
const counts = new Array(16).fill(0);
for (let i = 0; i < 160000; i++) {{
  const value = Math.random();
  assert(value >= 0 && value < 1);
  counts[Math.floor(value * 16)]++;
}}
// Ten standard deviations around the expected 10000.
for (const count of counts) assert(Math.abs(count - 10000) < 970, counts);
for (let i = 0; i < 1000; i++) {{
  const value = crypto.randomInt(-3, 4);
  assert(Number.isInteger(value) && value >= -3 && value < 4);
}}
assert.throws(() => crypto.randomInt(0), {{ code: 'ERR_OUT_OF_RANGE' }});
assert.throws(() => crypto.randomInt('1'), {{ code: 'ERR_INVALID_ARG_TYPE' }});
assert.throws(() => crypto.randomInt(0, 2 ** 49), {{ code: 'ERR_OUT_OF_RANGE' }});
assert.throws(() => crypto.randomUUID(1), {{ code: 'ERR_INVALID_ARG_TYPE' }});
assert.match(crypto.randomUUID(), /^[0-9a-f]{{8}}-[0-9a-f]{{4}}-4[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}$/);
crypto.randomInt(5, (error, value) => {{ assert(error === null && value < 5); console.log('called'); }});
import('node:crypto').then(({{ randomInt }}) => assert.strictEqual(randomInt, crypto.randomInt));
",
        unique = runtime_dir().join("nodejs/unique.cjs"),
    );
    assert_eq!(run("/usr/bin/node", &[], &script), ["called"]);
}
