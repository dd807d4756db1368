import os
import socket
import time

print("hello from the function", flush=True)
count = 0


def flood():
    """Opens what it can, and sends what it can."""
    opened, refused = [], 0
    for number in range(200):
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            connection.connect((2, 9001 if number % 2 else 5))
            opened.append(connection)
        except OSError:
            refused += 1
    sent = 0
    for connection in opened:
        connection.setblocking(False)
        try:
            while True:
                sent += connection.send(bytes(65536))
        except OSError:
            pass
    return {"opened": len(opened), "refused": refused, "sent": sent}


def text(path):
    with open(path) as file:
        return file.read().strip()


def handler(event, context):
    global count
    count += 1
    if event == "flood":
        return flood()
    with open("/tmp/file", "w") as file:
        written = file.write("x")
    return {
        "event": event,
        "count": count,
        "user": os.getuid(),
        "pid1": text("/proc/1/comm"),
        "boot_id": text("/proc/sys/kernel/random/boot_id"),
        "random": os.urandom(8).hex(),
        "time": time.time(),
        "written": written,
    }
