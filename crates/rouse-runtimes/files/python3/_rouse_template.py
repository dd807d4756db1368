"""The interpreter as a language template: modules that functions often import are loaded, no function is.

    python3 bootstrap.py                 (no handler, and ROUSE_TEMPLATE=1)

A snapshot is taken while `template/next` is parked. Each copy is answered with what makes it a function: its environment,
its handler and the command line of a cold start. What the function then sees is what it would see after a cold start:

- a module that was loaded ahead is hidden until something imports it (`Hidden`);
- where the package would have changed what was loaded ahead, the process starts over from nothing (`spoilt`).

The memory around must stay as it is, because every page that a function does not write is shared with all others.
"""

import builtins
import gc
import os
import sys

import _socket

# What functions import most, and what that brings along, which every function has for nothing once one has paid. But each shared
# library is five mappings more for all of them, at some 1.3 us at each restore: `uuid` brings two, `asyncio` one and 2 MiB.
# Nothing here may draw random numbers, read the environment or look at the machine when it is imported, except where
# `revealed` or `_forget` repairs it: all functions share what it then knows. (`multiprocessing` draws a key, for instance.)
PRELOADED = (
    "abc", "base64", "bisect", "codecs", "collections", "collections.abc", "concurrent.futures",
    "concurrent.futures.thread", "contextlib", "contextvars", "copy", "csv", "ctypes", "dataclasses", "datetime", "decimal", "email.message",
    "email.parser", "email.utils", "enum", "errno", "fnmatch", "functools", "glob", "gzip", "hashlib", "heapq", "hmac", "http",
    "http.client", "inspect", "io", "itertools", "json", "linecache", "logging", "math", "mimetypes", "numbers", "operator",
    "pathlib", "pickle", "platform", "queue", "random", "re", "secrets", "select", "selectors", "shutil", "signal", "socket", "ssl",
    "stat", "string", "struct", "subprocess", "tempfile", "textwrap", "threading", "time", "traceback", "types", "typing",
    "urllib", "urllib.error", "urllib.parse", "urllib.request", "warnings", "weakref", "zipfile", "zlib",
)  # fmt: skip


def become(connection, bootstrap):
    """Loads, parks, and returns the function's handler in each copy."""
    import _rouse_unique as unique

    hidden = Hidden(bootstrap.State)
    hidden.load(PRELOADED)
    libraries = unique.loaded_libraries()
    _forget(hidden.modules)
    bootstrap.warm_up(connection)
    _rehearse(bootstrap, connection, hidden, libraries)
    counts = _settle(hidden.modules)
    handler = _become_function(connection, bootstrap, hidden, libraries)
    unique.of_template(libraries, counts)
    return handler


def _become_function(connection, bootstrap, hidden, libraries):
    """Asks for a function, and makes this process look as if it had been started for it. Returns the handler's name."""
    status, _, body = connection.get("template/next")
    if status != 200:
        raise RuntimeError("the runtime API answered /template/next with %d: %r" % (status, body[:200]))
    function = bootstrap.decode_json(body)
    environment = dict(function["environment"])
    os.environ.clear()
    os.environ.update(environment)
    # In a machine the package has been mounted since: this process stands below it, and knows what was there before.
    os.chdir(bootstrap.TASK_ROOT)
    sys.path_importer_cache.pop(bootstrap.TASK_ROOT, None)
    bootstrap.prepare_path()
    if spoilt(hidden.names, libraries, environment):
        os.execve(function["command"][0], function["command"], environment)
    sys.orig_argv[:] = function["command"]
    sys.meta_path.insert(0, hidden)
    return function["handler"]


class Hidden:
    """Modules that were loaded ahead, invisible until they are imported: the finder that shows them.

    So `sys.modules` has no entry that a cold start would not have made, and what is done when a module is imported (a seed,
    a log handler) is done then. A module that is shown brings along those that it imported when it was loaded.
    """

    def __init__(self, state):
        self.state = state
        self.modules = {}
        self.imports = {}

    @property
    def names(self):
        return self.modules.keys()

    def load(self, names):
        before = set(sys.modules)
        original = builtins.__import__

        loading = []

        def record(name, globals=None, locals=None, fromlist=(), level=0):
            importer = (globals or {}).get("__name__")
            if loading and importer in ("importlib._bootstrap", "_frozen_importlib"):
                # An extension module imports something while it is made: the code that runs is the import system's.
                importer = loading[-1]
            loading.append(name)
            try:
                module = original(name, globals, locals, fromlist, level)
            finally:
                loading.pop()
            if level:
                package = globals["__package__"].rsplit(".", level - 1)[0]
                name = package + "." + name if name else package
            found = self.imports.setdefault(importer, set())
            found.add(name)
            found.update(name + "." + item for item in fromlist or () if name + "." + item in sys.modules)
            return module

        builtins.__import__ = record
        try:
            for name in names:
                try:
                    record(name, {"__name__": None})
                except ImportError:
                    # Not every build of Python has every module: sqlite3, lzma, ctypes.
                    pass
        finally:
            builtins.__import__ = original
        import _rouse_logging

        if "logging" in sys.modules:
            _rouse_logging.install(sys.modules["logging"], self.state)
        self.modules = {name: sys.modules.pop(name) for name in set(sys.modules) - before - {"_rouse_logging"}}
        for name, module in self.modules.items():
            package, _, child = name.rpartition(".")
            if getattr(module, "__spec__", None) is None:
                # Nobody imports it: its package has put it there.
                self.imports.setdefault(package, set()).add(name)
            parent = self.modules.get(package) or sys.modules.get(package)
            if getattr(parent, child, None) is module:
                delattr(parent, child)
        self.imports = {name: self.needs(name) for name in self.modules}

    def needs(self, name):
        """A module and all that it cannot do without, of those that were loaded ahead."""
        found, rest = set(), [name]
        while rest:
            name = rest.pop()
            if name in found or name not in self.modules:
                continue
            found.add(name)
            rest.extend(self.imports.get(name, ()))
            rest.append(name.rpartition(".")[0])
        return frozenset(found)

    def find_spec(self, name, path=None, target=None):
        module = self.modules.get(name)
        return None if module is None else type(sys.__spec__)(name, Shown(self, module))

    def show(self, name):
        shown = {needed: self.modules.pop(needed) for needed in self.imports[name] if needed in self.modules}
        sys.modules.update(shown)
        for needed, module in shown.items():
            package, _, child = needed.rpartition(".")
            if package:
                setattr(sys.modules[package], child, module)
            revealed(needed, module)


class Shown:
    """The loader of a module that is there already.

    What is needed is shown when the module is asked for and not when it is looked for: the import system takes a module
    that appears during the search for one that somebody else has loaded meanwhile, and loads it again.
    """

    def __init__(self, hidden, module):
        self.hidden = hidden
        self.module = module
        self.original = getattr(module, "__spec__", None)

    def create_module(self, spec):
        self.hidden.show(spec.name)
        return self.module

    def exec_module(self, module):
        # The import system has put in the specification that names this loader.
        module.__spec__ = self.original


def revealed(name, module):
    """What importing this module anew would have done differently."""
    if name == "random":
        module.seed()


def spoilt(names, libraries, environment):
    """Would a start from nothing load something else than what was loaded ahead?

    - a module of the package that is preferred to one of the library;
    - a shared object that the dynamic linker would find in LD_LIBRARY_PATH first.
    """
    tops = {name.partition(".")[0] for name in names}
    for folder in sys.path[: sys.path.index(_standard_library())]:
        if any(entry.partition(".")[0] in tops for entry in _list(folder)):
            return True
    # The linker looks for `libz.so.1`, the mapping shows `libz.so.1.2.13`.
    wanted = {os.path.basename(path).partition(".so")[0] for path in libraries}
    for folder in filter(None, environment.get("LD_LIBRARY_PATH", "").split(":")):
        found = [name for name in _list(folder) if name.partition(".so")[0] in wanted and ".so" in name]
        if any(os.path.realpath(os.path.join(folder, name)) not in libraries for name in found):
            return True
    return False


def _standard_library():
    folder = os.path.dirname(os.__file__)
    return next(entry for entry in sys.path if entry == folder or entry.endswith(".zip"))


def _list(folder):
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _forget(modules):
    """Caches that know this machine or this sandbox, and what importing has left behind."""
    if "platform" in modules:
        modules["platform"]._uname_cache = None
    if "linecache" in modules:
        modules["linecache"].clearcache()
    if "re" in modules:
        modules["re"].purge()
    sys.path_importer_cache.clear()


_MODULE = """
import os, sys
class First:
    value = 1
    def method(self, number=2, *args, **kwargs):
        return [number for number in range(self.value)]
TABLE = {str(number): (number, "text") for number in range(10)}
def handler(event, context):
    try:
        return {"result": First().method(), "found": TABLE.get("3"), "text": f"{event}"}
    except ValueError as error:
        raise KeyError("key") from error
"""


def _rehearse(bootstrap, connection, hidden, libraries):
    """Becomes a small function many times, from the reply to `template/next` to that to `restore/next`. The interpreter
    specialises its bytecode in place and counts until it does, the linker binds what is called first, and caches fill: what
    has settled in the template does not change in a function."""
    import _rouse_unique as unique

    if spoilt(hidden.names, libraries, os.environ):
        # No function can be made here.
        return
    folder = "/tmp/.rouse-rehearsal"
    os.mkdir(folder)
    before = dict(os.environ), list(sys.path), list(sys.orig_argv), list(sys.meta_path)
    function = {
        "environment": list(before[0].items()),
        "handler": "rehearsal.handler",
        "command": [sys.executable, "-u", sys.argv[0], "rehearsal.handler"],
    }
    reply = bootstrap.encode_json(function)
    unique.of_template(libraries, None)
    try:
        for _ in range(24):
            with open(os.path.join(folder, "rehearsal.py"), "w") as file:
                file.write(_MODULE)
            sys.path_importer_cache.pop(folder, None)
            name = _answered(connection, reply, lambda: _become_function(connection, bootstrap, hidden, libraries))
            sys.path.insert(0, folder)
            bootstrap.load_handler(name)({}, None)
            unique.prepare()
            unique.settle()
            _answered(connection, b"", lambda: connection.get("restore/next", "Rouse-Restore-Accept: invocation, rehearsal\r\n"))
            gc.unfreeze()
            del sys.modules["rehearsal"]
            os.remove(os.path.join(folder, "rehearsal.py"))
            sys.path[:], sys.orig_argv[:], sys.meta_path[:] = before[1:]
    finally:
        sys.path_importer_cache.pop(folder, None)
        os.rmdir(folder)


def _answered(connection, body, ask):
    """What `ask` returns when whatever it asks for is answered with `body`."""
    ours, theirs = _socket.socketpair()
    line, connection.socket = connection.socket, ours
    try:
        theirs.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        return ask()
    finally:
        connection.socket = line
        ours.close()
        theirs.close()


def _settle(modules):
    """Leaves nothing to collect, nothing that a collection in a function would write to, and no holes in the small pages of
    the allocator: a function's first objects would fill them, and each would cost the function a page of its own."""
    gc.collect()
    _fill_holes()
    counts = Counts(modules["ctypes"]) if "ctypes" in modules else None
    gc.freeze()
    return counts


class Counts:
    """The reference counts of everything that is alive in the template.

    A function changes a count here and there, on pages on which it changes nothing else. So the objects are made immortal
    (each gets a billion references), after which the exact counts do not matter, and `restore` puts them back before the
    function's snapshot: pages on which nothing else has changed are the template's again.
    """

    def __init__(self, ctypes):
        # The lower half of a count is enough: the upper one never changes.
        # Held until they are immortal: memory that has been freed must not be taken for an object.
        alive = _alive()
        addresses = sorted(map(id, alive))
        self.regions = []
        last = 0
        for start, end in _writable():
            first = last
            while first < len(addresses) and addresses[first] < start:
                first += 1
            last = first
            while last < len(addresses) and addresses[last] < end:
                last += 1
            if first == last:
                continue
            words = memoryview((ctypes.c_uint32 * ((end - start) // 4)).from_address(start)).cast("B").cast("I")
            indexes = memoryview(bytearray(4 * (last - first))).cast("I")
            for at in range(first, last):
                index = indexes[at - first] = (addresses[at] - start) // 4
                if words[index] < IMMORTAL:
                    words[index] += IMMORTAL
            self.regions.append((words, indexes, memoryview(bytearray(4 * (last - first))).cast("I")))
        del alive, addresses
        self._trim(ctypes)
        for words, indexes, counts in self.regions:
            for at, index in enumerate(indexes):
                counts[at] = words[index]
        # So that its own bytecode has settled.
        for _ in range(3):
            self.restore()

    @staticmethod
    def _trim(ctypes):
        """Gives memory back that the C library keeps: it would be part of the snapshot."""
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError):
            # Only glibc has it.
            pass

    def restore(self):
        for words, indexes, counts in self.regions:
            for index, count in zip(indexes, counts):
                if words[index] != count:
                    words[index] = count


# Static objects of the interpreter have as many from the start.
IMMORTAL = 1_000_000_000


def _writable():
    """Writable memory of this process."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            addresses, rights = line.split()[:2]
            if rights.startswith("rw"):
                start, _, end = addresses.partition("-")
                yield int(start, 16), int(end, 16)


def _alive():
    """All objects that can be reached."""
    code = type(_alive.__code__)
    # What is part of the interpreter is not known to the collector.
    rest = [object, sys.modules, builtins.__dict__, *range(-5, 257), *map(chr, range(256))]
    rest += gc.get_objects()
    found, known = [], set()
    # Not themselves, which end with the search.
    skipped = {id(rest), id(found), id(known)}
    while rest:
        thing = rest.pop()
        if id(thing) in known or id(thing) in skipped:
            continue
        known.add(id(thing))
        found.append(thing)
        rest += gc.get_referents(thing)
        # What else these hold. Members that are made when they are asked for are looked through, not taken.
        if isinstance(thing, code):
            rest += (thing.co_consts, thing.co_names, thing.co_name, thing.co_filename, thing.co_linetable)
            rest += thing.co_varnames
        elif isinstance(thing, type):
            rest += (thing.__mro__, thing.__bases__)
            rest += type.__subclasses__(thing)
            rest += gc.get_referents(thing.__dict__)
    return found


_filling = []


def _fill_holes():
    """Fills the free blocks of the allocator's pools, of which each holds objects of one size."""
    for size, free in _free_blocks():
        # A bytes object has 33 bytes more than contents; smaller ones are a float and a bare object.
        make = {16: lambda _: object(), 32: float}.get(size, lambda _, size=size: bytes(size - 33))
        _filling.extend(map(make, range(free)))


def _free_blocks():
    """Free blocks of each size in pools that are in use, from the allocator's own report."""
    saved = os.dup(2)
    report = os.memfd_create("report")
    try:
        os.dup2(report, 2)
        sys._debugmallocstats()
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    with open(report, "rb") as file:
        file.seek(0)
        lines = file.read().decode("ascii", "replace").splitlines()
    found = []
    for line in lines:
        words = line.split()
        if len(words) == 5 and all(word.isdigit() for word in words):
            found.append((int(words[1]), int(words[4])))
    return found
