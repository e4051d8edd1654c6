"""A WebSocket server and a WebSocket client by the library `websockets`.

`serve ADDRESS` echoes until it is killed; `call ADDRESS` says, asks and closes in every way, and prints `done`.
"""

import asyncio
import os
import sys

import websockets

ip, port = sys.argv[2].rsplit(":", 1)


async def echo(socket, *_):
    async for message in socket:
        if message == "close":
            await socket.close(4001, "told so")
        else:
            await socket.send(message)


async def serve():
    async with websockets.serve(echo, ip, int(port), max_size=None, subprotocols=["one", "two"]):
        print("serving", flush=True)
        await asyncio.Future()


async def talk(url, compression):
    binary = os.urandom(3_000_000)
    async with websockets.connect(url, max_size=None, compression=compression, subprotocols=["two"]) as socket:
        assert socket.subprotocol == "two"
        for message in ("", "☕", "x" * 70_000, b"", binary):
            await socket.send(message)
            assert await socket.recv() == message
        # In fragments, and many under way at a time.
        await socket.send(["frag", "men", "ted"])
        assert await socket.recv() == "fragmented"
        await asyncio.gather(*(socket.send(str(serial)) for serial in range(1_000)))
        assert [await socket.recv() for _ in range(1_000)] == [str(serial) for serial in range(1_000)]
        await asyncio.wait_for(await socket.ping(b"are you there?"), soon)
        await socket.send("close")
        try:
            await socket.recv()
            raise AssertionError("still open")
        except websockets.ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "told so"), closed


async def call():
    url = f"ws://{sys.argv[2]}/chat"
    for compression in (None, "deflate"):
        await asyncio.wait_for(talk(url, compression), soon)
    await asyncio.wait_for(asyncio.gather(*(talk(url, None) for _ in range(10))), 4 * soon)
    async with websockets.connect(url) as socket:
        await socket.close(1000, "bye")
    print("done")


asyncio.run({"serve": serve, "call": call}[sys.argv[1]]())
