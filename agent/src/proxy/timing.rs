//! A request's time, as it runs: what is left of it, who is told, and what happens when it is over.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Sleep, sleep_until};

use crate::{
    config::deadline::{Carrier, Timing},
    deadline::{self, Budget},
    route::Request,
};

/// A request's time.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    budget: Budget,
    began: Instant,
}

impl Time {
    /// Of a request that came at this moment, by what its service or route says and what stands in its head; `None`: nobody waits for less
    /// than for ever.
    pub fn of(timing: Timing, is_grpc: bool, request: &Request<'_>, began: Instant) -> Option<Self> {
        deadline::budget(timing, is_grpc, |name| request.header(name)).map(|budget| Self { budget, began })
    }

    /// All of it.
    pub fn given(&self) -> Duration {
        self.budget.time
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
#[derive(Debug, Default)]
pub struct Clock(Option<Running>);

#[derive(Debug)]
struct Running {
    time: Time,
    rings: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    /// Of a request that is on its way.
    pub fn of(time: Time) -> Self {
        let rings = time.until().map(|until| Box::pin(sleep_until(until.into())));
        Self(Some(Running { time, rings }))
    }

    /// The time that runs.
    pub fn time(&self) -> Option<Time> {
        self.0.as_ref().map(|running| running.time)
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
