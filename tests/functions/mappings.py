"""Private mappings: protections, advice, guard pages, modified file pages, and areas that come back empty."""

import ctypes
import mmap
import os
import re

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = 4096


def anonymous(pages, protection=3, flags=0x22):
    address = libc.mmap(None, pages * PAGE, protection, flags, -1, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    return address


plain = anonymous(300)
for page in range(0, 300, 3):
    ctypes.memmove(plain + page * PAGE, page.to_bytes(4, "little"), 4)

guarded = anonymous(3)
ctypes.memset(guarded, 0x61, 3 * PAGE)
assert libc.mprotect(guarded, PAGE, 0) == 0
assert libc.mprotect(guarded + 2 * PAGE, PAGE, 1) == 0

wiped = anonymous(2)
ctypes.memset(wiped, 0x62, 2 * PAGE)
assert libc.madvise(wiped, 2 * PAGE, 18) == 0  # MADV_WIPEONFORK
unforked = anonymous(2)
ctypes.memset(unforked, 0x63, 2 * PAGE)
assert libc.madvise(unforked, 2 * PAGE, 10) == 0  # MADV_DONTFORK
undumped = anonymous(2)
ctypes.memset(undumped, 0x64, 2 * PAGE)
assert libc.madvise(undumped, 2 * PAGE, 16) == 0  # MADV_DONTDUMP
small = anonymous(1024)
libc.madvise(small, 1024 * PAGE, 15)  # MADV_NOHUGEPAGE
ctypes.memset(small, 0x65, 1024 * PAGE)
huge = anonymous(1024)
libc.madvise(huge, 1024 * PAGE, 14)  # MADV_HUGEPAGE
ctypes.memset(huge, 0x66, 1024 * PAGE)
reserved = anonymous(1 << 18, 0, 0x4022)  # a gibibyte, PROT_NONE, MAP_NORESERVE
droppable = libc.mmap(None, PAGE, 3, 0x28, -1, 0)  # MAP_DROPPABLE | MAP_ANONYMOUS
if droppable in (None, ctypes.c_void_p(-1).value):
    droppable = None
else:
    ctypes.memset(droppable, 0x67, PAGE)

code = open(__file__, "rb")
original = os.pread(code.fileno(), PAGE, 0)
private_file = mmap.mmap(code.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
private_file[0:4] = b"mine"
libc.sbrk.restype = ctypes.c_void_p
top = libc.sbrk(0)


def flags_of(address):
    """(permissions, VmFlags) of the mapping at an address."""
    permissions = None
    with open("/proc/self/smaps") as file:
        for line in file:
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line)
            if found:
                inside = int(found[1], 16) <= address < int(found[2], 16)
                permissions = found[3] if inside else None
            elif permissions and line.startswith("VmFlags:"):
                return permissions, set(line.split()[1:])
    raise AssertionError(f"nothing is mapped at {address:#x}")


FLAGS = {
    "guarded": flags_of(guarded), "read-only": flags_of(guarded + 2 * PAGE), "wiped": flags_of(wiped),
    "unforked": flags_of(unforked), "undumped": flags_of(undumped), "small": flags_of(small), "huge": flags_of(huge),
    "reserved": flags_of(reserved),
}


def bytes_at(address, size=1):
    return ctypes.string_at(address, size)


def handler(event, context):
    for page in range(300):
        expected = page.to_bytes(4, "little") if page % 3 == 0 else bytes(4)
        assert bytes_at(plain + page * PAGE, 4) == expected, page
    assert bytes_at(guarded + PAGE, PAGE) == b"a" * PAGE and bytes_at(guarded + 2 * PAGE) == b"a"
    assert libc.mprotect(guarded, PAGE, 1) == 0 and bytes_at(guarded, 8) == b"a" * 8
    assert libc.mprotect(guarded, PAGE, 0) == 0
    if event == "restored":
        assert bytes_at(wiped, 2 * PAGE) == bytes(2 * PAGE)
        assert droppable is None or bytes_at(droppable, PAGE) == bytes(PAGE)
    assert bytes_at(unforked, 2) == b"cc" and bytes_at(undumped, 2) == b"dd"
    assert bytes_at(small + 512 * PAGE) == b"e" and bytes_at(huge + 1023 * PAGE) == b"f"
    assert private_file[0:4] == b"mine" and private_file[4:PAGE] == original[4:]
    assert os.pread(code.fileno(), PAGE, 0) == original
    now = {
        "guarded": flags_of(guarded), "read-only": flags_of(guarded + 2 * PAGE), "wiped": flags_of(wiped),
        "unforked": flags_of(unforked), "undumped": flags_of(undumped), "small": flags_of(small), "huge": flags_of(huge),
        "reserved": flags_of(reserved),
    }
    for name, (permissions, flags) in FLAGS.items():
        assert now[name][0] == permissions, (name, now[name], permissions)
        kept = {"wf", "dc", "dd", "nh", "hg", "nr", "rd", "wr", "mr", "mw", "me"}
        assert now[name][1] & kept == flags & kept, (name, now[name], flags)
    # The heap goes on where it was.
    assert libc.sbrk(0) >= top
    block = bytearray(50 << 20)
    block[-1] = 1
    return "ok"
