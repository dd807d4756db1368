"""What lies in /tmp: names, modes, times, owners, links, holes."""
import stat
from prelude import *

os.umask(0)
os.makedirs("/tmp/a/b/c", 0o750)
with open("/tmp/a/b/file", "wb") as new:
    new.write(b"x" * 10_000)
os.chmod("/tmp/a/b/file", 0o4640)
os.utime("/tmp/a/b/file", ns=(10**18 + 5, 10**18 + 7))
os.link("/tmp/a/b/file", "/tmp/a/same")
os.symlink("b/file", "/tmp/a/link")
os.symlink("/nowhere", "/tmp/dangling")
os.utime("/tmp/dangling", ns=(7 * 10**17, 8 * 10**17), follow_symlinks=False)
with open("/tmp/empty", "wb"):
    pass
with open("/tmp/sparse", "wb") as new:
    new.write(b"head")
    new.seek(1 << 30)
    new.write(b"middle")
    new.truncate((1 << 31) + 5)
os.chmod("/tmp/sparse", 0o400)
os.mkfifo("/tmp/fifo", 0o620)
os.mkdir("/tmp/sticky", 0o1777)
os.mkdir("/tmp/closed", 0o000)
strange = "/tmp/strange \n \udcff name"
with open(strange, "wb") as new:
    new.write(b"strange")
os.utime("/tmp/a/b", ns=(3 * 10**17, 4 * 10**17))
os.chdir("/tmp/a/b/c")
os.umask(0o022)


def picture():
    found = {}
    for root, directories, files in os.walk("/tmp"):
        for name in directories + files:
            path = os.path.join(root, name)
            s = os.lstat(path)
            link = os.readlink(path) if stat.S_ISLNK(s.st_mode) else None
            size = s.st_size if stat.S_ISREG(s.st_mode) else None
            found[path] = (oct(s.st_mode), s.st_uid, s.st_gid, size, s.st_mtime_ns, s.st_nlink, link)
    return found


before = picture()
sparse_blocks = os.stat("/tmp/sparse").st_blocks


@check
def all_of_it_is_there(me):
    now = picture()
    equal(sorted(now), sorted(before))
    for path, what in before.items():
        if now[path] != what:
            raise AssertionError(f"{path}: {now[path]} instead of {what}")


@check
def access_times(me):
    equal(os.stat("/tmp/a/b/file").st_atime_ns, 10**18 + 5)


@check
def contents(me):
    with open("/tmp/a/link", "rb") as file:
        equal(file.read(), b"x" * 10_000)
    with open("/tmp/sparse", "rb") as file:
        equal(file.read(8), b"head" + bytes(4))
        file.seek((1 << 30) - 4)
        equal(file.read(16), bytes(4) + b"middle" + bytes(6))
    equal(os.stat("/tmp/sparse").st_blocks, sparse_blocks)
    with open(strange, "rb") as file:
        equal(file.read(), b"strange")


@check
def links_are_one_file(me):
    with open("/tmp/a/same", "r+b") as file:
        file.write(me.encode())
    with open("/tmp/a/b/file", "rb") as file:
        equal(file.read(len(me)), me.encode())


@check
def the_working_directory(me):
    equal(os.getcwd(), "/tmp/a/b/c")
    with open("here", "w") as file:
        file.write(me)
    equal(os.listdir("/tmp/a/b/c"), ["here"])
    fails(errno.EACCES, lambda: os.listdir("/tmp/closed"))


@again
def nobody_else_wrote(me):
    with open("/tmp/a/b/c/here") as file:
        equal(file.read(), me)


serve()
