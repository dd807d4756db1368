"""An asyncio loop with tasks of all kinds that is parked in its own poll."""
import asyncio
from prelude import *

api.setblocking(False)
log = []


async def ticker():
    while True:
        await asyncio.sleep(0.005)
        log.append("tick")


async def echo(reader, writer):
    writer.write(await reader.readexactly(5))
    await writer.drain()
    writer.close()


async def ask(loop, text):
    await loop.sock_sendall(api, text.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        try:
            part = await loop.sock_recv(api, 65536)
        except ConnectionResetError:
            part = b""
        if not part:
            os._exit(98)
        data += part
    return data.split(b"\r\n\r\n", 1)[1].decode()


async def main():
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    queue, event = asyncio.Queue(), asyncio.Event()
    getter = asyncio.create_task(queue.get())
    waiter = asyncio.create_task(event.wait())
    tick = asyncio.create_task(ticker())
    in_thread = loop.run_in_executor(None, time.sleep, 0.2)
    rounds = 0
    while rounds < 2:
        me = await ask(loop, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: x\r\n\r\n")
        if me == "PASS":
            await ask(loop, "POST /answer HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
            continue
        rounds += 1
        lines = []
        try:
            before = len(log)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            equal(await reader.read(), b"hello")
            await queue.put(me)
            event.set()
            if not getter.done():
                equal(await getter, me)
            await waiter
            await in_thread
            while len(log) < before + 3:
                await asyncio.sleep(0.001)
            child = await asyncio.create_subprocess_exec("/bin/echo", "from a child", stdout=asyncio.subprocess.PIPE)
            equal(await child.stdout.read(), b"from a child\n")
            equal(await child.wait(), 0)
            equal(getter.result(), me)
            lines.append("ok the_loop_runs_on")
        except BaseException:
            lines.append("failed the_loop_runs_on: " + traceback.format_exc().strip().replace("\n", " / "))
        answer = "\n".join(lines)
        await ask(loop, f"POST /answer HTTP/1.1\r\nhost: x\r\ncontent-length: {len(answer)}\r\n\r\n{answer}")
    await ask(loop, "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: x\r\n\r\n")


asyncio.run(main())
