"""More mapped files than one message can carry, many descriptors, and high numbers of them."""
import pathlib
from prelude import *

paths = sorted(path for path in pathlib.Path("/usr/lib/python3").parent.glob("python3.*/**/*.py") if path.stat().st_size > 0)[:270]
maps = []
for path in paths:
    with open(path, "rb") as file:
        maps.append((path, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)))
first = os.open("/dev/null", os.O_RDWR)
high = fcntl.fcntl(first, fcntl.F_DUPFD, 320)
opened = [(path, os.open(path, os.O_RDONLY)) for path in paths[:100]]
counters = [os.eventfd(n) for n in range(1, 50)]
pipes = [os.pipe() for _ in range(25)]
for number, (_, w) in enumerate(pipes):
    os.write(w, b"%d" % number)
with open("/tmp/a file", "wb") as new:
    new.write(b"a" * 100_000)


@check
def all_of_them_are_right(me):
    assert len(paths) > 250, len(paths)
    for path, mapped in maps:
        equal(mapped[:] == path.read_bytes(), True)
    for path, fd in opened:
        equal(os.read(fd, 100) == path.read_bytes()[:100], True)
    equal([os.eventfd_read(fd) for fd in counters], list(range(1, 50)))
    equal([int(os.read(r, 10)) for r, _ in pipes], list(range(25)))
    equal(high, 320)
    equal(os.write(high, b"x"), 1)
    equal(os.stat("/tmp/a file").st_size, 100_000)


@check
def new_ones_get_the_lowest_number(me):
    os.close(first)
    equal(os.open("/dev/null", os.O_RDONLY), first)


serve()
