//! A request of HTTP/1 whose time is limited.

use std::time::Instant;

use super::{Connection, Next, reply::Reply, take_back};
use crate::{
    cluster::Seen,
    config::deadline::Carrier,
    decode::http1::{Method, RequestHead},
    proxy::{
        reach::Upstream,
        timing::{Ruled, Time},
    },
    ring::Buf,
    route::Request,
};

impl Connection<'_> {
    /// Sets the clock of a request, if its route or its service says so; who comes when its time is over is told at once.
    pub(super) fn set_clock(
        &mut self,
        of_route: Option<Ruled>,
        (buf, head): (&Buf, &RequestHead),
        began: Instant,
    ) -> Result<(), Reply> {
        let Some(Ruled { timing, pace }) = Ruled::of(of_route, &self.cluster.service) else { return Ok(()) };
        if head.websocket || head.method == Method::Connect {
            return Ok(());
        }
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.asker.source);
        let Some(time) = Time::of(timing, &request, began) else { return Ok(()) };
        self.clock.set(time, pace);
        if time.is_none() { Err(Reply::deadline_exceeded()) } else { Ok(()) }
    }

    /// Writes what is left of its time into a request's head.
    pub(super) fn tell_time(&self, buf: &Buf, head: &mut RequestHead) {
        if let Some(time) = self.clock.time() {
            if !time.replaced().is_empty() {
                let names = time.replaced().each().map(Carrier::name);
                head.edits.cut_fields(&buf.bytes()[..head.bytes], names);
            }
            time.lines(&mut head.edits.insert);
        }
    }

    /// Its client waits for no response any more: it has left, or its time is over, which it is told.
    pub(super) async fn waits_no_more(&mut self, mut upstream: Upstream, head: &RequestHead) -> Next {
        if !self.clock.is_over() {
            return self.left();
        }
        // Who gives little time learns nothing of the endpoint.
        if !self.clock.is_callers() {
            upstream.who().report(self.hop, Seen::Late);
        }
        let buf = take_back(&mut upstream.stream, &mut self.pending).await;
        self.reply(Reply::deadline_exceeded(), head, buf).await
    }
}
