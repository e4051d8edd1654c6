//! What a request is counted as says of its service, and for what an answer of the agent's own stands.

use crate::{
    cluster::Seen,
    config::guard::Why,
    decode::grpc,
    filter::End,
    proxy::http::{Reply, outcome},
    record::Counter,
};

/// Whether a status of gRPC says that the server failed.
pub(in crate::proxy) fn is_server_error(code: u8) -> bool {
    Seen::Answered { status: 200, grpc_status: Some(code) }.status().is_some_and(|status| status >= 500)
}

/// Whether a request that is counted so has failed; `None`: that says nothing of the service.
pub(super) fn has_failed(counter: Counter) -> Option<bool> {
    match counter {
        Counter::Answered2xx
        | Counter::Answered3xx
        | Counter::Answered4xx
        | Counter::AnsweredOther
        | Counter::Upgraded => Some(false),
        Counter::ResponseStalled | Counter::ResponseAborted | Counter::Absorbed | Counter::Deferred => Some(true),
        counter => match why(counter)? {
            Why::Timeout | Why::Unreached | Why::NoResponse | Why::ServerError => Some(true),
            _ => None,
        },
    }
}

/// What a request is counted as by its breakers that ends so in its endpoint's stead; and why, if that is a failure.
pub(in crate::proxy) fn seems(end: &End, is_grpc: bool) -> (Counter, Option<Why>) {
    let counter = match end {
        End::Reset => Counter::NoResponse,
        End::Answer(local) if is_grpc => {
            let code = local.grpc.unwrap_or_else(|| grpc::of_http(local.status));
            if is_server_error(code) { Counter::Answered5xx } else { Counter::Answered2xx }
        }
        End::Answer(local) => outcome(local.status),
    };
    (counter, why(counter))
}

/// For what an answer of the agent's own stands.
pub(in crate::proxy) fn why_of(reply: &Reply) -> Why {
    why(reply.counter).unwrap_or(Why::Pending)
}

/// Why a request that is counted so has no answer of an endpoint that is wanted.
pub(super) fn why(counter: Counter) -> Option<Why> {
    Some(match counter {
        Counter::CircuitOpen => Why::CircuitOpen,
        Counter::Limited => Why::Limit,
        Counter::OverConcurrency => Why::Concurrency,
        Counter::Overflow => Why::Overflow,
        Counter::IsolationTimeout | Counter::ResponseTimeout | Counter::DeadlineExceeded => Why::Timeout,
        Counter::NoEndpoint | Counter::ConnectTimeout | Counter::EndpointTls => Why::Unreached,
        Counter::NoResponse | Counter::BadResponse => Why::NoResponse,
        Counter::Answered5xx => Why::ServerError,
        Counter::Degraded => Why::Degraded,
        Counter::Unserved => Why::Pending,
        _ => return None,
    })
}
