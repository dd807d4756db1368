"""Sockets: pairs with what was queued, listeners that accept again, connections that are reset."""
from prelude import *

stream = socket.socketpair()
stream[0].send(b"first ")
stream[0].send(b"second")
datagram = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
for message in [b"one", b"", b"three"]:
    datagram[0].send(message)
datagram[1].send(b"back")
packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
for message in [b"packet 1", b"packet 2"]:
    packets[1].send(message)
packets[0].setblocking(False)
widowed, gone = socket.socketpair()
gone.send(b"farewell")
gone.close()
big = socket.socketpair()
big[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
big_size = big[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

tcp = socket.create_server(("127.0.0.1", 0), backlog=7)
tcp6 = socket.socket(socket.AF_INET6)
tcp6.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
tcp6.bind(("::1", 0))
tcp6.listen()
tcp6.settimeout(30)
by_path = socket.socket(socket.AF_UNIX)
os.umask(0o027)
os.mkdir("/tmp/sockets")
by_path.bind("/tmp/sockets/stream")
os.umask(0o022)
by_path.listen()
path_mode = os.stat("/tmp/sockets/stream").st_mode
abstract = socket.socket(socket.AF_UNIX)
abstract.bind(b"\0abstract name")
abstract.listen()
path_dgram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
path_dgram.bind("/tmp/sockets/dgram")
stale = socket.socket(socket.AF_UNIX)
stale.bind("/tmp/sockets/stale")
stale.close()
client = socket.create_connection(tcp.getsockname())
server = tcp.accept()[0]
client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
udp.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
udp.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
connected = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
connected.connect(udp.getsockname())
connected_name = connected.getsockname()
member, speaker = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
member.bind(("", 0))
member.settimeout(PATIENCE)
LOOPBACK = struct.pack("4si", bytes(4), 1)
member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.3.2.1") + LOOPBACK)
speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
speaker.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
unbound = socket.socket()
unbound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
unbound.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 33)
unbound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 5, 0))
waiting = socket.socket()
waiting.setblocking(False)


@check
def queues_are_there(me):
    equal(stream[1].recv(100), b"first second")
    equal([datagram[1].recv(100) for _ in range(3)], [b"one", b"", b"three"])
    equal(datagram[0].recv(100), b"back")
    equal([packets[0].recv(100) for _ in range(2)], [b"packet 1", b"packet 2"])
    fails(errno.EAGAIN, lambda: packets[0].recv(1))


@check
def pairs_still_connect(me):
    for one, other in [stream, datagram, packets, big]:
        other.send(me.encode())
        one.setblocking(True)
        equal(one.recv(100), me.encode())
    equal(big[0].getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF), big_size)


@check
def the_other_end_is_gone(me):
    equal(widowed.recv(100), b"farewell")
    equal(widowed.recv(100), b"")
    fails(errno.EPIPE, lambda: widowed.send(b"x"))


@check
def listeners_accept(me):
    for listener in [tcp, tcp6, by_path, abstract]:
        with socket.socket(listener.family) as new:
            new.connect(listener.getsockname())
            new.send(me.encode())
            equal(listener.accept()[0].recv(100), me.encode())


@check
def files_of_sockets(me):
    equal(os.stat("/tmp/sockets/stream").st_mode, path_mode)
    equal(os.stat("/tmp/sockets/stream").st_uid, os.getuid())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as new:
        new.sendto(b"to a path", "/tmp/sockets/dgram")
    equal(path_dgram.recv(100), b"to a path")
    with socket.socket(socket.AF_UNIX) as new:
        fails(errno.ECONNREFUSED, lambda: new.connect("/tmp/sockets/stale"))


@check
def a_connection_is_reset(me):
    for end in [client, server]:
        fails(errno.ECONNRESET, lambda: end.recv(1))
        end.close()
    with socket.create_connection(tcp.getsockname()) as new:
        new.send(b"again")
        equal(tcp.accept()[0].recv(100), b"again")


@check
def datagrams_pass(me):
    connected.send(me.encode())
    data, sender = udp.recvfrom(100)
    equal((data, sender), (me.encode(), connected_name))
    equal(udp.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST), 1)
    equal(udp.getsockopt(socket.IPPROTO_IP, socket.IP_TOS), 0x10)


@check
def options_are_set(me):
    equal(unbound.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)
    equal(unbound.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 33)
    equal(unbound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16), struct.pack("ll", 5, 0))
    equal(tcp6.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR), 1)
    equal(fcntl.fcntl(waiting, fcntl.F_GETFL) & os.O_NONBLOCK, os.O_NONBLOCK)
    unbound.connect(tcp.getsockname())


@check
def multicast_groups_are_heard(me):
    equal(speaker.getsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL), 0)
    speaker.sendto(me.encode(), ("239.3.2.1", member.getsockname()[1]))
    equal(member.recv(100), me.encode())
    member.setsockopt(socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, socket.inet_aton("239.3.2.1") + LOOPBACK)


serve()
