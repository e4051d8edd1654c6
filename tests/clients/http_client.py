"""What http.client and urllib3 make of a service, with every way that they have to send a body. Argument: its address."""

import http.client
import io
import socket
import sys

import urllib3

ip, port = sys.argv[1].rsplit(":", 1)
BODY = bytes(at % 251 for at in range(300_000))


def pieces():
    for at in range(0, len(BODY), 7_000):
        yield BODY[at : at + 7_000]


def by_http_client(connection):
    for _ in range(3):
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"web"
    connection.request("HEAD", "/bytes/1000")
    response = connection.getresponse()
    assert (response.read(), response.headers["content-length"]) == (b"", "1000")
    for path in ("/echo", "/echo-chunked"):
        bodies = [(BODY, {}), (io.BytesIO(BODY), {}), (pieces(), {}), (pieces(), {"Content-Length": str(len(BODY))})]
        for body, headers in bodies:
            connection.request("POST", path, body=body, headers=headers)
            assert connection.getresponse().read() == BODY, (path, body)
    sock = connection.sock
    connection.request("GET", "/until-close/100000")
    assert len(connection.getresponse().read()) == 100_000
    assert connection.sock is None or connection.sock is sock
    # A response of which only a part is read, and a client that leaves.
    connection.request("GET", "/bytes/10000000")
    assert len(connection.getresponse().read(1_000)) == 1_000
    connection.close()


def by_urllib3():
    pool = urllib3.HTTPConnectionPool(ip, int(port), maxsize=1, block=True, timeout=soon, retries=False)
    for _ in range(5):
        assert pool.request("GET", "/").data == b"web"
    assert pool.request("POST", "/echo", body=pieces(), chunked=True).data == BODY
    assert pool.request("POST", "/echo", body=BODY).data == BODY
    assert pool.request("POST", "/echo", fields={"file": ("name", BODY)}).data.count(BODY) == 1
    response = pool.request("GET", "/chunked/500000", preload_content=False)
    assert sum(len(piece) for piece in response.stream(1_000)) == 500_000
    response.release_conn()
    assert pool.request("GET", "/status/503").status == 503
    assert pool.num_connections == 1, "a pool that keeps its connection"
    assert urllib3.PoolManager(timeout=soon, retries=False).request("GET", f"http://{sys.argv[1]}/close").data == b"web"


class Mapped(http.client.HTTPConnection):
    """Dials as programs do that have IPv6 sockets only, Java's among them."""

    def connect(self):
        self.sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        self.sock.settimeout(soon)
        self.sock.connect((f"::ffff:{ip}", int(port)))
        assert self.sock.getpeername()[:2] == (f"::ffff:{ip}", int(port))


by_http_client(http.client.HTTPConnection(ip, int(port), timeout=soon))
by_http_client(Mapped(ip, int(port)))
by_urllib3()
print("done")
