"""Packages of functions."""

import io
import stat
import textwrap
import zipfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
EXAMPLES = TESTS.parent / "examples"
FUNCTIONS = TESTS / "functions"


def zipped(files):
    """A zip of {name: text, bytes, or (content, mode)}."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            content, mode = content if isinstance(content, tuple) else (content, 0o644)
            entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
            entry.external_attr = (stat.S_IFREG | mode) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()


def python(source):
    """A package of one Python file."""
    return {"app.py": textwrap.dedent(source)}


def folder(path):
    """A package of all files below a folder."""
    path = Path(path)
    return {
        str(file.relative_to(path)): (file.read_bytes(), file.stat().st_mode & 0o777)
        for file in sorted(path.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
