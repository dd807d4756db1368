"""What the kernel says of each mapping, before the snapshot and in each copy."""
from prelude import *

PROT_NONE, RW = 0, 3
PRIVATE, SHARED, ANONYMOUS, FIXED, NORESERVE, LOCKED, DROPPABLE = 2, 1, 0x20, 0x10, 0x4000, 0x2000, 8
ADVICE = {"random": 1, "sequential": 2, "not forked": 10, "mergeable": 12, "huge": 14, "not huge": 15, "not dumped": 16, "wiped": 18}


def area(pages=4, prot=RW, flags=PRIVATE | ANONYMOUS, fd=-1, advice=None, empty=False):
    """A mapping between two pages without access, so that it never becomes one with others."""
    outer = call(libc.mmap(None, (pages + 2) * PAGE, PROT_NONE, PRIVATE | ANONYMOUS, -1, 0))
    inner = call(libc.mmap(outer + PAGE, pages * PAGE, prot, flags | FIXED, fd, 0))
    if not empty and prot & 2:
        poke(inner, b"x" * PAGE)
    if advice is not None:
        call(libc.madvise(inner, pages * PAGE, advice))
    return inner


file = os.open("/usr/bin/python3", os.O_RDONLY)
memory = os.memfd_create("memory")
os.ftruncate(memory, 4 * PAGE)
areas = {}
for is_empty in [False, True]:
    mark = ", empty" if is_empty else ""
    for name, advice in ADVICE.items():
        areas[name + mark] = area(advice=advice, empty=is_empty)
    areas["plain" + mark] = area(empty=is_empty)
    areas["not reserved" + mark] = area(flags=PRIVATE | ANONYMOUS | NORESERVE, empty=is_empty)
    areas["locked" + mark] = area(flags=PRIVATE | ANONYMOUS | LOCKED, empty=is_empty)
    areas["file" + mark] = area(flags=PRIVATE, fd=file, empty=is_empty)
    areas["file, random" + mark] = area(flags=PRIVATE, fd=file, advice=1, empty=is_empty)
    areas["shared" + mark] = area(flags=SHARED | ANONYMOUS, empty=is_empty)
    areas["memfd, not forked" + mark] = area(flags=SHARED, fd=memory, advice=10, empty=is_empty)
areas["all at once"] = area()
for advice in [1, 10, 15, 16, 18]:
    call(libc.madvise(areas["all at once"], 4 * PAGE, advice))
areas["droppable"] = area(flags=DROPPABLE | ANONYMOUS)
areas["no access"] = area(prot=PROT_NONE)
areas["read-only"] = area(prot=1, flags=PRIVATE, fd=file)
areas["code"] = area(prot=5)
areas["became code"] = area()
call(libc.mprotect(areas["became code"], 4 * PAGE, 5))
os.close(file)


def smaps():
    """Permissions and flags of each area, in which every part of it agrees."""
    found, here = {}, []
    with open("/proc/self/smaps") as text:
        for line in text:
            head = line.split()
            if not head[0].endswith(":"):
                start, end = (int(part, 16) for part in head[0].split("-"))
                here = [name for name, address in areas.items() if start < address + 4 * PAGE and end > address]
                permissions = head[1]
            elif head[0] == "VmFlags:":
                # Nobody sets these: written since somebody asked; counted, because it was writable once;
                # watched by the pager, because pages may be absent, or so that it is seen exactly what is touched.
                flags = {flag for flag in head[1:] if flag not in ("sd", "ac", "um", "uw")}
                for name in here:
                    found.setdefault(name, []).append((permissions, sorted(flags)))
    return {name: sorted(set(map(str, parts))) for name, parts in found.items()}


def locked():
    with open("/proc/self/status") as status:
        return next(line for line in status if line.startswith("VmLck"))


before, locked_before = smaps(), locked()
equal(set(before), set(areas))


@check
def mappings_have_the_same_attributes(me):
    now = smaps()
    different = {name: (before[name], now.get(name)) for name in areas if before[name] != now.get(name)}
    equal(different, {})
    equal(locked(), locked_before)


serve()
