# A server of WebSockets over HTTP/2, by hypercorn, that sends everything back.
import asyncio
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config


async def echo(scope, receive, send):
    if scope["type"] == "lifespan":
        return
    await receive()
    await send({"type": "websocket.accept", "subprotocol": "echo"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "bytes": event["bytes"]})


config = Config()
config.bind = [f"{sys.argv[1]}:{sys.argv[2]}"]
asyncio.run(serve(echo, config))
