# A server of WebSockets over HTTP/1 that sends everything back.
import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        await socket.send(message)


async def run():
    async with websockets.serve(echo, sys.argv[1], int(sys.argv[2]), subprotocols=["echo"], max_size=None):
        await asyncio.Future()


asyncio.run(run())
