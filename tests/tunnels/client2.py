# A WebSocket over HTTP/2 (RFC 8441): sends messages of these lengths and prints how long their echoes are. Told so, it waits at the end until
# the other side has ended the stream as well, which not every server does.
import socket
import sys

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RemoteSettingsChanged, ResponseReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

address = (sys.argv[1], int(sys.argv[2]))
waits = sys.argv[3] == "waits"
lengths = [int(length) for length in sys.argv[4:]]
link = socket.create_connection(address, timeout=soon)
http = H2Connection(H2Configuration(client_side=True))
websocket = Connection(ConnectionType.CLIENT)
http.initiate_connection()
state = {"offered": False, "ended": False}


def step():
    link.sendall(http.data_to_send())
    received = link.recv(65536)
    if not received:
        sys.exit("the connection has ended")
    for event in http.receive_data(received):
        if isinstance(event, RemoteSettingsChanged):
            state["offered"] |= bool(http.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL))
        elif isinstance(event, ResponseReceived):
            state["head"] = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, DataReceived):
            http.acknowledge_received_data(event.flow_controlled_length, 1)
            if event.data:
                websocket.receive_data(event.data)
        elif isinstance(event, StreamEnded):
            state["ended"] = True
        elif isinstance(event, StreamReset):
            sys.exit(f"reset: {event.error_code}")
    link.sendall(http.data_to_send())


def send(data):
    while data:
        room = min(http.local_flow_control_window(1), http.max_outbound_frame_size, len(data))
        if room == 0:
            step()
            continue
        http.send_data(1, data[:room])
        data = data[room:]
        link.sendall(http.data_to_send())


while not state["offered"]:
    step()
fields = {":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":path": "/chat", ":authority": "test"}
fields |= {"sec-websocket-version": "13", "sec-websocket-protocol": "echo", "origin": "http://test"}
http.send_headers(1, list(fields.items()))
while "head" not in state:
    step()
head = state["head"]
print(head[":status"], head.get("sec-websocket-protocol"), "sec-websocket-accept" in head)
if head[":status"] != "200":
    sys.exit()
for length in lengths:
    send(websocket.send(BytesMessage(data=b"w" * length)))
    whole = b""
    while len(whole) < length:
        for event in websocket.events():
            whole += event.data
        if len(whole) < length:
            step()
    print(len(whole), whole == b"w" * length)
send(websocket.send(CloseConnection(code=1000)))
closed = None
while closed is None:
    step()
    closed = next((event.code for event in websocket.events() if isinstance(event, CloseConnection)), None)
if waits:
    http.end_stream(1)
    link.sendall(http.data_to_send())
while waits and not state["ended"]:
    step()
print("closed", int(closed))
