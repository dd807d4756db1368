"""Functions are made of a running interpreter: they share its memory, and nothing else tells them from a cold start."""

import os
import shutil

import pytest

from harness.node import PATHS, wait_until
from harness.package import python

# Twenty functions that import and keep different things.
SOURCES = {
    "plain": "def work(event): return 'plain'",
    "json": "import json\nTEXT = json.dumps({'a': [1, 2, 3]})\ndef work(event): return json.loads(TEXT)['a'][2]",
    "random": "import random\nFIRST = random.random()\ndef work(event): return 0 < FIRST < 1",
    "logging": "import logging\nlogging.getLogger().setLevel('INFO')\ndef work(event):\n    logging.info('logged')\n    return 'logged'",
    "ssl": "import ssl, urllib.request\nCONTEXT = ssl.create_default_context()\ndef work(event): return CONTEXT.check_hostname",
    "asyncio": "import asyncio\nasync def answer(): return 42\ndef work(event): return asyncio.run(answer())",
    "dataclass": "import dataclasses\n@dataclasses.dataclass\nclass Point:\n    x: int = 1\ndef work(event): return str(Point())",
    "decimal": "from decimal import Decimal\nSUM = sum(Decimal(i) / 8 for i in range(8))\ndef work(event): return str(SUM)",
    "threads": "import concurrent.futures\ndef work(event):\n    with concurrent.futures.ThreadPoolExecutor(2) as pool:\n"
    "        return list(pool.map(abs, [-1, -2]))",
    "regex": "import re\nALL = [re.compile('a%d(b+)c?' % i) for i in range(20)]\ndef work(event): return bool(ALL[7].match('a7bb'))",
    "hash": "import hashlib, hmac\ndef work(event): return hmac.new(b'k', b'm', hashlib.sha256).hexdigest()[:8]",
    "csv": "import csv, io\nROWS = list(csv.reader(io.StringIO('a,b\\n1,2\\n' * 200)))\ndef work(event): return len(ROWS)",
    "uuid": "import uuid\ndef work(event): return len(str(uuid.uuid1()))",
    "datetime": "import datetime\nSTART = datetime.datetime.now()\ndef work(event): return START.year >= 2020",
    "files": "import pathlib, tempfile\ndef work(event):\n    with tempfile.TemporaryDirectory() as folder:\n"
    "        (pathlib.Path(folder) / 'x').write_text('y')\n        return (pathlib.Path(folder) / 'x').read_text()",
    "table": "TABLE = {i: str(i) * 3 for i in range(5000)}\ndef work(event): return TABLE[77]",
    "classes": "\n".join(f"class C{i}:\n    def m(self): return {i}" for i in range(60)) + "\ndef work(event): return C5().m()",
    "xml": "import xml.etree.ElementTree as tree\nROOT = tree.fromstring('<a><b/><b/></a>')\ndef work(event): return len(ROOT)",
    "zip": "import gzip\ndef work(event): return len(gzip.decompress(gzip.compress(b'x' * 1000)))",
    "mail": "import email.message\ndef work(event):\n    mail = email.message.EmailMessage()\n    mail['To'] = 'a@b'\n    return str(mail['To'])",
}
ANSWERS = {
    "plain": "plain", "json": 3, "random": True, "logging": "logged", "ssl": True, "asyncio": 42, "dataclass": "Point(x=1)",
    "decimal": "3.500", "threads": [1, 2], "regex": True, "hash": "b60090e3", "csv": 400, "uuid": 36, "datetime": True, "files": "y",
    "table": "777777", "classes": 5, "xml": 2, "zip": 1000, "mail": "a@b",
}  # fmt: skip
# What every function answers besides: what it could tell a template by, and what must be unique.
COMMON = """
import os, sys
AT_INIT = sorted(sys.modules)
IDS = [os.urandom(8).hex()]

def handler(event, context):
    import random, uuid
    unique = [random.random(), str(uuid.uuid4()), str(uuid.uuid1()), os.urandom(8).hex()]
    return {
        "work": work(event),
        "environ": dict(os.environ),
        "argv": sys.argv,
        "path": sys.path,
        "modules": AT_INIT,
        "name": context.function_name,
        "unique": [str(value) for value in unique],
        "ids": IDS,
        "hash": hash("text"),
    }
"""
# Loaded by both, at different times.
OURS = {"_rouse_template", "_rouse_unique", "_rouse_logging", "gc", "builtins", "encodings.utf_8_sig"}


@pytest.fixture(scope="module")
def node_settings():
    return {"language_templates": "true"}


@pytest.fixture
def own_node(own_node):
    """With templates, which are off by default."""
    return lambda **settings: own_node(**{"language_templates": "true", **settings})


@pytest.fixture(scope="module")
def functions(node):
    created = {
        name: node.create(python(source + COMMON), name=name, Environment={"Variables": {"KEY": f"{name} \u00fc"}})[0]
        for name, source in SOURCES.items()
    }
    for function in created.values():
        function.wait_active()
        function.ready()
    return created


def test_they_are_made_of_one_template_and_work(functions):
    parents = {name: function.parent() for name, function in functions.items()}
    assert all(found and found["pages"] > 0 for found in parents.values()), parents
    assert len({found["template"] for found in parents.values()}) == 1
    for name, function in functions.items():
        for path in ("restore", "fork"):
            assert function.call({}, path)["work"] == ANSWERS[name], (name, path)


@pytest.mark.parametrize("name", ["plain", "logging", "uuid", "ssl", "asyncio"])
def test_nothing_tells_them_from_a_cold_start(functions, name):
    made, cold = functions[name].call({}, "fork"), functions[name].call({}, "cold")
    assert made["environ"].pop("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"
    assert cold["environ"].pop("AWS_LAMBDA_INITIALIZATION_TYPE") == "on-demand"
    for environ in (made["environ"], cold["environ"]):
        environ.pop("_X_AMZN_TRACE_ID", None)
    assert made["environ"]["KEY"] == f"{name} \u00fc"
    assert "ROUSE_TEMPLATE" not in made["environ"]
    assert made["environ"] == cold["environ"]
    for member in ("work", "argv", "path", "name"):
        assert made[member] == cold[member], member
    assert set(cold["modules"]) - set(made["modules"]) <= OURS
    assert set(made["modules"]) - set(cold["modules"]) <= OURS


def test_randomness_is_unique_across_functions_and_instances(functions):
    answers = [
        function.call({}, path) for function in functions.values() for path in ("restore", "fork", "restore", "fork")
    ]
    for drawn in zip(*(answer["unique"] for answer in answers), strict=True):
        assert len(set(drawn)) == len(answers), drawn
    # Drawn by init, so the same in the instances of a function.
    assert len({answer["ids"][0] for answer in answers}) == len(functions)


def test_random_state_of_init_is_not_the_templates(node):
    source = "import random\nFIRST = random.random()\ndef handler(event, context): return FIRST"
    drawn = [node.deploy(python(source)).ready().call({}, "restore") for _ in range(3)]
    assert len(set(drawn)) == 3


def test_deltas_are_small(functions, node):
    """Twenty functions in a node with templates, against the same in a node without."""
    shared = {name: function.describe()["snapshot"] for name, function in functions.items()}
    whole = node.deploy(python(SOURCES["json"] + COMMON), Environment={"Variables": {"PYTHONHASHSEED": "random"}})
    whole = whole.ready().describe()["snapshot"]
    assert "parent" not in whole
    delta = shared["json"]
    print(f"delta: {delta['saved_pages']} pages, {delta['bytes']} bytes; whole: {whole['saved_pages']}, {whole['bytes']}")
    assert delta["bytes"] < whole["bytes"]
    assert delta["saved_pages"] < whole["saved_pages"]


@pytest.mark.parametrize(
    "variables", [{"PYTHONHASHSEED": "7"}, {"LANG": "C"}, {"TZ": "Europe/Berlin"}, {"MALLOC_ARENA_MAX": "1"}]
)
def test_what_the_interpreter_reads_at_its_start_means_a_cold_start(node, variables):
    source = "import os\ndef handler(event, context): return [os.environ.get(%r), hash('text')]" % next(iter(variables))
    function = node.deploy(python(source), Environment={"Variables": variables}).ready()
    assert function.parent() is None
    name, value = next(iter(variables.items()))
    answers = [function.call({}, path) for path in PATHS]
    assert [answer[0] for answer in answers] == [value] * 3
    if name == "PYTHONHASHSEED":
        assert len({answer[1] for answer in answers}) == 1


@pytest.mark.parametrize("file", ["queue.py", "site-packages/json/__init__.py", "python/typing.py", "lib/libz.so.1"])
def test_a_package_that_would_change_the_start_starts_from_nothing(node, file):
    package = python("import sys\ndef handler(event, context): return 'argv' in dir(sys) and len(sys.argv)")
    package[file] = "MINE = True\n"
    function = node.deploy(package)
    # The library is no library: a start from nothing fails where the linker finds it.
    if file.startswith("lib/"):
        assert function.parent() is None
        return
    function.ready()
    assert function.parent() is None
    for path in PATHS:
        assert function.call({}, path) == 1


def test_the_package_wins_over_what_was_loaded_ahead(node):
    package = python("import queue, asyncio\ndef handler(event, context): return [queue.MINE, hasattr(asyncio, 'run')]")
    package["queue.py"] = "MINE = True\nclass Empty(Exception): pass\nclass Full(Exception): pass\nQueue = LifoQueue = object\n"
    function = node.deploy(package).ready()
    assert [function.call({}, path) for path in PATHS] == [[True, True]] * 3


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("raise ValueError('at init')", "at init"),
        ("import no_such_module", "Runtime.ImportModuleError"),
        ("def handler(", "Runtime.UserCodeSyntaxError"),
        ("import os; os._exit(3)", "exit status 3"),
        ("other = 1", "Runtime.HandlerNotFound"),
    ],
)
def test_init_fails_as_after_a_cold_start(node, source, text):
    reasons = []
    for variables in ({}, {"PYTHONHASHSEED": "random"}):
        function = node.deploy(python(source), Environment={"Variables": variables})
        snapshot = function.snapshot()
        assert snapshot["state"] == "failed", snapshot
        reasons.append(snapshot["reason"])
        assert text in snapshot["reason"], snapshot
    assert reasons[0] == reasons[1]


def test_functions_share_what_all_of_them_write(own_node):
    """Without their template's specimen, functions have the same pages once more each."""
    node = own_node()
    source = python("import csv\nTABLE = {i: str(i) for i in range(1000)}\ndef handler(event, context): return TABLE[event['n']]")
    first = node.deploy(source, name="first").ready()
    assert first.call({"n": 7}, "restore") == first.call({"n": 7}, "fork") == "7"
    pages = first.describe()["snapshot"]["saved_pages"]
    node.stop()
    shutil.rmtree(template_folders(node)[1])
    node.start()
    first.ready()
    # It relied on pages that are gone, so it was made anew; and with it what it shares.
    assert "delta" in first.describe()["snapshot"]["reason"]
    assert first.describe()["snapshot"]["saved_pages"] <= pages * 1.5
    assert first.call({"n": 8}, "restore") == first.call({"n": 8}, "fork") == "8"
    whole = [path.name for path in template_folders(node)]
    assert len(whole) == 2, whole


def test_libraries_of_the_template_log_nothing_and_hooks_run(node):
    source = """
    import os
    from snapshot_restore_py import register_after_restore, register_before_snapshot
    SEEN = []
    register_before_snapshot(lambda: SEEN.append("before"))
    register_after_restore(lambda: SEEN.append("after"))
    print("init", os.environ["AWS_LAMBDA_FUNCTION_NAME"])
    def handler(event, context): return SEEN
    """
    function = node.deploy(python(source), name="hooks").ready()
    assert function.parent()
    for path in ("restore", "fork"):
        assert function.call({}, path) == ["before", "after"]
    assert function.logs().count("init hooks") == 1


def template_folders(node):
    return sorted((node.state / "snapshots" / "@templates").glob("*"))


def test_templates_survive_a_restart_and_are_made_anew_when_gone(own_node):
    node = own_node()
    function = node.deploy(python("def handler(event, context): return 1")).ready()
    before = function.parent()
    # With what all its functions have in common.
    kept = [before["template"], before["template"] + "-specimen"]
    assert [path.name for path in template_folders(node)] == kept
    taken = function.describe()["snapshot"]["taken_at"]
    node.stop()
    node.start()
    function.ready()
    assert function.parent() == before
    assert function.describe()["snapshot"]["taken_at"] == taken
    assert function.call({}, "restore") == function.call({}, "fork") == 1
    node.stop()
    shutil.rmtree(template_folders(node)[0])
    node.start()
    function.ready()
    found = function.describe()["snapshot"]
    assert "delta" in found["reason"], found
    assert found["parent"]["template"] == before["template"]
    assert found["taken_at"] != taken
    names = lambda: [path.name for path in template_folders(node)]  # noqa: E731
    wait_until(lambda: names() == kept, lambda: f"both are there: {names()}")
    assert function.call({}, "restore") == function.call({}, "fork") == 1


def test_templates_can_be_switched_off(own_node):
    node = own_node()
    function = node.deploy(python("def handler(event, context): return 1")).ready()
    assert function.parent()
    node.stop()
    node.settings["language_templates"] = "false"
    node.start()
    wait_until(lambda: "reason" in function.snapshot(), "the snapshot is built anew")
    function.ready()
    assert function.parent() is None
    wait_until(lambda: template_folders(node) == [], lambda: f"there is none: {template_folders(node)}")
    assert function.call({}, "restore") == 1


def test_what_is_left_of_a_template_is_removed(own_node):
    node = own_node()
    function = node.deploy(python("def handler(event, context): return 1")).ready()
    node.stop()
    kept = template_folders(node)
    os.makedirs(node.state / "snapshots" / "@templates" / "python3-0123456789abcdef")
    node.start()
    function.ready()
    wait_until(lambda: template_folders(node) == kept, lambda: f"what is left is gone: {template_folders(node)}")
    function.delete()
    node.stop()
    node.start()
    wait_until(lambda: template_folders(node) == [], lambda: f"there is none: {template_folders(node)}")
