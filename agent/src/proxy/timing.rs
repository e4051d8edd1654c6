//! A request's time, as it runs: what is left of it, who is told, and what happens when it is over.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::time::{Sleep, sleep_until};

use super::guard::is_server_error;
use crate::{
    cluster::{Pace, RouteState, Service},
    config::{
        Route,
        deadline::{Carrier, Carriers, Timing},
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

    /// Whether there was none from the beginning.
    pub fn is_none(&self) -> bool {
        self.budget.time.is_zero()
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
            let mut digits = Vec::new();
            deadline::write(carrier, left, &mut digits);
            // Digits always are a value.
            if let Ok(value) = HeaderValue::try_from(digits) {
                headers.insert(HeaderName::from_static(carrier.name()), value);
            }
        }
    }

    /// The fields that are not passed on as they stand.
    pub fn replaced(&self) -> Carriers {
        self.budget.replaced
    }

    /// As [`Time::tell`], lines of HTTP/1 behind what is there.
    pub fn lines(&self, lines: &mut Vec<u8>) {
        let left = self.left();
        // As much as most need.
        lines.reserve(64);
        for carrier in self.budget.told.each() {
            lines.extend_from_slice(carrier.name().as_bytes());
            lines.extend_from_slice(b": ");
            deadline::write(carrier, left, lines);
            lines.extend_from_slice(b"\r\n");
        }
    }
}

/// Rings when a request's time is over; one that was not set never does.
#[derive(Default)]
pub struct Clock {
    running: Option<Running>,
    alarm: Alarm,
}

struct Running {
    time: Time,
    pace: Cell<Option<Pace>>,
}

impl Clock {
    /// Sets it for a request that is on its way; how long that takes is learnt from.
    pub fn set(&mut self, time: Time, pace: Option<Pace>) {
        self.running = Some(Running { time, pace: pace.into() });
    }

    /// As if it had not been set.
    pub fn stop(&mut self) {
        self.running = None;
    }

    /// The request is counted as this; what is said first holds.
    pub fn told(&self, counter: Counter) {
        if let Some(Running { time, pace, .. }) = &self.running
            && let Some(pace) = pace.take()
        {
            learn(&pace, time.began, counter, None);
        }
    }

    /// The time that runs.
    pub fn time(&self) -> Option<Time> {
        self.running.as_ref().map(|running| running.time)
    }

    /// Whether it is what the caller gave.
    pub fn is_callers(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.time.is_callers())
    }

    /// Whether it has rung, or would.
    pub fn is_over(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.time.is_over())
    }

    /// Ready when the time is over.
    pub fn poll_over(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match self.running.as_ref().and_then(|running| running.time.until()) {
            Some(until) => self.alarm.poll(until, context),
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

/// Rings at a moment that is said each time anew. Most are later than the one before, and come to nothing: what is armed in the runtime rings for
/// the first of them, and only then for the one that is waited for.
#[derive(Default)]
pub struct Alarm(Option<Box<Armed>>);

struct Armed {
    sleep: Pin<Box<Sleep>>,
    /// Whom it wakes.
    wakes: Waker,
}

impl Alarm {
    /// Ready at a moment.
    pub fn poll(&mut self, at: Instant, context: &mut Context<'_>) -> Poll<()> {
        let make = || Box::new(Armed { sleep: Box::pin(sleep_until(at.into())), wakes: Waker::noop().clone() });
        let Armed { sleep, wakes } = &mut **self.0.get_or_insert_with(make);
        if sleep.deadline() > at.into() {
            sleep.as_mut().reset(at.into());
        } else if wakes.will_wake(context.waker()) && !sleep.is_elapsed() {
            return Poll::Pending;
        }
        wakes.clone_from(context.waker());
        loop {
            ready!(sleep.as_mut().poll(context));
            if sleep.deadline() >= at.into() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at.into());
        }
    }

    /// What a future gives, unless a moment is there before.
    pub async fn bound<T>(&mut self, until: Option<Instant>, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| match (future.as_mut().poll(context), until) {
            (Poll::Ready(given), _) => Poll::Ready(Some(given)),
            (Poll::Pending, Some(until)) => self.poll(until, context).map(|()| None),
            (Poll::Pending, None) => Poll::Pending,
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::Relaxed},
        },
        task::Wake,
    };

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_alarm_rings_at_the_moment_that_was_said_last() {
        let mut alarm = Alarm::default();
        let after = |ms| Instant::now() + Duration::from_millis(ms);
        assert_eq!(alarm.bound(Some(after(0)), ready(7)).await, Some(7), "what is there at once is in time");
        // Sooner than before, later, and after it has rung.
        for armed in [after(0) + HOUR, after(1), after(0)] {
            poll_fn(|context| Poll::Ready(alarm.poll(armed, context).is_ready())).await;
            let until = after(30);
            assert!(alarm.bound(Some(until), pending::<()>()).await.is_none());
            assert!((until..until + HOUR / 2).contains(&Instant::now()));
        }
        assert_eq!(alarm.bound(None, ready(7)).await, Some(7));
    }

    #[tokio::test]
    async fn an_alarm_wakes_whoever_polled_it_last() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Relaxed);
            }
        }
        let (mut alarm, at) = (Alarm::default(), Instant::now() + Duration::from_millis(50));
        let wakers = [(); 2].map(|()| Arc::new(Woken(AtomicBool::default())));
        for woken in &wakers {
            assert!(alarm.poll(at, &mut Context::from_waker(&Arc::clone(woken).into())).is_pending());
        }
        while !wakers[1].0.load(Relaxed) {
            tokio::task::yield_now().await;
        }
        assert!(!wakers[0].0.load(Relaxed));
        assert!(alarm.poll(at, &mut Context::from_waker(Waker::noop())).is_ready());
    }
}
