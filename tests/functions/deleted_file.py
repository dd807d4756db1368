"""A temporary file that is open and has no name any more, as tempfile.TemporaryFile makes them."""

import tempfile

file = tempfile.TemporaryFile()
file.write(b"kept only by its descriptor")
file.seek(5)


def handler(event, context):
    assert file.read(4) == b"only"
    return "ok"
