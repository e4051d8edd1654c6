//! A request of HTTP/1 that suffers on purpose what its endpoint might have done to it.

use std::time::Duration;

use super::{
    Connection, Next, OwnTime,
    admitted::{Denied, leaves},
    reply::Reply,
};
use crate::{
    config::guard::Why,
    decode::http1::RequestHead,
    filter::Mishap,
    proxy::{guard::Leave, mishap::Suffered},
    record::Counter,
    ring::Buf,
};

impl Connection<'_> {
    /// Lets a request suffer. Breakers learn of it, and what stands in for an endpoint that fails stands in here.
    pub(super) async fn suffers(&mut self, mishap: Mishap, buf: Buf, head: RequestHead, own: Option<OwnTime>) -> Next {
        let leaves = leaves(&buf, &head);
        match self.waits_for(mishap.wait, leaves).await {
            Ok(()) => {}
            Err(Denied::Answered(reply)) => return self.answer_here(reply, buf, &head).await,
            Err(Denied::Gone) => return self.left(),
        }
        let Some(end) = mishap.end else { return self.forward(buf, head, own).await };
        match self.hop.suffered(end, false, self.guard.as_ref(), self.leave.as_ref()) {
            Suffered::Asks(cluster, _standing_in) => {
                self.cluster = cluster;
                self.forward(buf, head, own).await
            }
            Suffered::Answered(reply) => self.answer_here(reply, buf, &head).await,
            Suffered::Reset => {
                self.tells(Counter::Filtered);
                self.stream.socket.reset();
                Next::End(Counter::Refused)
            }
        }
    }

    /// Waits, as for an endpoint: no longer than the request has time, in all and until its answer begins.
    async fn waits_for(&mut self, wait: Duration, leaves: bool) -> Result<(), Denied> {
        if wait.is_zero() {
            return Ok(());
        }
        let patience = self.clock.time().map_or(wait, |time| time.left());
        let isolation = self.leave.as_ref().and_then(Leave::left).unwrap_or(wait);
        self.waited(wait.min(patience).min(isolation), leaves).await?;
        if isolation < wait { Err(Denied::Answered(Reply::guarded(Why::Timeout))) } else { Ok(()) }
    }
}
