"""Socket pairs with content, listening and bound sockets; other connections are reset."""

import socket
import struct

pairs = {}
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    left.send(b"first")
    left.send(b"second")
    right.send(b"back")
    pairs[kind] = left, right
pairs[socket.SOCK_STREAM][0].setblocking(False)

listener = socket.create_server(("127.0.0.1", 0), backlog=7)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
address = listener.getsockname()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\0rouse-test")
abstract.listen()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("127.0.0.1", 0))
datagram_address = datagrams.getsockname()
unbound = socket.socket()
unbound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
v6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)

client = socket.create_connection(address)
server, _ = listener.accept()
client.send(b"x")
linger = struct.pack("ii", 1, 5)
client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


def handler(event, context):
    for kind, (left, right) in pairs.items():
        if kind == socket.SOCK_STREAM:
            assert right.recv(100) == b"firstsecond"
        else:
            assert [right.recv(100), right.recv(100)] == [b"first", b"second"]
        assert left.recv(100) == b"back"
        left.send(b"again")
        assert right.recv(100) == b"again"
    assert not pairs[socket.SOCK_STREAM][0].getblocking() and pairs[socket.SOCK_STREAM][1].getblocking()

    assert listener.getsockname() == address
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    with socket.create_connection(address) as new:
        accepted, _ = listener.accept()
        new.send(b"hello")
        assert accepted.recv(5) == b"hello"
        accepted.close()
    with socket.socket(socket.AF_UNIX) as new:
        new.connect("\0rouse-test")
        accepted, _ = abstract.accept()
        accepted.send(b"hello")
        assert new.recv(5) == b"hello"
        accepted.close()
    assert datagrams.getsockname() == datagram_address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as new:
        new.sendto(b"ping", datagram_address)
        assert datagrams.recv(10) == b"ping"
    assert unbound.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1

    if event == "restored":
        # The peer of a connection is gone, and the client hears of it at once instead of waiting.
        for end in (client, server):
            end.settimeout(10)
            try:
                assert end.recv(100) in (b"", b"x")
                end.send(b"x")
                assert end.recv(100) == b""
            except ConnectionError:
                pass
    else:
        assert server.recv(10) == b"x"
    return "ok"
