"""The runtimes end to end: Python, Node, provided, and the official Python client."""

import os
from pathlib import Path

import pytest

from harness.node import PATHS
from harness.package import EXAMPLES, folder, python


def test_environment_is_lambdas(node):
    function = node.deploy(
        python(
            """
            import os, sys
            def handler(event, context):
                return dict(os.environ), sys.path[0], os.getcwd(), os.getuid(), __file__
            """
        ),
        Environment={"Variables": {"MINE": "value", "EMPTY": "", "TEXT": "a=b \u00e9"}},
        MemorySize=256,
    ).ready()
    for path in PATHS:
        environment, first, cwd, uid, file = function.call({}, path)
        assert environment["MINE"] == "value" and environment["EMPTY"] == "" and environment["TEXT"] == "a=b \u00e9"
        assert environment["AWS_LAMBDA_FUNCTION_NAME"] == function.name
        assert environment["AWS_LAMBDA_FUNCTION_VERSION"] == "$LATEST"
        assert environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
        assert environment["LAMBDA_TASK_ROOT"] == "/var/task" and environment["LAMBDA_RUNTIME_DIR"] == "/var/runtime"
        assert environment["_HANDLER"] == "app.handler" and environment["AWS_REGION"] == "us-east-1"
        assert environment["TZ"] == ":UTC"
        assert first == "/var/task" and cwd == "/var/task" and file == "/var/task/app.py"
        assert uid != 0


def test_sandbox_is_closed(node):
    function = node.deploy(
        python(
            """
            import os, socket
            def refused(action):
                try:
                    action()
                except OSError as error:
                    return error.strerror
                return 'allowed'
            def handler(event, context):
                return {
                    'task': refused(lambda: open('/var/task/new', 'w')),
                    'usr': refused(lambda: open('/usr/new', 'w')),
                    'shadow': refused(lambda: open('/etc/shadow')),
                    'root': refused(lambda: os.setuid(0)),
                    'network': refused(lambda: socket.create_connection(('192.0.2.1', 80), 5)),
                    'tmp': refused(lambda: open('/tmp/new', 'w')),
                    'pids': sorted(int(name) for name in os.listdir('/proc') if name.isdigit()),
                    'interfaces': [name for _, name in socket.if_nameindex()],
                    'hostname': socket.gethostname(),
                }
            """
        )
    ).ready()
    for path in PATHS:
        seen = function.call({}, path)
        assert seen["task"] == seen["usr"] == "Read-only file system", seen
        assert seen["shadow"] != "allowed" and seen["root"] == "Operation not permitted", seen
        assert seen["network"] == "Network is unreachable" and seen["tmp"] == "allowed", seen
        assert seen["pids"] == [1, 2] and seen["interfaces"] == ["lo"], seen


def test_each_invocation_has_a_sandbox_of_its_own(node):
    function = node.deploy(
        python(
            """
            import os
            calls = 0
            def handler(event, context):
                global calls
                calls += 1
                found = os.listdir('/tmp')
                open(f'/tmp/call-{event}', 'w').close()
                return calls, found
            """
        )
    ).ready()
    for number, path in enumerate(("restore", "fork") * 3):
        assert function.call(number, path) == [1, []]


def test_hooks_run_once_in_each_instance(node):
    function = node.deploy(
        python(
            """
            from snapshot_restore_py import register_before_snapshot, register_after_restore
            calls = []
            @register_before_snapshot
            def before(): calls.append('before')
            @register_after_restore
            def after(): calls.append('after')
            def handler(event, context): return calls
            """
        )
    ).ready()
    # As in Lambda, an instance that is started from nothing has no snapshot around which hooks could run.
    for path, calls in (("cold", []), ("restore", ["before", "after"]), ("fork", ["before", "after"])):
        assert function.call({}, path) == calls
    assert function.snapshot()["point"] == "restore/next"


def test_hook_that_fails_before_the_snapshot(node):
    function, _ = node.create(
        python(
            """
            import os
            from snapshot_restore_py import register_before_snapshot
            @register_before_snapshot
            def before(): raise ValueError('not now')
            def handler(event, context): return 'served'
            """
        )
    )
    function.wait_active()
    snapshot = function.snapshot()
    assert snapshot["state"] == "failed" and "not now" in snapshot["reason"], snapshot


def test_hook_that_fails_after_the_restore(node):
    function, _ = node.create(
        python(
            """
            from snapshot_restore_py import register_after_restore
            @register_after_restore
            def after(): raise ValueError('never again')
            def handler(event, context): return 'served'
            """
        )
    )
    function.wait_active()
    snapshot = function.snapshot()
    assert snapshot["state"] == "failed" and "never again" in snapshot["reason"], snapshot


def test_numpy_and_pillow(node, numpy_package):
    function = node.deploy({**numpy_package, **folder(EXAMPLES / "numpy-python")}).ready()
    expected = function.call({"side": 32}, "cold")
    assert expected["side"] == 32 and expected["brightest"] == [31, 31], expected
    for path in ("restore", "fork") * 2:
        assert function.call({"side": 32}, path) == expected


def test_heavy_python(node):
    function = node.deploy(folder(EXAMPLES / "heavy-python")).ready()
    answers = [function.call({"values": [7, 8, 9]}, path) for path in PATHS]
    assert answers[0]["squares"] == [49, 64, 81] and answers[0] == answers[1] == answers[2]


# --- Node ---


@pytest.mark.parametrize(
    "files",
    [
        {"index.js": "exports.handler = async (event, context) => ({ event, id: context.awsRequestId });"},
        {"index.mjs": "export const handler = async (event, context) => ({ event, id: context.awsRequestId });"},
        {"index.js": "exports.handler = (event, context, callback) => callback(null, { event, id: context.awsRequestId });"},
    ],
    ids=["commonjs", "module", "callback"],
)
def test_node_handlers(node, files):
    function = node.deploy(files, "nodejs", "index.handler").ready()
    for path in PATHS:
        seen = function.call({"text": "\u00e9"}, path)
        assert seen["event"] == {"text": "\u00e9"} and seen["id"]


def test_node_state_survives(node):
    code = """
const { registerBeforeSnapshot, registerAfterRestore } = require('rouse-snapshot');
const crypto = require('node:crypto'), fs = require('node:fs'), net = require('node:net');
const { Worker } = require('node:worker_threads');
const { execFileSync } = require('node:child_process');
const calls = [];
registerBeforeSnapshot(async () => { calls.push('before'); });
registerAfterRestore(async () => { calls.push('after'); });
let ticks = 0;
setInterval(() => ticks++, 5).unref();
fs.writeFileSync('/tmp/file', 'content');
const opened = fs.openSync('/tmp/file');
const squares = (n) => { let sum = 0; for (let i = 0; i < n; i++) sum += i * i; return sum; };
for (let i = 0; i < 2000; i++) squares(1000);
const wasm = new WebAssembly.Instance(new WebAssembly.Module(Uint8Array.from([
  0,97,115,109,1,0,0,0,1,7,1,96,2,127,127,1,127,3,2,1,0,7,7,1,3,97,100,100,0,0,10,9,1,7,0,32,0,32,1,106,11])));
const server = net.createServer((socket) => socket.pipe(socket)).listen(0, '127.0.0.1').unref();
exports.handler = async () => {
  const before = ticks;
  while (ticks === before) await new Promise((resolve) => setTimeout(resolve, 1));
  const echoed = await new Promise((resolve, reject) => {
    const socket = net.connect(server.address().port, '127.0.0.1', () => socket.write('echo'));
    socket.on('data', (data) => { resolve(String(data)); socket.destroy(); }).on('error', reject);
  });
  const hashed = await new Promise((resolve) => crypto.pbkdf2('a', 'b', 10, 16, 'sha256', (e, key) => resolve(key.toString('hex'))));
  const worker = await new Promise((resolve, reject) => new Worker(
    "require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true }).on('message', resolve).on('error', reject));
  return { calls, echoed, hashed, worker, file: String(fs.readFileSync(opened)), sum: squares(1000),
    wasm: wasm.exports.add(40, 2), child: String(execFileSync('echo', ['out'])), read: (await fs.promises.readFile('/tmp/file', 'utf8')) };
};
"""
    function = node.deploy({"index.js": code}, "nodejs", "index.handler").ready()
    answers = [function.call({}, path) for path in PATHS]
    assert [answer.pop("calls") for answer in answers] == [[], ["before", "after"], ["before", "after"]]
    assert answers[0]["wasm"] == 42 and answers[0]["worker"] == 42
    assert answers[0]["echoed"] == "echo" and answers[0]["read"] == "content" and answers[0]["child"] == "out\n"
    assert answers[0] == answers[1] == answers[2]


def test_node_errors(node):
    function = node.deploy(
        {
            "index.js": """
exports.handler = async (event) => {
  if (event === 'throw') throw new RangeError('too far');
  if (event === 'late') setTimeout(() => { throw new TypeError('late'); }, 1);
  await new Promise((resolve) => setTimeout(resolve, 1e6));
};
"""
        },
        "nodejs",
        "index.handler",
    ).ready()
    for path in PATHS:
        error = function.failure("throw", path)
        assert error["errorType"] == "RangeError" and error["errorMessage"] == "too far" and error["trace"]
        error = function.failure("late", path)
        assert error["errorType"] == "TypeError" and error["errorMessage"] == "late"


# --- provided ---


@pytest.fixture(scope="session")
def rust_bootstrap():
    path = os.environ.get("ROUSE_RUST_EXAMPLE")
    if not path:
        pytest.skip("ROUSE_RUST_EXAMPLE does not say where the Rust example is")
    return Path(path).read_bytes()


def test_rust_function(node, rust_bootstrap):
    function = node.deploy({"bootstrap": (rust_bootstrap, 0o755)}, "provided.al2023", "bootstrap").ready()
    assert function.snapshot()["point"] == "restore/next"
    tokens = set()
    for path in ("cold", "restore", "fork", "restore", "fork"):
        seen = function.call({"name": "Rust"}, path)
        assert seen["message"] == "Hello, Rust!"
        tokens.add(seen["token"])
    assert len(tokens) == 5


SHELL = """#!/bin/sh
# A runtime that knows nothing of SnapStart.
while :; do
  event=$(curl -sS -D /tmp/headers "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next")
  id=$(tr -d '\\r' < /tmp/headers | sed -n 's/^[Ll]ambda-[Rr]untime-[Aa]ws-[Rr]equest-[Ii]d: *//p')
  curl -sS -o /dev/null -d "$event" "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"
done
"""


def test_bootstrap_whose_client_is_a_child(node):
    """The parked request is that of another process, which cannot be snapshotted: the function works all the same."""
    function = node.deploy({"bootstrap": (SHELL, 0o755)}, "provided", "bootstrap")
    assert function.snapshot()["state"] == "failed"
    assert function.call({"a": [1]}) == {"a": [1]}


BARE = """#!/usr/bin/python3
import http.client, os
assert os.environ['_HANDLER'] == 'any.thing'
connection = http.client.HTTPConnection(os.environ['AWS_LAMBDA_RUNTIME_API'])
while True:
    connection.request('GET', '/2018-06-01/runtime/invocation/next')
    reply = connection.getresponse()
    body = reply.read()
    connection.request('POST', '/2018-06-01/runtime/invocation/%s/response' % reply.headers['Lambda-Runtime-Aws-Request-Id'], body)
    connection.getresponse().read()
"""


def test_bootstrap_without_restore_next(node):
    """The snapshot point is the first parked `invocation/next`, whose client never sees a lost connection."""
    function = node.deploy({"bootstrap": (BARE, 0o755)}, "provided.al2", "any.thing").ready()
    assert function.snapshot()["point"] == "invocation/next"
    for path in (*PATHS, "restore", "fork"):
        assert function.call({"a": [1]}, path) == {"a": [1]}


# --- the official Python client ---


def test_awslambdaric(node, ric_package):
    function = node.deploy(
        {
            **ric_package,
            **python(
                """
                import random, ssl, sys
                from snapshot_restore_py import register_after_restore
                random.random(), ssl.RAND_bytes(4)
                calls = []
                register_after_restore(calls.append, 'after')
                def handler(event, context):
                    if event == 'fail':
                        raise KeyError('x')
                    return {
                        'boot': event,
                        'client': 'awslambdaric.bootstrap' in sys.modules,
                        'calls': calls,
                        'id': context.aws_request_id,
                        'arn': context.invoked_function_arn,
                        'unique': [random.random(), ssl.RAND_bytes(8).hex()],
                    }
                """
            ),
        }
    ).ready()
    assert function.snapshot()["point"] == "restore/next"
    seen = [function.call(path, path) for path in ("cold", "restore", "fork", "restore", "fork")]
    for one in seen:
        assert one["client"] and one["id"], one
        assert one["calls"] == ([] if one["boot"] == "cold" else ["after"]), one
        assert one["arn"].endswith(f":function:{function.name}"), one
    for index in range(2):
        assert len({one["unique"][index] for one in seen}) == len(seen), seen
    for path in PATHS:
        error = function.failure("fail", path)
        assert error["errorType"] == "KeyError" and error["requestId"], error


def test_awslambdaric_init_error(node, ric_package):
    function, _ = node.create({**ric_package, "app.py": "import missing_thing"})
    function.wait_active()
    error = function.failure()
    assert error["errorType"] == "Runtime.ImportModuleError", error
    assert "No module named 'missing_thing'" in error["errorMessage"], error
