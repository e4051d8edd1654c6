//! What one worker counts: relaxed atomics with one writer, so that counting is a load and a store in a cache line of its own.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

sockway_common::counters! {
    /// One way a connection, a request or a step of it can end. The prefix of the metrics is `sockway_`.
    Counter:
    /// Connections accepted.
    Accepted = "connections_opened_total" [],
    /// Accepting failed: this process or host is out of descriptors or memory.
    AcceptFailed = "accept_errors_total" [],
    /// Connections closed because nothing is known of what they dialled.
    NoOriginal = "connections_closed_total" ["reason" = "no_original_destination"],
    /// Connections closed because the kernel could not watch another.
    NoMemory = "connections_closed_total" ["reason" = "no_memory"],
    /// Connections closed because the service they dialled is gone.
    NoService = "connections_closed_total" ["reason" = "no_service"],
    /// Connections that came in and were reset because a limit was reached.
    InboundRefused = "connections_closed_total" ["reason" = "inbound_limit"],
    /// Connections to a service that speaks TLS whose handshake was finished.
    TlsAccepted = "tls_handshakes_total" [],
    /// Connections ended because the TLS handshake took too long.
    TlsLate = "connections_closed_total" ["reason" = "tls_handshake_timeout"],
    /// Connections to a service that speaks TLS on which something else was said.
    NotTls = "connections_closed_total" ["reason" = "not_tls"],
    /// Connections ended because client and agent did not agree within the TLS handshake.
    TlsRefused = "connections_closed_total" ["reason" = "tls_refused"],
    /// Connections that the client ended within the TLS handshake.
    TlsAborted = "connections_closed_total" ["reason" = "tls_client_aborted"],
    /// HTTP connections that the client ended between exchanges.
    ClientDone = "connections_closed_total" ["reason" = "client_done"],
    /// HTTP connections ended behind a response, because one side or the framing asked for it.
    AgentDone = "connections_closed_total" ["reason" = "after_response"],
    /// HTTP connections ended because they were idle for too long, or by a drain.
    Idle = "connections_closed_total" ["reason" = "idle"],
    /// HTTP connections ended behind the refusal of a request.
    Refused = "connections_closed_total" ["reason" = "request_refused"],
    /// HTTP connections that the client broke off within an exchange.
    ClientAborted = "connections_closed_total" ["reason" = "client_aborted"],
    /// HTTP connections reset because the upstream broke off within a response.
    UpstreamAborted = "connections_closed_total" ["reason" = "upstream_aborted"],
    /// HTTP/2 connections on which something else was said.
    NotHttp2 = "connections_closed_total" ["reason" = "not_http2"],
    /// HTTP/2 connections ended because the client broke a rule.
    BrokenHttp2 = "connections_closed_total" ["reason" = "http2_error"],
    /// HTTP/2 connections ended because the client made work for nothing.
    Flooded = "connections_closed_total" ["reason" = "http2_flood"],
    /// Floods: frames that carry no request.
    FloodControl = "http2_floods_total" ["kind" = "control_frames"],
    /// Floods: requests that are taken back.
    FloodResets = "http2_floods_total" ["kind" = "resets"],
    /// Floods: frames of a body with nothing in them, or next to nothing.
    FloodData = "http2_floods_total" ["kind" = "small_data"],
    /// Floods: a head in too many frames.
    FloodContinuations = "http2_floods_total" ["kind" = "continuations"],
    /// Floods: a head that unpacks to many times what is allowed, or heads that break rules again and again.
    FloodHeads = "http2_floods_total" ["kind" = "heads"],
    /// Opaque connections, WebSockets among them, that both sides ended.
    RelayDone = "connections_closed_total" ["reason" = "relay_done"],
    /// Opaque connections that the client reset.
    RelayClientReset = "connections_closed_total" ["reason" = "relay_client_reset"],
    /// Opaque connections that the upstream reset.
    RelayUpstreamReset = "connections_closed_total" ["reason" = "relay_upstream_reset"],
    /// Opaque connections for which no endpoint could be reached.
    RelayNoEndpoint = "connections_closed_total" ["reason" = "relay_no_endpoint"],
    /// Connections to a service whose protocol is judged by its first bytes: the server spoke first, or ended.
    SpokenByServer = "connections_sniffed_total" ["protocol" = "server_first"],
    /// Connections whose client spoke HTTP/1 first.
    SpokenHttp1 = "connections_sniffed_total" ["protocol" = "http1"],
    /// Connections whose client spoke HTTP/2 first.
    SpokenHttp2 = "connections_sniffed_total" ["protocol" = "http2"],
    /// Connections whose client spoke TLS first.
    SpokenTls = "connections_sniffed_total" ["protocol" = "tls"],
    /// Connections whose client spoke something else first, or ended.
    SpokenOpaque = "connections_sniffed_total" ["protocol" = "opaque"],
    /// Pairs of connections whose programs were told to send straight to each other.
    JoinArmed = "joins_total" ["result" = "armed"],
    /// Pairs not joined because the client is not in the shortcut.
    JoinNoClient = "joins_total" ["result" = "client_not_in_shortcut"],
    /// Pairs not joined because the endpoint is not on this host, or not in the shortcut.
    JoinNoServer = "joins_total" ["result" = "endpoint_not_in_shortcut"],
    /// Pairs not joined because there was no place for another.
    JoinNoRoom = "joins_total" ["result" = "no_room"],
    /// Pairs not joined because the endpoint's socket did not come into the shortcut in time.
    JoinLate = "joins_total" ["result" = "late"],
    /// Requests answered by an endpoint with this class of status.
    Answered2xx = "requests_total" ["outcome" = "2xx"],
    /// Requests answered by an endpoint with this class of status.
    Answered3xx = "requests_total" ["outcome" = "3xx"],
    /// Requests answered by an endpoint with this class of status.
    Answered4xx = "requests_total" ["outcome" = "4xx"],
    /// Requests answered by an endpoint with this class of status.
    Answered5xx = "requests_total" ["outcome" = "5xx"],
    /// Requests answered by an endpoint with a status of 600 or more.
    AnsweredOther = "requests_total" ["outcome" = "other_status"],
    /// Requests that became a WebSocket or a tunnel.
    Upgraded = "requests_total" ["outcome" = "upgraded"],
    /// Requests that a route answers by itself.
    Routed = "requests_total" ["outcome" = "answered_by_route"],
    /// Requests that failed, and were answered as if nothing were the matter: `cluster: failsafe`.
    Absorbed = "requests_total" ["outcome" = "failsafe"],
    /// Requests that failed, and are sent again later: `cluster: failback`.
    Deferred = "requests_total" ["outcome" = "failback"],
    /// Requests that were taken, and whose answers nobody waits for: 202.
    OneWay = "requests_total" ["outcome" = "one_way"],
    /// Requests whose body is longer than what several endpoints are sent: 413.
    BodyTooLarge = "requests_total" ["outcome" = "body_too_large"],
    /// Requests that a limit of their service refused: 429 unless it says otherwise.
    Limited = "requests_total" ["outcome" = "limited"],
    /// Requests for which their service had no room, nor the line of those who wait for it, or none soon enough: 503.
    Unserved = "requests_total" ["outcome" = "pending_refused"],
    /// Requests that a filter of their service answered or reset.
    Filtered = "requests_total" ["outcome" = "filtered"],
    /// Requests that were not sent on because their service's breaker is open: 503.
    CircuitOpen = "requests_total" ["outcome" = "circuit_open"],
    /// Requests that found no place in their service's isolation: 503.
    OverConcurrency = "requests_total" ["outcome" = "over_concurrency"],
    /// Requests that a threshold of their service kept from it: 503.
    Overflow = "requests_total" ["outcome" = "overflow"],
    /// Requests whose answer did not begin within the time of their service's isolation: 504.
    IsolationTimeout = "requests_total" ["outcome" = "isolation_timeout"],
    /// Requests that are answered here because a switch degrades their service.
    Degraded = "requests_total" ["outcome" = "degraded"],
    /// Requests refused as malformed: 400.
    Malformed = "requests_total" ["outcome" = "malformed"],
    /// Requests whose head did not come in time: 408.
    HeadTimeout = "requests_total" ["outcome" = "head_timeout"],
    /// Requests with too long a request line: 414.
    TargetTooLong = "requests_total" ["outcome" = "target_too_long"],
    /// Requests with too long a head or too many fields: 431.
    HeadTooLarge = "requests_total" ["outcome" = "head_too_large"],
    /// Requests for a tunnel that their endpoint cannot be asked for: 501.
    ConnectMethod = "requests_total" ["outcome" = "connect_method"],
    /// Requests whose body did not go on in time: 408.
    BodyTimeout = "requests_total" ["outcome" = "body_timeout"],
    /// Requests of another version of HTTP: 505.
    OtherVersion = "requests_total" ["outcome" = "other_version"],
    /// Requests for which no endpoint could be reached: 503.
    NoEndpoint = "requests_total" ["outcome" = "no_endpoint"],
    /// Requests for which no endpoint accepted in time: 504.
    ConnectTimeout = "requests_total" ["outcome" = "connect_timeout"],
    /// Requests for which no endpoint was reached because TLS with it failed: 502.
    EndpointTls = "requests_total" ["outcome" = "endpoint_tls"],
    /// Requests whose response was malformed: 502.
    BadResponse = "requests_total" ["outcome" = "bad_response"],
    /// Requests whose endpoint ended the connection without a response: 502.
    NoResponse = "requests_total" ["outcome" = "no_response"],
    /// gRPC calls whose time was over before the response was.
    DeadlineExceeded = "requests_total" ["outcome" = "deadline_exceeded"],
    /// Requests whose endpoint did not answer in time: 504.
    ResponseTimeout = "requests_total" ["outcome" = "response_timeout"],
    /// Requests whose endpoint did not go on with the response in time.
    ResponseStalled = "requests_total" ["outcome" = "response_stalled"],
    /// Requests whose client did not take the response in time.
    ClientStalled = "requests_total" ["outcome" = "client_stalled"],
    /// Requests whose endpoint broke off within the response.
    ResponseAborted = "requests_total" ["outcome" = "response_aborted"],
    /// Requests that the client broke off, before or within the response.
    RequestAborted = "requests_total" ["outcome" = "client_aborted"],
    /// gRPC calls that ended with this status.
    GrpcOk = "grpc_responses_total" ["status" = "OK"],
    /// gRPC calls that ended with this status.
    GrpcCancelled = "grpc_responses_total" ["status" = "CANCELLED"],
    /// gRPC calls that ended with this status.
    GrpcUnknown = "grpc_responses_total" ["status" = "UNKNOWN"],
    /// gRPC calls that ended with this status.
    GrpcInvalidArgument = "grpc_responses_total" ["status" = "INVALID_ARGUMENT"],
    /// gRPC calls that ended with this status.
    GrpcDeadlineExceeded = "grpc_responses_total" ["status" = "DEADLINE_EXCEEDED"],
    /// gRPC calls that ended with this status.
    GrpcNotFound = "grpc_responses_total" ["status" = "NOT_FOUND"],
    /// gRPC calls that ended with this status.
    GrpcAlreadyExists = "grpc_responses_total" ["status" = "ALREADY_EXISTS"],
    /// gRPC calls that ended with this status.
    GrpcPermissionDenied = "grpc_responses_total" ["status" = "PERMISSION_DENIED"],
    /// gRPC calls that ended with this status.
    GrpcResourceExhausted = "grpc_responses_total" ["status" = "RESOURCE_EXHAUSTED"],
    /// gRPC calls that ended with this status.
    GrpcFailedPrecondition = "grpc_responses_total" ["status" = "FAILED_PRECONDITION"],
    /// gRPC calls that ended with this status.
    GrpcAborted = "grpc_responses_total" ["status" = "ABORTED"],
    /// gRPC calls that ended with this status.
    GrpcOutOfRange = "grpc_responses_total" ["status" = "OUT_OF_RANGE"],
    /// gRPC calls that ended with this status.
    GrpcUnimplemented = "grpc_responses_total" ["status" = "UNIMPLEMENTED"],
    /// gRPC calls that ended with this status.
    GrpcInternal = "grpc_responses_total" ["status" = "INTERNAL"],
    /// gRPC calls that ended with this status.
    GrpcUnavailable = "grpc_responses_total" ["status" = "UNAVAILABLE"],
    /// gRPC calls that ended with this status.
    GrpcDataLoss = "grpc_responses_total" ["status" = "DATA_LOSS"],
    /// gRPC calls that ended with this status.
    GrpcUnauthenticated = "grpc_responses_total" ["status" = "UNAUTHENTICATED"],
    /// Requests sent on a connection that an earlier one had used.
    UpstreamReused = "upstream_requests_total" ["connection" = "reused"],
    /// Requests sent on a new connection.
    UpstreamFresh = "upstream_requests_total" ["connection" = "new"],
    /// Requests sent once more because a connection ended before any response: doing it twice does no more than doing it once.
    Replayed = "upstream_replays_total" ["reason" = "idempotent"],
    /// Requests sent once more because a connection ended before any response, and TCP knows that no byte of the request arrived.
    ReplayedUnseen = "upstream_replays_total" ["reason" = "never_arrived"],
    /// Connects to an endpoint that it accepted.
    ConnectAccepted = "upstream_connects_total" ["result" = "accepted"],
    /// Connects to an endpoint that were refused, or found it unreachable.
    ConnectFailed = "upstream_connects_total" ["result" = "failed"],
    /// Connects to an endpoint that it did not accept in time.
    ConnectLate = "upstream_connects_total" ["result" = "timeout"],
    /// Connects to an endpoint that it accepted, and whose TLS handshake failed.
    ConnectTls = "upstream_connects_total" ["result" = "tls_failed"],
    /// Connects that failed for want of descriptors, ports or memory here.
    ConnectOurs = "upstream_connects_total" ["result" = "local_error"],
    /// Idle upstream connections that the endpoint had ended.
    PoolGone = "upstream_idle_closed_total" ["reason" = "endpoint_ended"],
    /// Idle upstream connections closed because nobody needed them for long.
    PoolOld = "upstream_idle_closed_total" ["reason" = "age"],
    /// Idle upstream connections closed because there were enough.
    PoolFull = "upstream_idle_closed_total" ["reason" = "enough"],
}

impl Counter {
    /// Of a gRPC call, by its status; one that gRPC does not know is unknown.
    pub fn of_grpc(status: u8) -> Self {
        const ALL: [Counter; 17] = [
            Counter::GrpcOk,
            Counter::GrpcCancelled,
            Counter::GrpcUnknown,
            Counter::GrpcInvalidArgument,
            Counter::GrpcDeadlineExceeded,
            Counter::GrpcNotFound,
            Counter::GrpcAlreadyExists,
            Counter::GrpcPermissionDenied,
            Counter::GrpcResourceExhausted,
            Counter::GrpcFailedPrecondition,
            Counter::GrpcAborted,
            Counter::GrpcOutOfRange,
            Counter::GrpcUnimplemented,
            Counter::GrpcInternal,
            Counter::GrpcUnavailable,
            Counter::GrpcDataLoss,
            Counter::GrpcUnauthenticated,
        ];
        ALL.get(usize::from(status)).copied().unwrap_or(Self::GrpcUnknown)
    }
}

/// Which bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// From clients.
    DownstreamReceived,
    /// To clients.
    DownstreamSent,
    /// From endpoints.
    UpstreamReceived,
    /// To endpoints.
    UpstreamSent,
}

impl Bytes {
    /// All of them.
    pub const ALL: &[Bytes] =
        &[Bytes::DownstreamReceived, Bytes::DownstreamSent, Bytes::UpstreamReceived, Bytes::UpstreamSent];

    /// Metric name without the prefix `sockway_`.
    pub const fn name(self) -> &'static str {
        "bytes_total"
    }

    /// Labels of the metric.
    pub const fn labels(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Bytes::DownstreamReceived => &[("side", "downstream"), ("direction", "received")],
            Bytes::DownstreamSent => &[("side", "downstream"), ("direction", "sent")],
            Bytes::UpstreamReceived => &[("side", "upstream"), ("direction", "received")],
            Bytes::UpstreamSent => &[("side", "upstream"), ("direction", "sent")],
        }
    }

    /// What it counts, in a sentence.
    pub const fn help(self) -> &'static str {
        "Bytes that passed through the agent's hands."
    }
}

/// Upper bounds of a histogram's buckets, in µs; one more bucket has no bound. OpenTelemetry's for HTTP, and finer ones below 5 ms,
/// where a proxy lives.
pub const HISTOGRAM_BOUNDS: [u64; 19] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 75_000, 100_000, 250_000, 500_000, 750_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// How long something took, how often.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; HISTOGRAM_BOUNDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts one. Only the worker that owns the slab does.
    pub fn observe(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        // From the small end: that is where they fall.
        let bucket = HISTOGRAM_BOUNDS.iter().position(|bound| ns <= bound * 1_000).unwrap_or(HISTOGRAM_BOUNDS.len());
        add(&self.buckets[bucket], 1);
        add(&self.sum_ns, ns);
    }

    /// How many fell into each bucket (not cumulative), the last without a bound; and the sum.
    pub fn read(&self) -> ([u64; HISTOGRAM_BOUNDS.len() + 1], Duration) {
        (
            std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            Duration::from_nanos(self.sum_ns.load(Relaxed)),
        )
    }
}

/// All that one worker counts. Written by that worker only, read by whoever scrapes.
#[derive(Debug)]
#[repr(align(128))]
pub struct Slab {
    counters: [AtomicU64; Counter::ALL.len()],
    bytes: [AtomicU64; Bytes::ALL.len()],
    /// Requests: from the head read to the last byte of the response given to the kernel.
    pub request_duration: Histogram,
    /// The agent's own share of it, of a sample of the requests: from the head read to it being sent upstream, and from the
    /// response's head read to it being sent on.
    pub overhead: Histogram,
}

impl Default for Slab {
    fn default() -> Self {
        Self {
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            bytes: std::array::from_fn(|_| AtomicU64::new(0)),
            request_duration: Histogram::default(),
            overhead: Histogram::default(),
        }
    }
}

impl Slab {
    /// Counts one. Only the worker that owns the slab does.
    pub fn count(&self, counter: Counter) {
        add(&self.counters[counter as usize], 1);
    }

    /// Counts bytes. Only the worker that owns the slab does.
    pub fn count_bytes(&self, which: Bytes, bytes: usize) {
        add(&self.bytes[which as usize], bytes as u64);
    }

    /// The count so far.
    pub fn counted(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    /// The bytes so far.
    pub fn counted_bytes(&self, which: Bytes) -> u64 {
        self.bytes[which as usize].load(Relaxed)
    }
}

/// One writer: no atomic addition is needed, and none of its cost.
fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(amount), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for took in [0, 50, 51, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(took));
        }
        let (buckets, sum) = histogram.read();
        assert_eq!((buckets[0], buckets[1], buckets[18], buckets[19]), (2, 1, 1, 1));
        assert_eq!(sum, Duration::from_micros(20_000_102));
    }

    #[test]
    fn no_two_counters_are_the_same_metric() {
        let mut seen = std::collections::HashSet::new();
        for counter in Counter::ALL {
            assert!(seen.insert((counter.name(), counter.labels())), "{counter:?}");
            assert_eq!(*counter as usize, seen.len() - 1);
        }
    }
}
