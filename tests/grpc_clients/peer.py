"""A gRPC server and a gRPC client on grpcio, without generated code: messages are bytes.

`serve ADDRESS` serves until it is killed and says on standard output what it was told to give up.
`call ADDRESS` calls everything that the server has, and prints `done`; `nobody ADDRESS` calls where no endpoint is; `told ADDRESS`, too, and wants to be told by the agent.
"""

import concurrent.futures
import sys
import threading

import grpc

LARGE = 20_000_000
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CODES = {code.value[0]: code for code in grpc.StatusCode}


def unary(request, context):
    told = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", told.get("x-told", "")), ("x-bin", told.get("x-told-bin", b""))))
    context.set_trailing_metadata((("x-trailing", "t" * 300), ("x-trailing-bin", bytes(range(256)))))
    if "x-code" in told:
        context.abort(CODES[int(told["x-code"])], "told so: 100 % ☕")
    return request


def total(requests, _context):
    sizes = [len(request) for request in requests]
    return f"{len(sizes)} {sum(sizes)}".encode()


def count(request, _context):
    messages, size = map(int, request.split())
    for serial in range(messages):
        yield serial.to_bytes(4, "big") + b"m" * size


def echo(requests, _context):
    yield from requests


def hang(request, context):
    given_up = threading.Event()

    def give_up():
        # Here, and not behind the wait: whose call ends while its first answer is on the way is not asked for another.
        sys.stdout.write(f"given up: {request.decode()}\n")
        sys.stdout.flush()
        given_up.set()

    context.add_callback(give_up)
    left = context.time_remaining()
    yield b"none" if left is None or left > 1e6 else f"{left:.3f}".encode()
    given_up.wait()


def serve(address):
    kinds = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Total": grpc.stream_unary_rpc_method_handler(total),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Echo": grpc.stream_stream_rpc_method_handler(echo),
        "Hang": grpc.unary_stream_rpc_method_handler(hang),
    }
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(32), options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Peer", kinds),))
    assert server.add_insecure_port(address), address
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def fails(call, code):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError(f"it did not fail with {code}")


def call_unary(channel):
    unary = channel.unary_unary("/test.Peer/Unary")
    for size in (0, 1, 16_379, 16_384, 65_536, LARGE):
        message = b"u" * size
        assert unary(message, timeout=soon) == message, size
    answer, call = unary.with_call(b"x", metadata=(("x-told", "a, b"), ("x-told-bin", bytes(range(256)))), timeout=soon)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert (answer, initial["x-initial"], initial["x-bin"]) == (b"x", "a, b", bytes(range(256))), initial
    assert (trailing["x-trailing"], trailing["x-trailing-bin"]) == ("t" * 300, bytes(range(256))), trailing
    for number in range(1, 17):
        error = fails(lambda: unary(b"x", metadata=(("x-code", str(number)),), timeout=soon), CODES[number])
        assert error.details() == "told so: 100 % ☕", error
        assert dict(error.trailing_metadata())["x-trailing"] == "t" * 300, error
    fails(lambda: channel.unary_unary("/test.Peer/None")(b"x", timeout=soon), grpc.StatusCode.UNIMPLEMENTED)


def call_streams(channel):
    pieces = [b"p" * size for size in (0, 1, 70_000) * 50]
    expected = f"{len(pieces)} {sum(map(len, pieces))}".encode()
    assert channel.stream_unary("/test.Peer/Total")(iter(pieces), timeout=soon) == expected
    for messages, size in ((0, 0), (1_000, 10), (50, 100_000)):
        answers = list(channel.unary_stream("/test.Peer/Count")(f"{messages} {size}".encode(), timeout=soon))
        assert [int.from_bytes(answer[:4], "big") for answer in answers] == list(range(messages))
        assert all(len(answer) == size + 4 for answer in answers)
    assert list(channel.stream_stream("/test.Peer/Echo")(iter(pieces), timeout=soon)) == pieces
    # In turns: each message is sent when the one before has come back.
    ask = threading.Semaphore(1)

    def turns():
        for serial in range(100):
            assert ask.acquire(timeout=soon)
            yield str(serial).encode()

    for serial, answer in enumerate(channel.stream_stream("/test.Peer/Echo")(turns(), timeout=soon)):
        assert answer == str(serial).encode()
        ask.release()


def call_and_give_up(channel, who):
    hang = channel.unary_stream("/test.Peer/Hang")
    call = hang(f"{who} cancels".encode())
    assert next(call) == b"none"
    call.cancel()
    assert fails(lambda: next(call), grpc.StatusCode.CANCELLED)
    call = hang(f"{who} has a deadline".encode(), timeout=1)
    assert 0 < float(next(call)) < 1.1
    fails(lambda: next(call), grpc.StatusCode.DEADLINE_EXCEEDED)
    unary = channel.unary_unary("/test.Peer/Unary")
    calls = [unary.future(b"c" * 1_000, timeout=soon) for _ in range(500)]
    assert all(call.result() == b"c" * 1_000 for call in calls)


def call(address):
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        call_unary(channel)
        call_streams(channel)
        call_and_give_up(channel, "python")
    compressed = grpc.insecure_channel(address, options=OPTIONS, compression=grpc.Compression.Gzip)
    with compressed as channel:
        assert channel.unary_unary("/test.Peer/Unary")(b"z" * 1_000_000, timeout=soon) == b"z" * 1_000_000


def nobody(address, is_told=False):
    with grpc.insecure_channel(address) as channel:
        error = fails(lambda: channel.unary_unary("/test.Peer/Unary")(b"x", timeout=soon), grpc.StatusCode.UNAVAILABLE)
        if is_told:
            assert error.details().startswith("sockway: "), error
            assert not error.initial_metadata(), "trailers only"
        call = channel.stream_stream("/test.Peer/Echo")(iter([b"x"] * 10), timeout=soon)
        fails(lambda: next(call), grpc.StatusCode.UNAVAILABLE)


def told(address):
    nobody(address, is_told=True)


{"serve": serve, "call": call, "nobody": nobody, "told": told}[sys.argv[1]](sys.argv[2])
print("done")
