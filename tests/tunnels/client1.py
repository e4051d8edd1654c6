# A WebSocket over HTTP/1: sends messages of these lengths and prints how long their echoes are. At the end it waits for as long as it is told
# until the other side has ended the connection as well.
import asyncio
import sys

import websockets

address = f"ws://{sys.argv[1]}:{sys.argv[2]}/chat"


async def run():
    times = {"open_timeout": soon, "close_timeout": soon if sys.argv[3] == "waits" else 0.1}
    async with websockets.connect(address, subprotocols=["echo"], max_size=None, **times) as socket:
        print(socket.subprotocol)
        for length in map(int, sys.argv[4:]):
            await socket.send(b"w" * length)
            whole = await asyncio.wait_for(socket.recv(), soon)
            print(len(whole), whole == b"w" * length)
    print("closed", socket.close_code)


asyncio.run(run())
