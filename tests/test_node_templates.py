"""Node functions are made of a running interpreter, too: they share its memory, and nothing else tells them from a cold start."""

import json
import time

import pytest

from harness.node import PATHS, wait_until
from harness.tiers import tiers

RUNTIME = {"runtime": "nodejs", "handler": "app.handler"}

# What functions do at init and in a call; what each call must answer.
SOURCES = {
    "plain": ("", "'plain'", "plain"),
    "http": ("const http = require('http'); const agent = new http.Agent({ keepAlive: true });", "agent.keepAlive", True),
    "crypto": (
        "const { createHash } = require('node:crypto');",
        "createHash('sha256').update('m').digest('hex').slice(0, 8)",
        "62c66a7a",
    ),
    "zlib": ("const zlib = require('zlib'); const packed = zlib.gzipSync('x'.repeat(1000));", "zlib.gunzipSync(packed).length", 1000),
    "classes": ("".join(f"class C{i} {{ m() {{ return {i}; }} }}\n" for i in range(60)), "new C5().m()", 5),
    "table": ("const table = new Map(Array.from({ length: 5000 }, (_, i) => [i, String(i).repeat(3)]));", "table.get(77)", "777777"),
    "regex": ("const all = Array.from({ length: 20 }, (_, i) => new RegExp(`a${i}(b+)c?`));", "all[7].test('a7bb')", True),
    "wasm": (
        "const add = new WebAssembly.Instance(new WebAssembly.Module(Buffer.from('0061736d0100000001070160027f7f017f030201000707010361"
        "646400000a09010700200020016a0b', 'hex'))).exports.add;",
        "add(2, 3)",
        5,
    ),
    "timers": ("const { setTimeout: sleep } = require('timers/promises');", "await sleep(1, 'slept')", "slept"),
    "child": (
        "const { execFileSync } = require('child_process');",
        "execFileSync('/bin/echo', [process.env.KEY]).toString().trim()",
        "child \u00fc",
    ),
}
# What every function answers besides: what it could tell a template by, and what must be unique.
COMMON = """
const { randomUUID, randomBytes, randomInt } = require('node:crypto');
const v8 = require('node:v8');
const drawn = () => [Math.random(), randomUUID(), randomBytes(8).toString('hex'), randomInt(2 ** 47)].map(String);
const atInit = drawn();
const environment = Object.entries(process.env);
const cached = Object.keys(require.cache).sort();
exports.handler = async (event, context) => ({
  work: WORK,
  environment,
  argv: process.argv,
  execArgv: process.execArgv,
  cached,
  children: require.main.children.map((child) => child.filename).sort(),
  globals: Object.getOwnPropertyNames(globalThis).sort(),
  heap: v8.getHeapStatistics().heap_size_limit,
  cwd: process.cwd(),
  handles: process.getActiveResourcesInfo().sort(),
  name: context.functionName,
  atInit,
  drawn: drawn(),
});
"""


def package(init, work, file="app.js"):
    return {file: init + COMMON.replace("WORK", work)}


def create(node, name, called=None, **settings):
    init, work, _ = SOURCES[name]
    variables = {"Variables": {"KEY": f"{name} \u00fc"}}
    return node.create(package(init, work), name=called or name, **RUNTIME, Environment=variables, **settings)[0]


@pytest.fixture(scope="module")
def node_settings():
    return {"language_templates": "true"}


@pytest.fixture(scope="module")
def functions(node):
    created = {name: create(node, name) for name in SOURCES}
    for function in created.values():
        function.wait_active()
        function.ready()
    return created


def test_they_are_made_of_one_template_and_work(functions):
    parents = {name: function.parent() for name, function in functions.items()}
    assert all(found and found["pages"] > 0 for found in parents.values()), parents
    assert len({found["template"] for found in parents.values()}) == 1
    assert all(found["template"].startswith("nodejs-") for found in parents.values())
    for name, function in functions.items():
        for path in ("restore", "fork"):
            assert function.call({}, path)["work"] == SOURCES[name][2], (name, path)


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_tells_them_from_a_cold_start(functions, name):
    made, cold = functions[name].call({}, "fork"), functions[name].call({}, "cold")
    environments = [dict(answer.pop("environment")) for answer in (made, cold)]
    assert environments[0]["KEY"] == f"{name} \u00fc"
    assert "ROUSE_TEMPLATE" not in environments[0]
    types = [environment.pop("AWS_LAMBDA_INITIALIZATION_TYPE") for environment in environments]
    assert types == ["snap-start", "on-demand"]
    for environment in environments:
        environment.pop("_X_AMZN_TRACE_ID", None)
    assert list(environments[0].items()) == list(environments[1].items())
    for answer in (made, cold):
        del answer["atInit"], answer["drawn"]
    assert made == cold


def test_randomness_is_unique_across_functions_and_instances(functions):
    answers = [function.call({}, path) for function in functions.values() for path in ("restore", "fork")]
    for drawn in zip(*(answer["drawn"] for answer in answers), strict=True):
        assert len(set(drawn)) == len(answers), drawn
    # Drawn by init, so the same in the instances of a function.
    for drawn in zip(*(answer["atInit"] for answer in answers), strict=True):
        assert len(set(drawn)) == len(functions), drawn


def test_deltas_are_small(own_node):
    """What a function takes beside its template, against what it takes alone."""
    node = own_node(language_templates="true")
    # Whether a page is stored beside the template's depends on what decoding costs on this host at this moment: it is cheap.
    wait_until(lambda: tiers(node)["measured"], "costs are known")
    node.stop()
    costs = json.loads((node.state / "costs.json").read_text())
    for codec in costs["inputs"]["codecs"]:
        codec["decode_ns"] = 1000.0
    (node.state / "costs.json").write_text(json.dumps({**costs, "times": 1000}))
    node.start()
    init, work, _ = SOURCES["http"]
    variables = {"Variables": {"TZ": "Europe/Berlin"}}
    alone = node.create(package(init, work), name="alone", **RUNTIME, Environment=variables)[0].ready().describe()["snapshot"]
    assert "parent" not in alone
    made = create(node, "http").ready().describe()["snapshot"]
    print(f"delta: {made['saved_pages']} pages, {made['bytes']} bytes; alone: {alone['saved_pages']}, {alone['bytes']}")
    assert made["bytes"] < alone["bytes"] / 4
    assert made["saved_pages"] < alone["saved_pages"]


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"], ids=["made", "alone"])
def test_copies_of_an_old_snapshot_collect_no_garbage(node, zone):
    """V8 looks for garbage when a process has been idle for 8 seconds: a snapshot has, and each of its copies would."""
    source = """
    const { PerformanceObserver, constants } = require('perf_hooks');
    const collections = [];
    const isMajor = (one) => one.detail.kind === constants.NODE_PERFORMANCE_GC_MAJOR;
    new PerformanceObserver((list) => { collections.push(...list.getEntries().filter(isMajor)); }).observe({ entryTypes: ['gc'] });
    const data = Array.from({ length: LENGTH }, (_, i) => ({ i }));
    let restored = Infinity;
    require('rouse-snapshot').registerAfterRestore(() => { restored = performance.now(); });
    exports.handler = async () => {
      await new Promise((resolve) => setTimeout(resolve, 300));
      return [data.length, collections.length > 0, collections.filter((one) => one.startTime >= restored).length];
    };
    """
    variables = {"Variables": {"TZ": zone}} if zone else {}
    # A small heap, and a large one that has been collected.
    sources = {length: {"app.js": source.replace("LENGTH", str(length))} for length in (10, 400_000)}
    functions = {length: node.create(source, **RUNTIME, Environment=variables)[0] for length, source in sources.items()}
    for function in functions.values():
        assert (function.ready().parent() is None) == (zone is not None)
    time.sleep(9)
    for length, function in functions.items():
        for path in ("restore", "fork"):
            assert function.call({}, path) == [length, True, 0], path


def test_es_modules(node):
    source = COMMON.replace("WORK", "'module'").replace("exports.handler =", "export const handler =")
    source = "import { createRequire } from 'node:module';\nconst require = createRequire(import.meta.url);\n" + source
    function = node.create({"app.mjs": source}, name="module", **RUNTIME)[0].ready()
    assert function.parent()
    for path in PATHS:
        assert function.call({}, path)["work"] == "module"


def test_v8_has_the_heap_of_a_cold_start(node, functions):
    """V8 sizes its heap when it starts: there is a template for each size."""
    small, large = functions["plain"], create(node, "table", called="large", MemorySize=1024).ready()
    assert large.parent()["template"] != small.parent()["template"]
    for function in (small, large):
        assert function.call({}, "fork")["heap"] == function.call({}, "cold")["heap"]


@pytest.mark.parametrize("variables", [{"NODE_OPTIONS": "--no-deprecation"}, {"UV_THREADPOOL_SIZE": "2"}, {"TZ": "Asia/Tokyo"}])
def test_what_the_interpreter_reads_at_its_start_means_a_cold_start(node, variables):
    source = "exports.handler = async () => process.env[%s];" % json.dumps(next(iter(variables)))
    function = node.create({"app.js": source}, **RUNTIME, Environment={"Variables": variables})[0].ready()
    assert function.parent() is None
    assert [function.call({}, path) for path in PATHS] == [next(iter(variables.values()))] * 3


def test_libraries_where_the_linker_looks_mean_a_cold_start(node):
    package = {"app.js": "exports.handler = async () => 1;", "lib/libmine.so.1": "no library"}
    function = node.create(package, **RUNTIME)[0].ready()
    assert function.parent() is None
    assert function.call({}, "restore") == 1


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("throw new TypeError('at init')", "at init"),
        ("require('no-such-module')", "Runtime.ImportModuleError"),
        ("exports.handler = (", "Runtime.UserCodeSyntaxError"),
        ("process.exit(3)", "exit status 3"),
        ("exports.other = 1", "Runtime.HandlerNotFound"),
    ],
)
def test_init_fails_as_after_a_cold_start(node, source, text):
    reasons = []
    for variables in ({}, {"TZ": "Asia/Tokyo"}):
        function = node.create({"app.js": source}, **RUNTIME, Environment={"Variables": variables})[0]
        snapshot = function.snapshot()
        assert snapshot["state"] == "failed", snapshot
        reasons.append(snapshot["reason"])
        assert text in snapshot["reason"], snapshot
    assert reasons[0] == reasons[1]


def test_hooks_run(node):
    source = """
    const { registerBeforeSnapshot, registerAfterRestore } = require('rouse-snapshot');
    const seen = [];
    registerBeforeSnapshot(() => { seen.push('before'); });
    registerAfterRestore(() => { seen.push('after'); });
    exports.handler = async () => seen;
    """
    function = node.create({"app.js": source}, **RUNTIME)[0].ready()
    assert function.parent()
    for path in ("restore", "fork"):
        assert function.call({}, path) == ["before", "after"]
