//! A request of HTTP/1 to a service with limits.

use std::time::Instant;

use tokio::time::sleep;

use super::{Connection, reply::Reply};
use crate::{decode::http1::RequestHead, proxy::admit::Admitted, ring::Buf, route::Request};

impl Connection<'_> {
    /// Waits until the service's limits let a request pass.
    pub(super) async fn admitted(&self, buf: &Buf, head: &RequestHead, now: Instant) -> Result<Admitted, Reply> {
        if self.cluster.gate.is_open() {
            return Ok(Admitted::default());
        }
        let request = Request::of_http1(&buf.bytes()[..head.bytes], self.stream.is_tls(), self.source);
        let (wait, admitted) = self.cluster.gate.admit(&request, now, None)?;
        if !wait.is_zero() {
            Box::pin(sleep(wait)).await;
        }
        Ok(admitted)
    }
}
