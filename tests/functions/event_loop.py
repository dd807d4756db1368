"""An asyncio loop with its own thread, tasks and streams, made at init."""

import asyncio
import threading

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
beats = 0


async def heartbeat():
    global beats
    while True:
        await asyncio.sleep(0.005)
        beats += 1


async def echo(reader, writer):
    while data := await reader.read(100):
        writer.write(data.upper())
    writer.close()


async def start():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    return server, asyncio.create_task(heartbeat()), asyncio.Queue()


server, task, queue = asyncio.run_coroutine_threadsafe(start(), loop).result()


async def talk():
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    answer = await reader.read(100)
    writer.close()
    before = beats
    while beats == before:
        await asyncio.sleep(0.001)
    child = await asyncio.create_subprocess_exec("echo", "out", stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    return answer, out


def handler(event, context):
    assert asyncio.run_coroutine_threadsafe(talk(), loop).result() == (b"HELLO", b"out\n")
    assert asyncio.run(asyncio.sleep(0, "new loop")) == "new loop"
    assert not task.done()
    return "ok"
