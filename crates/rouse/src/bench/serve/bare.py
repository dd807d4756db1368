"""A handler behind a bare HTTP server, without rouse: `bare.py KIND MODULE FUNCTION`, in the function's directory.

KIND `loop` is one thread with epoll that reads of HTTP what it must; `standard` is the standard library's threading server.
Says its port on standard output and ends when its standard input does.
"""

import importlib
import json
import os
import selectors
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

sys.path.insert(0, os.getcwd())
KIND = sys.argv[1]
HANDLER = getattr(importlib.import_module(sys.argv[2]), sys.argv[3])


def answer(body):
    return json.dumps(HANDLER(json.loads(body), None)).encode()


def whole(pending):
    """Length of the head and of the first request, if all of it has come."""
    head = pending.find(b"\r\n\r\n") + 4
    if head < 4:
        return None
    length = 0
    for line in pending[:head].split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return (head, head + length) if len(pending) >= head + length else None


def loop():
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    selector = selectors.EpollSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ, bytearray())
                continue
            connection, pending = key.fileobj, key.data
            got = connection.recv(65536)
            if not got:
                selector.unregister(connection)
                connection.close()
                continue
            pending += got
            while bounds := whole(pending):
                head, end = bounds
                body = answer(bytes(pending[head:end]))
                del pending[:end]
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))


class Standard(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_POST(self):
        body = answer(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256


def standard():
    server = Server(("127.0.0.1", 0), Standard)
    print(server.server_address[1], flush=True)
    server.serve_forever()


threading.Thread(target={"loop": loop, "standard": standard}[KIND], daemon=True).start()
sys.stdin.read()
