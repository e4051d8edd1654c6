//! A request's time, as it runs: what is left of it, who is told, and what happens when it is over.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Sleep, sleep_until};

use super::guard::is_server_error;
use crate::{
    cluster::{Pace, RouteState, Service},
    config::{
        Route,
        deadline::{Carrier, Timing},
    },
    deadline::{
        self, Budget,
        auto::{Sample, learnt},
    },
    decode::grpc,
    record::Counter,
    route::Request,
};

/// What is asked of a head: whether it is of gRPC, and who says how long it waits.
const ASKED: [&str; 1 + Carrier::NAMES.len()] = {
    let [grpc, expected, upstream, mosn, micro] = Carrier::NAMES;
    ["content-type", grpc, expected, upstream, mosn, micro]
};

/// What is said of the time of requests, and what is known of how long they take, where that is followed.
#[derive(Clone, Debug)]
pub struct Ruled {
    /// What is said.
    pub timing: Timing,
    /// What is known.
    pub pace: Option<Pace>,
}

impl Ruled {
    /// By a route.
    pub fn by(route: &Route, state: &RouteState) -> Option<Self> {
        route.timing.map(|timing| Self { timing, pace: state.pace.clone() })
    }

    /// By a route first, and by its service where that says nothing; with the timeout as it is now.
    pub fn of(route: Option<Self>, service: &Service) -> Option<Self> {
        let of_service = service.config.timing;
        let mut ruled = match route {
            None => Self { timing: of_service?, pace: service.pace.clone() },
            Some(route) if route.timing.timeout.is_some() => Self { timing: route.timing.or(of_service), ..route },
            Some(route) => Self { timing: route.timing.or(of_service), pace: service.pace.clone() },
        };
        if let Some(pace) = &ruled.pace {
            ruled.timing.timeout = Some(pace.timeout());
        }
        Some(ruled)
    }
}

/// Takes note of how long a request took that began then, and is counted as this.
pub fn learn(pace: &Pace, began: Instant, counter: Counter, grpc: Option<u8>) {
    let took = began.elapsed();
    let sample = match counter {
        // Who fails fast is not fast.
        _ if grpc.is_some_and(is_server_error) => return,
        Counter::Answered2xx | Counter::Answered3xx | Counter::Answered4xx | Counter::AnsweredOther => {
            Sample::Took(took)
        }
        Counter::DeadlineExceeded
        | Counter::ResponseTimeout
        | Counter::IsolationTimeout
        | Counter::ResponseStalled
        | Counter::RequestAborted => Sample::GivenUp(took),
        _ => return,
    };
    pace.learn(|known| learnt(known, sample));
}

/// A request's time.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    budget: Budget,
    began: Instant,
}

impl Time {
    /// Of a request that came at this moment, by what its service or route says and what stands in its head; `None`: nobody waits for less
    /// than for ever.
    pub fn of(timing: Timing, request: &Request<'_>, began: Instant) -> Option<Self> {
        let [kind, said @ ..] = request.first_of(&ASKED);
        let is_grpc = kind.is_some_and(grpc::is_grpc);
        deadline::budget(timing, is_grpc, &said).map(|budget| Self { budget, began })
    }

    /// All of it.
    pub fn given(&self) -> Duration {
        self.budget.time
    }

    /// Whether it is what the caller gave, and less than what its service or route does.
    pub fn is_callers(&self) -> bool {
        self.budget.is_callers
    }

    /// What is left.
    pub fn left(&self) -> Duration {
        self.budget.time.saturating_sub(self.began.elapsed())
    }

    /// Whether nothing is left: whoever would be asked would work for nobody.
    pub fn is_over(&self) -> bool {
        self.left().is_zero()
    }

    /// When it is over; `None`: never.
    pub fn until(&self) -> Option<Instant> {
        self.began.checked_add(self.budget.time)
    }

    /// Writes what is left into the fields of who is asked next, in the place of what the caller said.
    pub fn tell(&self, headers: &mut HeaderMap) {
        for carrier in self.budget.replaced.each() {
            headers.remove(carrier.name());
        }
        let left = self.left();
        for carrier in self.budget.told.each() {
            // Digits always are a value.
            if let Ok(value) = HeaderValue::try_from(deadline::write(carrier, left)) {
                headers.insert(HeaderName::from_static(carrier.name()), value);
            }
        }
    }

    /// Whether a field of this name is not passed on as it stands.
    pub fn replaces(&self, name: &[u8]) -> bool {
        self.budget.replaced.each().any(|carrier| carrier.name().as_bytes().eq_ignore_ascii_case(name))
    }

    /// As [`Time::tell`], as lines of HTTP/1.
    pub fn lines(&self) -> Vec<u8> {
        let left = self.left();
        let line = |carrier| format!("{}: {}\r\n", Carrier::name(carrier), deadline::write(carrier, left));
        self.budget.told.each().map(line).collect::<String>().into_bytes()
    }
}

/// Rings when a request's time is over; one that was not set never does.
#[derive(Default)]
pub struct Clock(Option<Running>);

struct Running {
    time: Time,
    pace: Cell<Option<Pace>>,
    rings: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Of a request that is on its way; how long it takes is learnt from.
    pub fn of(time: Time, pace: Option<Pace>) -> Self {
        let rings = time.until().map(|until| Box::pin(sleep_until(until.into())));
        Self(Some(Running { time, pace: pace.into(), rings }))
    }

    /// The request is counted as this; what is said first holds.
    pub fn told(&self, counter: Counter) {
        if let Some(Running { time, pace, .. }) = &self.0
            && let Some(pace) = pace.take()
        {
            learn(&pace, time.began, counter, None);
        }
    }

    /// The time that runs.
    pub fn time(&self) -> Option<Time> {
        self.0.as_ref().map(|running| running.time)
    }

    /// Whether it is what the caller gave.
    pub fn is_callers(&self) -> bool {
        self.0.as_ref().is_some_and(|running| running.time.is_callers())
    }

    /// Whether it has rung, or would.
    pub fn is_over(&self) -> bool {
        self.0.as_ref().is_some_and(|running| running.time.is_over())
    }

    /// Ready when the time is over.
    pub fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.0.as_mut().and_then(|running| running.rings.as_mut()) {
            Some(rings) => rings.as_mut().poll(context),
            None => Poll::Pending,
        }
    }

    /// What a future gives, if that is in time. It is not begun when the time is over.
    pub async fn bound<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| match self.poll_over(context) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => future.as_mut().poll(context).map(Some),
        })
        .await
    }
}
