"""How long a server's first words take through the agent and directly, the two in turn.

Arguments: both addresses and ports, what to ask first (it may be nothing), how many connections on either way.
Prints the medians in microseconds: through the agent, directly.
"""

import socket
import statistics
import sys
import time

through, direct = ((sys.argv[at], int(sys.argv[at + 1])) for at in (1, 3))
question = sys.argv[5].encode().decode("unicode_escape").encode("latin-1")
connections = int(sys.argv[6])


def first_words(address):
    begun = time.perf_counter_ns()
    with socket.create_connection(address, timeout=soon) as server:  # noqa: F821, given by the harness
        if question:
            server.sendall(question)
        assert server.recv(4096), "the server has said nothing"
        took = (time.perf_counter_ns() - begun) / 1000
        # What the server does to end this connection is no part of the next one.
        server.shutdown(socket.SHUT_WR)
        while server.recv(4096):
            pass
        return took


pairs = [(first_words(through), first_words(direct)) for _ in range(connections)]
print(*(statistics.median(side) for side in zip(*pairs)))
