//! What follows when an endpoint has answered, or failed to.

use super::{
    Connection, Next, Reply, Upstream, outcome,
    respond::{Answered, Unanswered},
};
use crate::{
    decode::http1::{Method, RequestHead},
    record::Counter,
    ring::Buf,
};

impl Connection<'_> {
    /// What follows when the endpoint has answered, or failed to. `buf` holds what came behind the request.
    pub(super) async fn after(
        &mut self,
        mut upstream: Upstream,
        answered: Result<Answered, Unanswered>,
        head: &RequestHead,
        buf: Buf,
    ) -> Next {
        let answered = match answered {
            Ok(answered) => answered,
            Err(unanswered) => return self.unanswered(unanswered, head, buf).await,
        };
        upstream.stream.socket.clear_due();
        if let Some(first) = answered.upgraded {
            self.tells(Counter::Upgraded);
            return Next::End(self.upgraded(&mut upstream.stream, buf, first).await);
        }
        self.tells(outcome(answered.status));
        if answered.reusable {
            self.hop.keep(upstream);
        } else {
            drop(upstream);
        }
        if answered.close {
            // Behind CONNECT stands what was meant for the tunnel.
            let linger = head.method == Method::Connect || !buf.is_empty();
            return Next::End(self.close(linger).await);
        }
        self.put_back(buf);
        Next::Request
    }

    pub(super) async fn unanswered(&mut self, unanswered: Unanswered, head: &RequestHead, buf: Buf) -> Next {
        let (counter, end) = match unanswered {
            Unanswered::Bad(bad) => return self.reply(Reply::bad_response(bad), head, buf).await,
            Unanswered::Unwanted(_) | Unanswered::Failed(_) => {
                return self.reply(Reply::server_error(), head, buf).await;
            }
            Unanswered::Late => return self.reply(Reply::late_response(), head, buf).await,
            Unanswered::Over { is_begun: false } => return self.reply(Reply::deadline_exceeded(), head, buf).await,
            Unanswered::ClientGone => return self.left(),
            Unanswered::Over { is_begun: true } => (Counter::DeadlineExceeded, Counter::UpstreamAborted),
            Unanswered::ClientStalled => (Counter::ClientStalled, Counter::ClientAborted),
            Unanswered::Broken => (Counter::ResponseAborted, Counter::UpstreamAborted),
            Unanswered::Stalled => (Counter::ResponseStalled, Counter::UpstreamAborted),
        };
        self.tells(counter);
        self.abort().await;
        Next::End(end)
    }
}
