# A client of the demo that keeps its connection: for every line on its standard input, one GET on the same connection to argv[1]:argv[2].
import http.client
import sys

connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=5)
connection.connect()
# Without this the library would dial again, and nobody would notice that the connection broke.
connection.auto_open = False
for _ in sys.stdin:
    connection.request("GET", "/")
    print(connection.getresponse().read().decode().strip(), flush=True)
