"""Protection keys, memory that may only be executed, guard pages, and names of memory."""
from prelude import *

GUARD, NO_GUARD, SET_VMA = 102, 103, 0x53564D41
NO_ACCESS = 1
libc.pkey_mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int]
libc.pkey_alloc.argtypes = [ctypes.c_uint, ctypes.c_uint]
libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4


def area(pages, flags=2):
    """A mapping between two pages without access, so that it never becomes one with others."""
    outer = call(libc.mmap(None, (pages + 2) * PAGE, 0, 0x22, -1, 0))
    return call(libc.mmap(outer + PAGE, pages * PAGE, 3, 0x30 | flags, -1, 0))


def mapping(address):
    """First line of a mapping, and its attributes."""
    found = None
    with open("/proc/self/smaps") as text:
        for line in text:
            head = line.split()
            if not head[0].endswith(":"):
                start, end = (int(part, 16) for part in head[0].split("-"))
                inside = start <= address < end
                found = (head, {}) if inside else found
            elif inside:
                found[1][head[0]] = head[1]
    return found


def key_of(address):
    return int(mapping(address)[1]["ProtectionKey:"])


def killed(work):
    equal(os.WTERMSIG(in_child(work)), signal.SIGSEGV)


has_keys = libc.pkey_alloc(0, 0) == 1
if has_keys:
    call(libc.pkey_free(1))
    open_memory, closed_memory, left_memory, shared_memory = area(2), area(2), area(1), area(1, flags=1)
    code = area(1)
    poke(code, b"\xb8\x2a\x00\x00\x00\xc3")  # mov eax, 42; ret
    left, opened = call(libc.pkey_alloc(0, 0)), call(libc.pkey_alloc(0, 0))
    call(libc.mprotect(code, PAGE, 4))
    code_key, closed = key_of(code), call(libc.pkey_alloc(0, 0))
    equal([left, opened, code_key, closed], [1, 2, 3, 4])
    for memory, key in [(open_memory, opened), (closed_memory, closed), (left_memory, left), (shared_memory, opened)]:
        poke(memory, b"key %d" % key)
        call(libc.pkey_mprotect(memory, PAGE, 3, key))
    # Still the memory's, but given out no more.
    call(libc.pkey_free(left))
    call(libc.pkey_set(closed, NO_ACCESS))


class Other(threading.Thread):
    """A thread with other rights."""
    def __init__(self):
        super().__init__(daemon=True)
        self.go, self.ready, self.found = threading.Event(), threading.Event(), None
        self.start()
        self.ready.wait()

    def run(self):
        if has_keys:
            libc.pkey_set(opened, 2)
            libc.pkey_set(closed, 0)
        self.ready.set()
        self.go.wait()
        if has_keys:
            self.found = [libc.pkey_get(key) for key in (opened, closed)] + [peek(closed_memory, 5)]


other = Other()


@check
def keys_of_memory(me):
    if has_keys:
        memory = [open_memory, open_memory + PAGE, closed_memory, left_memory, shared_memory, code]
        equal([key_of(address) for address in memory], [opened, 0, closed, left, opened, code_key])
        equal([peek(open_memory, 5), peek(shared_memory, 5)], [b"key 2", b"key 2"])


@check
def rights_of_threads(me):
    if has_keys:
        equal([libc.pkey_get(key) for key in (opened, closed)], [0, NO_ACCESS])
        killed(lambda: peek(closed_memory, 5))
        other.go.set()
        other.join(PATIENCE)
        equal(other.found, [2, 0, b"key 4"])
        call(libc.pkey_set(closed, 0))
        equal(peek(closed_memory, 5), b"key 4")


@check
def executable_only(me):
    if has_keys:
        equal(ctypes.CFUNCTYPE(ctypes.c_int)(code)(), 42)
        killed(lambda: peek(code, 1))


@check
def numbers_that_are_free(me):
    if has_keys:
        equal([call(libc.pkey_alloc(0, 0)) for _ in range(12)], [1] + list(range(5, 16)))
        fails(errno.ENOSPC, lambda: call(libc.pkey_alloc(0, 0)))
        for key in [1] + list(range(5, 16)):
            call(libc.pkey_free(key))
        fails(errno.EINVAL, lambda: call(libc.pkey_free(1)))
        fails(errno.EINVAL, lambda: call(libc.pkey_free(code_key)))


guarded = area(6)
poke(guarded, b"g" * 6 * PAGE)
has_guards = libc.madvise(guarded + 2 * PAGE, 2 * PAGE, GUARD) == 0


@check
def guard_pages(me):
    if has_guards:
        equal(mapping(guarded)[0][1], "rw-p")
        # A guard stays one, whatever the protection.
        call(libc.mprotect(guarded, 6 * PAGE, 1))
        call(libc.mprotect(guarded, 6 * PAGE, 3))
        for page in [2, 3]:
            killed(lambda: peek(guarded + page * PAGE, 1))
        equal(peek(guarded, 2 * PAGE) + peek(guarded + 4 * PAGE, 2 * PAGE), b"g" * 4 * PAGE)
        call(libc.madvise(guarded + 3 * PAGE, PAGE, NO_GUARD))
        poke(guarded + 3 * PAGE, me.encode())
        killed(lambda: peek(guarded + 2 * PAGE, 1))


named, named_shared = area(4), area(2, flags=1)
name = ctypes.create_string_buffer(b"a name: with spaces")
has_names = libc.prctl(SET_VMA, 0, named, 2 * PAGE, ctypes.addressof(name)) == 0
libc.prctl(SET_VMA, 0, named_shared, 2 * PAGE, ctypes.addressof(name))
poke(named + PAGE, b"named")


@check
def names(me):
    if has_names:
        found = [" ".join(mapping(address)[0][5:]) for address in (named, named_shared, named + 2 * PAGE)]
        equal(found, ["[anon:a name: with spaces]", "[anon_shmem:a name: with spaces]", ""])
    equal(peek(named + PAGE, 5), b"named")


serve()
