"""What must differ between instances that start from one snapshot, and what makes the snapshot cheap to start from.

Order around the snapshot: `prepare` (imports and look-ups that `reseed` needs), `settle` (last: it freezes the garbage
collector's view of everything made until then), the snapshot, `reseed` (first thing in every instance).

The kernel's randomness (`os.urandom`, `secrets`, `uuid.uuid4`) is fresh by itself. What is reseeded here are the generators
that keep state in memory: `random`, `tempfile`, `uuid.uuid1`, numpy's global generator, and OpenSSL's, which only notices
a new process by its pid, and that is the same in every instance.
"""

import gc
import os
import sys

_reseeders = []
# Shared objects that the language template has loaded, if the process comes from one.
_template_libraries = frozenset()
# Its reference counts.
_template_counts = None


def of_template(libraries, counts):
    """The process was copied from a language template, which has loaded `libraries` and not used them."""
    global _template_libraries, _template_counts
    _template_libraries = libraries
    _template_counts = counts


def prepare():
    """Finds the generators that the function has loaded."""
    del _reseeders[:]
    modules = sys.modules
    if "random" in modules:
        _reseeders.append(modules["random"].seed)
    if "tempfile" in modules:
        _reseeders.append(_tempfile)
    if "uuid" in modules:
        _reseeders.append(_uuid)
    mtrand = modules.get("numpy.random.mtrand")
    if mtrand is not None:
        _reseeders.append(mtrand.seed)
    if "_ssl" in modules:
        _reseeders.append(_ssl)
    _reseeders.extend(_openssl_copies("_ssl" in modules))


def settle():
    """Leaves nothing to collect, and nothing that a collection in an instance would have to touch (and so copy)."""
    gc.collect()
    gc.freeze()
    if _template_counts is not None:
        _template_counts.restore()


def reseed():
    for function in _reseeders:
        function()


def _tempfile():
    tempfile = sys.modules["tempfile"]
    tempfile._name_sequence = None


def _uuid():
    # uuid1() is made of the clock, a node id and a sequence number; libuuid caches both of the latter where they cannot be
    # reached, so the pure Python way is taken from here on, with a random node id (RFC 4122, section 4.5).
    uuid = sys.modules["uuid"]
    uuid._generate_time_safe = None
    uuid._node = int.from_bytes(os.urandom(6), "big") | (1 << 40)
    uuid._last_timestamp = None


def _ssl():
    # With enough bytes RAND_add reseeds the primary generator at once, and its reseed counter makes the generators of all
    # threads follow before their next output.
    sys.modules["_ssl"].RAND_add(os.urandom(32), 32.0)


def _openssl_copies(python_has_ssl):
    """RAND_poll of each other libcrypto in the process: wheels bring their own, with a generator of its own."""
    libraries = loaded_libraries()
    paths = {path for path in libraries if os.path.basename(path).startswith("libcrypto")}
    if python_has_ssl:
        # The one that `_ssl` is linked with is reached through it.
        paths = {path for path in paths if not _is_system_library(path)}
    elif libraries <= _template_libraries and "_hashlib" not in sys.modules:
        # It is there because of the template, which has drawn nothing from it, and nobody here can have.
        paths -= _template_libraries
    if not paths:
        return []
    try:
        import ctypes

        return [ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW).RAND_poll for path in sorted(paths)]
    except (ImportError, OSError, AttributeError):
        return []


def loaded_libraries():
    """Shared objects in this process."""
    known = {os.path.basename(path): path for path in _template_libraries}
    paths = set()
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            start = line.find(b"/")
            if start >= 0 and b".so" in line[start:]:
                path = os.fsdecode(line[start:].rstrip(b"\n"))
                # What a restore has mapped shows the host's path: it may have a prefix, and the linker would not know it.
                name = known.get(os.path.basename(path))
                paths.add(name if name and path.endswith(name) else path)
    return frozenset(paths)


def _is_system_library(path):
    return path.startswith(("/lib/", "/usr/lib/", "/usr/local/lib/"))
