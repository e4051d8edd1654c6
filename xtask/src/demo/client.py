# A client of the demo: one GET to argv[1]:argv[2]; prints the answer, and whom the socket takes for its peer.
import http.client
import sys

connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
connection.connect()
address, port = connection.sock.getpeername()
connection.request("GET", "/")
response = connection.getresponse()
body = response.read().decode().strip()
if response.status != 200:
    sys.exit(f"{response.status} {response.reason}: {body}")
print(body)
print(f"{address}:{port}")
