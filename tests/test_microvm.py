"""What `rouse kernel`, `rouse image` and `rouse doctor` do on a host with or without virtual machines."""

import hashlib
import io
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from harness.node import ROUSE

# The magic number of EROFS lies behind the first 1024 bytes.
EROFS = (1024, bytes.fromhex("e2e1f5e0"))


def rouse(*arguments):
    return subprocess.run([ROUSE, *map(str, arguments)], capture_output=True, text=True)


def is_erofs(path: Path) -> bool:
    offset, magic = EROFS
    return path.read_bytes()[offset : offset + len(magic)] == magic


def test_an_image_of_a_directory(tmp_path):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/motd").write_text("welcome to this machine")
    image = tmp_path / "images/root"
    done = rouse("image", "build", image, "--directory", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    assert is_erofs(image)
    assert b"welcome to this machine" in image.read_bytes()
    assert [entry.name for entry in image.parent.iterdir()] == ["root"], "something was left behind"


def layer(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, contents in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(contents)
            archive.addfile(entry, io.BytesIO(contents))
    return buffer.getvalue()


def oci_layout(directory: Path, layers: list[bytes]) -> Path:
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def store(contents: bytes, kind: str) -> dict:
        digest = hashlib.sha256(contents).hexdigest()
        (blobs / digest).write_bytes(contents)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(contents)}

    oci = "application/vnd.oci.image"
    manifest = {"layers": [store(one, f"{oci}.layer.v1.tar+gzip") for one in layers]}
    index = {"manifests": [store(json.dumps(manifest).encode(), f"{oci}.manifest.v1+json")]}
    (directory / "index.json").write_text(json.dumps(index))
    return directory


def test_an_image_of_an_oci_layout(tmp_path):
    layout = oci_layout(
        tmp_path / "layout",
        [
            layer({"etc/old": b"this was taken away", "etc/kept": b"this was kept"}),
            layer({"etc/.wh.old": b"", "etc/new": b"this is new"}),
        ],
    )
    image = tmp_path / "root"
    done = rouse("image", "build", image, "--oci", layout)
    assert done.returncode == 0, done.stderr
    contents = image.read_bytes()
    assert b"this was kept" in contents and b"this is new" in contents
    assert b"this was taken away" not in contents


def test_a_damaged_layout_is_refused(tmp_path):
    layout = oci_layout(tmp_path / "layout", [layer({"a": b"1"})])
    for blob in (layout / "blobs/sha256").iterdir():
        blob.write_bytes(blob.read_bytes() + b" ")
    done = rouse("image", "build", tmp_path / "root", "--oci", layout)
    assert done.returncode == 1
    assert "is not what its digest says" in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("contents", [b"", b"no kernel", b"!<arch>\nno package"])
def test_what_is_no_kernel_is_refused(tmp_path, contents):
    (tmp_path / "file").write_bytes(contents)
    done = rouse("kernel", "import", tmp_path / "file", tmp_path / "kernel")
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"], "something was left behind"


def test_whether_the_host_has_microvms_is_one_sentence():
    checks = json.loads(rouse("doctor", "--json").stdout)
    [found] = [check["found"] for check in checks if check["name"] == "microVMs"]
    if Path("/sys/module/kvm_pvm").exists():
        assert "is PVM" in found
    elif not Path("/dev/kvm").exists():
        assert "has no /dev/kvm" in found
    assert found == "KVM on hardware" or "`process` sandboxes" in found
