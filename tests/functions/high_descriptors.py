"""Descriptors with high numbers, up to the limit."""

import fcntl
import os
import resource

limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
file = os.open("/dev/zero", os.O_RDONLY)
numbers = [fcntl.fcntl(file, fcntl.F_DUPFD, at) for at in (200, 500, 900, limit - 1)]


def handler(event, context):
    assert numbers[-1] == limit - 1
    assert all(os.read(number, 2) == bytes(2) for number in numbers)
    return "ok"
