"""Every register that a thread can have, in threads that wait in a system call and in one that computes."""
from prelude import *

# Replaced by the test: machine code by the CPU's flag that it needs.
CODE = VECTOR_CODE
RECORD, GO, READY, FD = 2304, 2248, 2252, 2256

with open("/proc/cpuinfo") as cpuinfo:
    flags = next(line for line in cpuinfo if line.startswith("flags")).split()
kind = [flag for flag in ["sse2", "avx", "avx512bw"] if flag in flags][-1]
area = call(libc.mmap(None, PAGE, 7, 0x22, -1, 0))
poke(area, CODE[kind])
function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(area)


class Holder:
    """A thread whose registers are full."""

    def __init__(self, number, spins):
        self.record = ctypes.create_string_buffer(2 * RECORD)
        values = bytearray(os.urandom(RECORD))
        # Another rounding mode in each, MXCSR with flush-to-zero, x87 with its three precisions.
        struct.pack_into("I", values, 2240, 0x9f80 | number % 4 << 13)
        struct.pack_into("I", values, 2244, 0x007f | [0, 2, 3, 3][number % 4] << 8 | number % 4 << 10)
        self.pipe = None if spins else os.pipe()
        struct.pack_into("iiqq", values, GO, 0, 0, -1 if spins else self.pipe[0], 0)
        self.expected = bytes(values)
        self.record[:RECORD] = self.expected
        self.thread = threading.Thread(target=function, args=(ctypes.addressof(self.record),), daemon=True)
        self.thread.start()
        until(lambda: struct.unpack_from("i", self.record, READY)[0])

    def finish(self):
        struct.pack_into("i", self.record, GO, 1)
        if self.pipe:
            os.write(self.pipe[1], b"x")
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        found = self.record.raw[RECORD:]
        width, registers = {"sse2": (16, 16), "avx": (32, 16), "avx512bw": (64, 32)}[kind]
        for n in range(registers):
            equal((n, found[64 * n:64 * n + width].hex()), (n, self.expected[64 * n:64 * n + width].hex()))
        if kind == "avx512bw":
            equal(found[2048:2112].hex(), self.expected[2048:2112].hex())
        for n in range(8):
            at = 2112 + 16 * n
            equal((n, found[at:at + 10].hex()), (n, self.expected[at:at + 10].hex()))
        for at, length in [(2240, 4), (2244, 2)]:
            equal(found[at:at + length].hex(), self.expected[at:at + length].hex())


waiting = [Holder(number, False) for number in range(5)]
computing = Holder(5, True)


@check
def of_threads_in_a_system_call(me):
    for holder in waiting:
        holder.finish()


@check
def of_a_thread_that_computes(me):
    computing.finish()


serve()
