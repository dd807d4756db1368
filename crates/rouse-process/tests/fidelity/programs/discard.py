"""Memory that is given back, moved or grown: it must look as if it had never been the pool's."""
from prelude import *

DONTNEED, FREE = 4, 8
MAYMOVE = 1
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
RW, PRIVATE, ANONYMOUS = 3, 2, 0x20


def map_pages(pages, flags=PRIVATE | ANONYMOUS, prot=RW, fd=-1, offset=0):
    return call(libc.mmap(None, pages * PAGE, prot, flags, fd, offset))


def pattern(page):
    return bytes([1 + page % 250]) * PAGE


def filled(pages):
    address = map_pages(pages)
    for page in range(pages):
        poke(address + page * PAGE, pattern(page))
    return address


def is_filled(address, pages):
    for page in pages:
        equal((page, set(peek(address + page * PAGE, PAGE))), (page, set(pattern(page))))


def is_zero(address, pages):
    found = peek(address, pages * PAGE)
    equal([at for at in range(pages * PAGE) if found[at]][:9], [])


def wrong(work):
    """The errno of a call that must fail."""
    ctypes.set_errno(0)
    equal(work(), -1)
    return errno.errorcode[ctypes.get_errno()]


whole, part, holes, written, free = filled(64), filled(64), map_pages(64), filled(16), filled(8)
for page in range(0, 64, 7):
    poke(holes + page * PAGE, pattern(page))
fenced = filled(4)
call(libc.mprotect(fenced, 4 * PAGE, 0))
gap = filled(6)
call(libc.munmap(gap + 2 * PAGE, 2 * PAGE))
grown, shrunk, moved, forked, contended = filled(16), filled(16), filled(16), filled(16), filled(64)
# A library's data: pages of a file that were written over.
file = os.open("/usr/bin/python3", os.O_RDONLY)
of_file = map_pages(8, PRIVATE, fd=file)
file_bytes = os.pread(file, 8 * PAGE, 0)
poke(of_file + 2 * PAGE, b"mine" * 1024 * 2)
# Objects of an allocator that relies on zeros: heaps of further threads.
library = ctypes.CDLL(None)


@check
def memory_given_back_is_zero(me):
    call(libc.madvise(whole, 64 * PAGE, DONTNEED))
    is_zero(whole, 64)
    poke(whole + PAGE, b"again")
    equal(peek(whole + PAGE, 5), b"again")


@check
def only_what_is_given_back_is_zero(me):
    call(libc.madvise(part + 10 * PAGE, 20 * PAGE - 100, DONTNEED))
    is_filled(part, range(10))
    is_zero(part + 10 * PAGE, 20)
    is_filled(part, range(30, 64))


@check
def zeros_between_pages_of_the_pool(me):
    poke(holes + PAGE, b"new")
    call(libc.madvise(holes, 64 * PAGE, DONTNEED))
    is_zero(holes, 64)


@check
def what_was_written_since_goes_too(me):
    poke(written + 3 * PAGE, b"since")
    call(libc.madvise(written, 16 * PAGE, DONTNEED))
    is_zero(written, 16)


@check
def out_of_reach_at_that_moment(me):
    call(libc.madvise(fenced, 4 * PAGE, DONTNEED))
    call(libc.mprotect(fenced, 4 * PAGE, RW))
    is_zero(fenced, 4)


@check
def pages_of_a_file_are_the_files_again(me):
    call(libc.madvise(of_file, 8 * PAGE, DONTNEED))
    found = peek(of_file, 8 * PAGE)
    equal([at for at in range(8 * PAGE) if found[at] != file_bytes[at]][:9], [])


@check
def what_may_be_freed_may_stay(me):
    call(libc.madvise(free, 8 * PAGE, FREE))
    for page in range(8):
        assert peek(free + page * PAGE, PAGE) in (pattern(page), bytes(PAGE))


@check
def arguments_are_checked_as_ever(me):
    equal(wrong(lambda: libc.madvise(part + 1, PAGE, DONTNEED)), "EINVAL")
    equal(wrong(lambda: libc.madvise(gap, 6 * PAGE, DONTNEED)), "ENOMEM")
    is_zero(gap, 2)
    is_zero(gap + 4 * PAGE, 2)
    call(libc.madvise(part, 0, DONTNEED))
    is_filled(part, range(10))


@check
def growing_is_right_or_refused(me):
    address = libc.mremap(grown, 16 * PAGE, 64 * PAGE, MAYMOVE)
    if address == ctypes.c_void_p(-1).value:
        equal(errno.errorcode[ctypes.get_errno()], "ENOMEM")
        is_filled(grown, range(16))
    else:
        is_filled(address, range(16))
        is_zero(address + 16 * PAGE, 48)


@check
def shrinking_keeps_the_rest(me):
    equal(libc.mremap(shrunk, 16 * PAGE, 4 * PAGE, 0), shrunk)
    is_filled(shrunk, range(4))


@check
def new_memory_grows_and_moves(me):
    address = filled(4)
    address = call(libc.mremap(address, 4 * PAGE, 4096 * PAGE, MAYMOVE))
    is_filled(address, range(4))
    is_zero(address + 4 * PAGE, 4092)
    call(libc.madvise(address, 4 * PAGE, DONTNEED))
    is_zero(address, 4)
    with mmap.mmap(-1, PAGE) as memory:
        memory[:4] = b"some"
        memory.resize(100 * PAGE)
        equal(memory[:4], b"some")


@check
def a_child_gives_back_its_own(me):
    def work():
        call(libc.madvise(forked, 16 * PAGE, DONTNEED))
        is_zero(forked, 16)
    equal(in_child(work), 0)
    is_filled(forked, range(16))


@check
def many_threads_at_a_time(me):
    failures = []

    def work(first):
        try:
            for _ in range(50):
                call(libc.madvise(contended + first * PAGE, 8 * PAGE, DONTNEED))
                is_zero(contended + first * PAGE, 8)
                poke(contended + first * PAGE, b"w" * 8 * PAGE)
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=work, args=(first,)) for first in range(0, 64, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(failures, [])


@check
def a_signal_in_the_middle(me):
    count = 0

    def note(*_):
        nonlocal count
        count += 1
    before = signal.signal(signal.SIGALRM, note)
    # Before the node has taken the call, a handler may interrupt it: with SA_RESTART it is made again.
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    for _ in range(300):
        poke(whole, b"x" * PAGE)
        call(libc.madvise(whole, 64 * PAGE, DONTNEED))
        equal(peek(whole, PAGE), bytes(PAGE))
    until(lambda: count > 0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@check
def heaps_of_threads_grow_and_shrink(me):
    # The heap of a further thread is trimmed with MADV_DONTNEED, and calloc then relies on zeros.
    failures = []

    def work():
        library.malloc.restype = library.calloc.restype = ctypes.c_void_p
        for _ in range(20):
            blocks = [library.malloc(ctypes.c_size_t(60000)) for _ in range(40)]
            for block in blocks:
                ctypes.memset(block, 0xee, 60000)
            for block in blocks:
                library.free(ctypes.c_void_p(block))
            cleared = [library.calloc(ctypes.c_size_t(1), ctypes.c_size_t(60000)) for _ in range(40)]
            if any(peek(block, 60000) != bytes(60000) for block in cleared):
                failures.append("calloc")
            for block in cleared:
                library.free(ctypes.c_void_p(block))
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(failures, [])


serve()
