//! The agent's own share of a request's duration, where a task of its own passes the request on: the time in which that task does something.
//! Reading and writing the frames of HTTP/2, which many requests share, is not in it.

use std::{
    cell::Cell,
    future::poll_fn,
    pin::pin,
    time::{Duration, Instant},
};

use crate::record::Slab;

/// Adds up how long a future is polled, if there is where to.
pub async fn of<T>(future: impl Future<Output = T>, spent: Option<&Cell<Duration>>) -> T {
    let mut future = pin!(future);
    let Some(spent) = spent else { return future.await };
    poll_fn(|context| {
        let began = Instant::now();
        let polled = future.as_mut().poll(context);
        spent.set(spent.get() + began.elapsed());
        polled
    })
    .await
}

/// Records what was added up, if anything was to be.
pub fn observe(slab: &Slab, spent: Option<Cell<Duration>>) {
    if let Some(spent) = spent {
        slab.overhead.observe(spent.get());
    }
}
