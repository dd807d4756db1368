"""Sixteen clones of one snapshot: nothing that should be random is equal, and clocks are sane."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harness.package import EXAMPLES, folder, python

CLONES = 16


def assert_distinct(answers):
    for name in answers[0]["unique"]:
        values = [str(answer["unique"][name]) for answer in answers]
        assert len(set(values)) == len(answers), (name, values)


def assert_sane_clocks(answers, begin, end, slack=0.002):
    for answer in answers:
        clocks = answer["clocks"]
        assert clocks["monotonic"] >= clocks["monotonic_before_snapshot"], clocks
        # Milliseconds are all that JavaScript's clock shows.
        assert begin - slack <= clocks["wall"] <= end + slack, (begin, clocks, end)
        assert clocks["wall_before_snapshot"] <= clocks["wall"], clocks


@pytest.fixture(scope="module")
def canary(node):
    functions = {}

    def get(language):
        if language not in functions:
            runtime, handler = {"python": ("python3", "app.handler"), "node": ("nodejs", "index.handler")}[language]
            functions[language] = node.deploy(folder(EXAMPLES / f"canary-{language}"), runtime, handler)
        return functions[language].ready()

    return get


@pytest.mark.parametrize("path", ["restore", "fork", "parked"])
@pytest.mark.parametrize("language", ["python", "node"])
@pytest.mark.parametrize("way", ["one after the other", "at once"])
def test_clones_are_distinct(canary, language, path, way):
    function = canary(language)
    begin = time.time()
    with ThreadPoolExecutor(CLONES if way == "at once" else 1) as pool:
        answers = list(pool.map(lambda _: function.call({}, path), range(CLONES)))
    end = time.time()
    assert_distinct(answers)
    assert_sane_clocks(answers, begin, end)
    # They do come from one snapshot.
    assert len({answer["init_was_shared"] for answer in answers}) == 1


def test_paths_do_not_repeat_each_other(canary):
    function = canary("python")
    assert_distinct([function.call({}, path) for path in ("restore", "fork", "parked") * 6])


def test_numpy_generator(node, numpy_package):
    function = node.deploy(
        {
            **numpy_package,
            **python(
                """
                import numpy
                numpy.random.random()
                def handler(event, context): return {"unique": {"numpy": numpy.random.random()}}
                """
            ),
        }
    ).ready()
    assert_distinct([function.call({}, path) for path in ("restore", "fork") * 8])
