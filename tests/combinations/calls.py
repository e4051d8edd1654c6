"""Either side of gRPC calls without generated code.

serve ADDRESS      /t.T/ok answers; /t.T/fail is UNAVAILABLE; /t.T/once is UNAVAILABLE to the first of each key and tells `x-pushback` as
                   grpc-retry-pushback-ms; /t.T/slow takes a while; /t.T/left tells the seconds that are left. Prints a line for each call.
call ADDRESS METHOD [NAME=VALUE...]      prints the code, and the answer or the details.
"""

import sys
import time
from concurrent import futures

import grpc


class Handler(grpc.GenericRpcHandler):
    def __init__(self):
        self.seen = set()

    def service(self, details):
        method = details.method.rsplit("/", 1)[1]
        said = dict(details.invocation_metadata)

        def answer(request, context):
            print("asked", method, flush=True)
            if method == "slow":
                end = time.monotonic() + float(said.get("x-seconds", "1"))
                while context.is_active() and time.monotonic() < end:
                    time.sleep(0.02)
                if not context.is_active():
                    print("taken back", flush=True)
            if method == "left":
                left = context.time_remaining()
                return b"none" if left is None else b"%d" % left
            if method == "fail":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server fails")
            if method == "once" and said["x-key"] not in self.seen:
                self.seen.add(said["x-key"])
                if "x-pushback" in said:
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", said["x-pushback"]),))
                context.abort(grpc.StatusCode.UNAVAILABLE, "the server fails once")
            return b"good"

        return grpc.unary_unary_rpc_method_handler(answer)


def serve(address):
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((Handler(),))
    assert server.add_insecure_port(address)
    server.start()
    print("serving", flush=True)
    server.wait_for_termination()


def call(address, method, *said):
    options = [("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]
    metadata = [tuple(pair.split("=", 1)) for pair in said]
    timeout = float(dict(metadata).get("x-timeout", "20"))
    with grpc.insecure_channel(address, options) as channel:
        ask = channel.unary_unary(f"/t.T/{method}")
        try:
            print("OK", ask(b"hello", timeout=timeout, metadata=metadata).decode() or "and nothing")
        except grpc.RpcError as error:
            print(error.code().name, "-", error.details())


{"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
