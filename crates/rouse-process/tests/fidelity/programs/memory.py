"""Mappings of every kind: contents, attributes, growth, and whose they are."""
from prelude import *

PROT_NONE, RW = 0, 3
PRIVATE, SHARED, ANONYMOUS, FIXED = 2, 1, 0x20, 0x10
DONTFORK, WIPEONFORK, GUARD = 10, 18, 102
MB = 1 << 20


def map_pages(pages, flags=PRIVATE | ANONYMOUS, prot=RW, fd=-1, offset=0):
    return call(libc.mmap(None, pages * PAGE, prot, flags, fd, offset))


def unmapped(address, length=1):
    """Is access refused there? The kernel reads on our behalf, so that nobody dies of it."""
    r, w = os.pipe()
    try:
        return libc.write(w, ctypes.c_void_p(address), ctypes.c_size_t(length)) == -1 and ctypes.get_errno() == errno.EFAULT
    finally:
        os.close(r), os.close(w)


anonymous = map_pages(100)
poke(anonymous + 50 * PAGE, b"in the middle")
empty = map_pages(100)
shared = map_pages(8, SHARED | ANONYMOUS)
poke(shared + PAGE, b"shared")
twice_fd = os.memfd_create("twice")
os.ftruncate(twice_fd, 4 * PAGE)
twice = [map_pages(4, SHARED, fd=twice_fd), map_pages(2, SHARED, fd=twice_fd, offset=2 * PAGE)]
poke(twice[1], b"seen twice")
zero = os.open("/dev/zero", os.O_RDWR)
shared_zero = map_pages(2, SHARED, fd=zero)
poke(shared_zero, b"from /dev/zero")
os.close(zero)
wiped = map_pages(2)
poke(wiped, b"a secret of one process")
call(libc.madvise(wiped, 2 * PAGE, WIPEONFORK))
droppable = libc.mmap(None, PAGE, RW, 8 | ANONYMOUS, -1, 0)
poke(droppable, b"a seed")
not_forked = map_pages(1)
poke(not_forked, b"not for children")
call(libc.madvise(not_forked, PAGE, DONTFORK))
fenced = map_pages(5)
poke(fenced, b"x" * 5 * PAGE)
call(libc.mprotect(fenced + 2 * PAGE, PAGE, PROT_NONE))
guarded = map_pages(5)
poke(guarded, b"g" * 5 * PAGE)
has_guards = libc.madvise(guarded + 2 * PAGE, PAGE, GUARD) == 0
read_only = map_pages(1)
poke(read_only, b"fixed")
call(libc.mprotect(read_only, PAGE, 1))
module = os.open("/usr/bin/python3", os.O_RDONLY)
file_map = map_pages(16, PRIVATE, fd=module)
poke(file_map + 3 * PAGE, b"written over")
file_bytes = os.pread(module, 16 * PAGE, 0)
with open("/tmp/mapped", "wb") as new:
    new.write(b"t" * 3 * PAGE)
tmp_fd = os.open("/tmp/mapped", os.O_RDWR)
tmp_map = map_pages(3, PRIVATE, fd=tmp_fd)
large_list, large_bytes = list(range(200_000)), bytearray(b"q" * MB)
heap = [bytes([n % 256]) * 3000 for n in range(2000)]
code = map_pages(1, prot=7)
poke(code, b"\xb8\x2a\x00\x00\x00\xc3")  # mov eax, 42; ret
call(libc.mprotect(code, PAGE, 5))
FE_UPWARD = 0x800
libm = ctypes.CDLL("libm.so.6")
rounding = threading.Event()
rounded = []


def in_another_mode():
    libm.fesetround(FE_UPWARD)
    mode_set.set()
    rounding.wait()
    rounded.append(libm.fegetround())


mode_set = threading.Event()
rounder = threading.Thread(target=in_another_mode, daemon=True)
rounder.start()
mode_set.wait()


@check
def private_memory(me):
    equal(peek(anonymous + 50 * PAGE - 3, 20), bytes(3) + b"in the middle" + bytes(4))
    poke(anonymous, me.encode())
    poke(anonymous + 50 * PAGE, me.encode())
    for n, block in enumerate(heap):
        assert block == bytes([n % 256]) * 3000
    equal(ctypes.CFUNCTYPE(ctypes.c_int)(code)(), 42)


@check
def shared_memory(me):
    equal(peek(shared + PAGE, 6), b"shared")
    equal(peek(shared_zero, 14), b"from /dev/zero")
    equal(peek(twice[0] + 2 * PAGE, 10), b"seen twice")
    poke(twice[0] + 3 * PAGE, me.encode())
    equal(peek(twice[1] + PAGE, len(me)), me.encode())
    equal(os.pread(twice_fd, len(me), 3 * PAGE), me.encode())

    def work():
        poke(shared, b"from a child")
        poke(shared_zero + PAGE, b"child")
        poke(anonymous + PAGE, b"not seen")
    equal(in_child(work), 0)
    equal(peek(shared, 12), b"from a child")
    equal(peek(shared_zero + PAGE, 5), b"child")
    equal(peek(anonymous + PAGE, 8), bytes(8))
    poke(shared, me.encode())


@check
def secrets_are_gone(me):
    equal(peek(wiped, 23), bytes(23))
    equal(peek(droppable, 6), bytes(6))
    poke(wiped, b"again")
    equal(in_child(lambda: equal(peek(wiped, 5), bytes(5))), 0)
    equal(peek(wiped, 5), b"again")


@check
def attributes_hold(me):
    equal(peek(not_forked, 3), b"not")
    equal(in_child(lambda: equal(unmapped(not_forked), True)), 0)
    equal([unmapped(fenced + n * PAGE) for n in range(5)], [False, False, True, False, False])
    equal(peek(fenced + PAGE, PAGE), b"x" * PAGE)
    call(libc.mprotect(fenced + 2 * PAGE, PAGE, RW))
    equal(peek(fenced + 2 * PAGE, PAGE), b"x" * PAGE)
    if has_guards:
        equal([unmapped(guarded + n * PAGE) for n in range(5)], [False, False, True, False, False])
    status = in_child(lambda: poke(read_only, b"x"))
    equal(os.WTERMSIG(status), signal.SIGSEGV)


@check
def files_in_memory(me):
    expected = bytearray(file_bytes)
    expected[3 * PAGE:3 * PAGE + 12] = b"written over"
    equal(peek(file_map, 16 * PAGE) == bytes(expected), True)
    poke(file_map, me.encode())
    equal(os.pread(module, 4, 0), b"\x7fELF")
    equal(peek(tmp_map, 3 * PAGE), b"t" * 3 * PAGE)


@check
def ranges_can_be_changed(me):
    libc.mremap.restype = ctypes.c_void_p
    # Never into what lies behind it in the pool.
    fails(errno.ENOMEM, lambda: call(libc.mremap(ctypes.c_void_p(anonymous + 50 * PAGE), ctypes.c_size_t(PAGE), ctypes.c_size_t(2 * PAGE), 1)))
    poke(empty, me.encode())
    # A part that was saved: protected, replaced, given back.
    call(libc.mprotect(anonymous + 50 * PAGE, PAGE, PROT_NONE))
    equal(unmapped(anonymous + 50 * PAGE), True)
    call(libc.mmap(anonymous + 50 * PAGE, PAGE, RW, PRIVATE | ANONYMOUS | FIXED, -1, 0))
    equal(peek(anonymous + 50 * PAGE, 20), bytes(20))
    call(libc.munmap(anonymous + 40 * PAGE, 20 * PAGE))
    equal(unmapped(anonymous + 50 * PAGE), True)
    equal(unmapped(anonymous + 60 * PAGE), False)


@check
def the_heap_grows(me):
    # Large blocks are mappings of their own, which the C library would rather move than copy.
    large_list.extend(range(1_000_000))
    large_bytes.extend(bytes(30 * MB))
    equal((large_list[199_999:200_001], large_bytes[MB - 1:MB + 1]), ([199_999, 0], b"q\0"))
    before = syscall(12, 0)
    for n in range(20000):
        heap.append(bytes([n % 256]) * 400)
    libc.sbrk.restype = ctypes.c_void_p
    call(libc.sbrk(ctypes.c_long(MB)))
    assert syscall(12, 0) >= before + MB


@check
def the_stack_grows(me):
    # Frames of C code on the main stack: far beyond what was saved of it.
    sys.setrecursionlimit(100_000)

    def deep(n):
        return 0 if n == 0 else 1 + sorted([n], key=lambda _: deep(n - 1) * 0 + n)[0] * 0 + 1
    deep(1000)
    with open("/proc/self/maps") as maps:
        stack = next(line for line in maps if line.rstrip().endswith("[stack]"))
    start, end = (int(part, 16) for part in stack.split()[0].split("-"))
    assert end - start > MB, hex(end - start)


@check
def the_arithmetic_of_each_thread(me):
    rounding.set()
    rounder.join(PATIENCE)
    equal(rounded, [FE_UPWARD])
    equal(libm.fegetround(), 0)


@again
def it_is_all_its_own(me):
    equal(peek(empty, len(me)), me.encode())
    equal(peek(shared, len(me)), me.encode())
    equal(peek(file_map, len(me)), me.encode())
    equal(os.pread(twice_fd, len(me), 3 * PAGE), me.encode())


serve()
