"""One node for each module, and nothing of it left afterwards."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness import leaks
from harness.node import Node, wait_until
from harness.package import EXAMPLES, folder


def pytest_configure(config):
    if os.geteuid() != 0:
        pytest.exit("sandboxes need root: run `cargo xtask test`", 3)


@pytest.fixture(scope="module")
def node_settings():
    """Settings of the module's node; a module overrides it."""
    return {}


@pytest.fixture(scope="module")
def node(tmp_path_factory, node_settings):
    node = Node(tmp_path_factory.mktemp("node"), **node_settings)
    node.start()
    try:
        yield node
    finally:
        node.close()
    wait_until(lambda: not leaks.leftovers(node), lambda: f"nothing is left: {leaks.leftovers(node)}")


@pytest.fixture
def own_node(tmp_path):
    """A node for one test that ends or kills it."""
    nodes = []

    def make(**settings):
        node = Node(tmp_path, **settings)
        nodes.append(node)
        return node.start()

    yield make
    for node in nodes:
        node.close()
        wait_until(lambda: not leaks.leftovers(node), lambda: f"nothing is left: {leaks.leftovers(node)}")


@pytest.fixture(scope="session")
def site_packages():
    """Where this environment's packages are."""
    import boto3

    return Path(boto3.__file__).parent.parent


@pytest.fixture(scope="session")
def ric_package(site_packages):
    """The official Python client, as a function's package brings it."""
    names = ("awslambdaric", "simplejson", "snapshot_restore_py.py", "runtime_client*.so")
    files = {}
    for name in names:
        for path in site_packages.glob(name):
            found = folder(path) if path.is_dir() else {"": (path.read_bytes(), 0o644)}
            files.update({f"{path.name}/{inner}".rstrip("/"): content for inner, content in found.items()})
    return files


@pytest.fixture(scope="session")
def numpy_package(tmp_path_factory):
    """The dependencies of examples/numpy-python, installed as its description says."""
    target = tmp_path_factory.mktemp("numpy") / "site-packages"
    requirements = EXAMPLES / "numpy-python" / "requirements.txt"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, "--target", target, "--requirement", requirements], check=True)
    return {f"site-packages/{name}": content for name, content in folder(target).items() if "/tests/" not in name}
