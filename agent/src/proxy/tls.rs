//! TLS with a client, before anything else is said: which certificate it is shown, and what it wants to speak within.

use std::rc::Rc;

use rustls::{Error, ServerConnection};

use super::Hop;
use crate::{
    config::{
        Protocol,
        tls::{HTTP1, HTTP2, Terminate},
    },
    record::Counter,
    ring::{Due, HandshakeError, Stream},
};

/// Does the handshake; gives what is spoken within, or as what the connection is counted that ends.
pub async fn accept(
    hop: &Rc<Hop>,
    downstream: &mut Stream,
    terminate: &Terminate,
    protocol: Protocol,
) -> Result<Protocol, Counter> {
    let connection = ServerConnection::new(terminate.server()).map_err(|_| Counter::TlsRefused)?;
    downstream.socket.set_due(terminate.handshake_timeout, Due::End);
    let started = downstream.start_tls(connection, &hop.buffers).await;
    downstream.socket.clear_due();
    if downstream.socket.is_overdue() {
        return Err(Counter::TlsLate);
    }
    started.map_err(refused)?;
    hop.slab.count(Counter::TlsAccepted);
    Ok(agreed(downstream, protocol))
}

fn refused(error: HandshakeError) -> Counter {
    tracing::debug!(%error, "no TLS with a client");
    match error {
        HandshakeError::Refused(Error::InvalidMessage(_)) => Counter::NotTls,
        HandshakeError::Refused(_) => Counter::TlsRefused,
        HandshakeError::Broken(_) => Counter::TlsAborted,
    }
}

/// What the two have agreed to speak; where they did not, the service's word holds.
fn agreed(downstream: &Stream, protocol: Protocol) -> Protocol {
    match protocol {
        Protocol::Auto if downstream.has_agreed_on(HTTP2) => Protocol::Http2,
        Protocol::Auto if downstream.has_agreed_on(HTTP1) => Protocol::Http,
        protocol => protocol,
    }
}
