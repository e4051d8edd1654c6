//! Whichever protocol the first bytes are, of either side. The endpoint is dialled at once, and then whoever speaks first decides; nobody waits
//! for time to pass.
//!
//! A server that speaks first makes the connection opaque, unless what it says is what a server of HTTP/2 may say before it is asked. A client
//! that speaks first is listened to for as long as what it says may still become one of the protocols that are understood.

use std::{future::poll_fn, io, os::fd::AsFd as _, rc::Rc, task::Poll};

use super::{
    Cluster, Hop, Serving, http, http2,
    opaque::{reach_instead, relay_joined},
    reach::{Tried, Upstream},
};
use crate::{
    cluster::Seen,
    config::{HttpVersion, tls::HTTP2},
    decode::sniff::{Spoken, is_settings, sniff},
    kernel::OriginalDst,
    record::{Bytes, Counter},
    ring::{Buf, MEDIUM, SMALL, Stream},
};

/// Who spoke first.
enum First {
    /// The client; what, and the bytes in which it did; and the settings of a server of HTTP/2 that did not wait for them.
    Client(Spoken, Buf, Option<Buf>),
    /// The server; and what the client has said so far without having said enough.
    Server(Buf, Buf),
    /// Neither: one of them has reset its connection, or could not be listened to.
    Reset(Counter),
}

/// Listens to one connection, until it is known how it is to be served; `Err`: it is over.
pub async fn listen(
    hop: &Rc<Hop>,
    mut downstream: Stream,
    cluster: Rc<Cluster>,
    original: OriginalDst,
) -> Result<Serving<'_>, Counter> {
    // A new one, for it must be the first to hear: on a used one a server that greets has greeted already.
    let Ok(mut upstream) = hop.reach(&cluster, &mut Tried::early(original.source), true).await else {
        return without_endpoint(hop, downstream, cluster, original).await;
    };
    let (client, server) = match race(hop, &mut downstream, &mut upstream.stream).await {
        First::Client(spoken, client, server) => {
            let understood = understood(&cluster, &spoken, server.is_some());
            told(hop, spoken);
            match understood {
                Some(spoken) => {
                    hand_over(hop, &cluster, spoken, upstream, server).await;
                    return Ok(serve_requests(hop, downstream, cluster, original, (spoken, client)));
                }
                None => (client, server.unwrap_or_else(|| hop.buffers.holding(&[]))),
            }
        }
        First::Server(client, server) => {
            hop.slab.count(Counter::SpokenByServer);
            (client, server)
        }
        First::Reset(counter) => {
            downstream.socket.reset();
            upstream.stream.socket.reset();
            return Err(counter);
        }
    };
    upstream.who().report(hop, Seen::Connected);
    hop.slab.count_bytes(Bytes::DownstreamReceived, client.len());
    hop.slab.count_bytes(Bytes::UpstreamSent, client.len());
    hop.slab.count_bytes(Bytes::UpstreamReceived, server.len());
    hop.slab.count_bytes(Bytes::DownstreamSent, server.len());
    pass_on(hop, &mut upstream.stream, client);
    pass_on(hop, &mut downstream, server);
    Ok(Box::pin(async move { relay_joined(hop, &cluster.service, &mut downstream, &mut upstream.stream).await }))
}

/// Sends what was received already.
fn pass_on(hop: &Hop, to: &mut Stream, buf: Buf) {
    if buf.is_empty() {
        return hop.buffers.give(buf);
    }
    let range = buf.range();
    to.writer.submit(buf, range);
}

/// What is served request by request, and in which protocol; `None`: bytes.
fn understood(cluster: &Cluster, spoken: &Spoken, has_settings: bool) -> Option<HttpVersion> {
    let to_http2 = cluster.spoken_upstream(HttpVersion::Http1) == HttpVersion::Http2;
    match spoken {
        Spoken::Http1 if to_http2 || !has_settings => Some(HttpVersion::Http1),
        Spoken::Http2 => Some(HttpVersion::Http2),
        _ => None,
    }
}

/// The connection that was dialled is the first that the requests find.
async fn hand_over(
    hop: &Rc<Hop>,
    cluster: &Cluster,
    client: HttpVersion,
    mut upstream: Upstream,
    settings: Option<Buf>,
) {
    upstream.stream.reader.disarm().into_iter().for_each(|buf| hop.buffers.give(buf));
    match (cluster.spoken_upstream(client), settings) {
        // Within TLS it was not agreed on that this is HTTP/2.
        (HttpVersion::Http2, _) if upstream.stream.is_tls() && !upstream.stream.has_agreed_on(HTTP2) => {}
        (HttpVersion::Http2, settings) => Box::pin(hop.share(upstream, settings)).await,
        (HttpVersion::Http1, None) => hop.keep(upstream),
        // Settings are no word of HTTP/1.
        (HttpVersion::Http1, Some(_)) => {}
    }
}

fn serve_requests(
    hop: &Rc<Hop>,
    downstream: Stream,
    cluster: Rc<Cluster>,
    original: OriginalDst,
    (spoken, client): (HttpVersion, Buf),
) -> Serving<'_> {
    match spoken {
        HttpVersion::Http1 => http::serve(hop, downstream, cluster, original, Some(client)),
        HttpVersion::Http2 => Box::pin(http2::serve(hop, downstream, cluster, original, Some(client))),
    }
}

/// What a client that has spoken HTTP already can be told; another meets what it would have met by itself: a connection that is not to be had.
async fn without_endpoint(
    hop: &Rc<Hop>,
    mut downstream: Stream,
    cluster: Rc<Cluster>,
    original: OriginalDst,
) -> Result<Serving<'_>, Counter> {
    let mut client = hop.buffers.take(SMALL);
    downstream.reader.receive_now(&mut client);
    match sniff(client.bytes()).and_then(|spoken| understood(&cluster, &spoken, false)) {
        Some(spoken) => Ok(serve_requests(hop, downstream, cluster, original, (spoken, client))),
        None => {
            let asker = cluster.asker(hop, downstream.socket.as_fd(), original.source);
            let Some((cluster, mut upstream, place)) = reach_instead(hop, &cluster, asker).await else {
                downstream.socket.reset();
                return Err(Counter::RelayNoEndpoint);
            };
            upstream.who().report(hop, Seen::Connected);
            hop.slab.count_bytes(Bytes::DownstreamReceived, client.len());
            hop.slab.count_bytes(Bytes::UpstreamSent, client.len());
            pass_on(hop, &mut upstream.stream, client);
            Ok(Box::pin(async move {
                let _place = place;
                relay_joined(hop, &cluster.service, &mut downstream, &mut upstream.stream).await
            }))
        }
    }
}

/// Waits for either side's first word.
async fn race(hop: &Hop, downstream: &mut Stream, upstream: &mut Stream) -> First {
    upstream.reader.arm_on_demand(&hop.buffers, MEDIUM);
    downstream.reader.arm_on_demand(&hop.buffers, SMALL);
    let mut settings = None;
    loop {
        let (received, by_client) = poll_fn(|context| {
            if settings.is_none()
                && let Poll::Ready(received) = upstream.reader.poll_received(context)
            {
                return Poll::Ready((received, false));
            }
            downstream.reader.poll_received(context).map(|received| (received, true))
        })
        .await;
        let (bytes, buf) = match received {
            (Ok(bytes), buf) => (bytes, buf),
            (Err(error), _) if error.kind() == io::ErrorKind::OutOfMemory => return First::Reset(Counter::NoMemory),
            (Err(_), _) if by_client => return First::Reset(Counter::RelayClientReset),
            (Err(_), _) => return First::Reset(Counter::RelayUpstreamReset),
        };
        if !by_client && is_settings(buf.bytes()) {
            settings = Some(buf);
            continue;
        }
        if !by_client {
            let client = downstream.reader.disarm().unwrap_or_else(|| hop.buffers.holding(&[]));
            return First::Server(client, buf);
        }
        match heard(hop, bytes, buf) {
            Ok((spoken, client)) => return First::Client(spoken, client, settings),
            Err(unsure) => downstream.reader.arm(unsure),
        }
    }
}

/// What the client has said; `Err`: more must be heard, and there is room for it.
fn heard(hop: &Hop, received: usize, buf: Buf) -> Result<(Spoken, Buf), Buf> {
    match sniff(buf.bytes()) {
        Some(spoken) => Ok((spoken, buf)),
        // It has ended its side, which is heard again by whoever reads next.
        None if received == 0 => Ok((Spoken::Opaque, buf)),
        None if buf.room() > 0 => Err(buf),
        None => match hop.buffers.make_room(buf, MEDIUM) {
            Ok(buf) => Err(buf),
            // A target as long as this is a request's: the decoder has its own bound.
            Err(buf) if buf.bytes()[0].is_ascii_uppercase() => Ok((Spoken::Http1, buf)),
            Err(buf) => Ok((Spoken::Opaque, buf)),
        },
    }
}

fn told(hop: &Hop, spoken: Spoken) {
    hop.slab.count(match spoken {
        Spoken::Http1 => Counter::SpokenHttp1,
        Spoken::Http2 => Counter::SpokenHttp2,
        Spoken::Tls(hello) => {
            tracing::debug!(server_name = hello.server_name, protocols = ?hello.protocols, "TLS is passed through");
            Counter::SpokenTls
        }
        Spoken::Opaque => Counter::SpokenOpaque,
    });
}
