//! Copies of requests, to endpoints whose answers nobody waits for: Envoy's `request_mirror_policies`, the Gateway API's RequestMirror.
//!
//! A copy is gathered while its request passes by, and leaves as a task of its own when that is all there: whatever becomes of it, and however
//! long that takes, the request knows nothing of it. As with Envoy its host ends in `-shadow`, so that who gets it can tell. A request that
//! breaks off, or whose body is longer than may be held, has no copy.

mod send;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::{Uri, header, request::Parts, uri::Authority};

use super::{Cluster, Hop, asker::Asker, left::Left};
use crate::{
    cluster::MirrorState,
    config::HttpVersion,
    decode::{chunked::BadChunk, http1::Framing, translate},
    ring::spawn,
};

/// Most copies of a route's requests under way at once, node-wide: with bodies of 64 KiB they hold 16 MiB, and who is mirrored at a thousand
/// requests a second and answers within a quarter of one loses none.
const ACTIVE_MAX: u32 = 256;

/// Who is to get a copy.
pub(super) struct Ordered {
    pub cluster: Rc<Cluster>,
    pub state: Arc<MirrorState>,
    pub body_bytes_max: usize,
}

/// A request, all of it.
struct Copy {
    hop: Rc<Hop>,
    ordered: Ordered,
    parts: Parts,
    body: Vec<u8>,
    /// Who asked.
    asker: Asker,
    /// What the client speaks.
    spoken: HttpVersion,
}

/// Sees a request's body pass by: sends the copy when it has seen all of it, and tells when it is longer than it may be.
#[derive(Default)]
pub struct Tap {
    making: RefCell<Option<Making>>,
    meter: RefCell<Option<Meter>>,
}

/// How much of a body has come.
struct Meter {
    left: Option<Left>,
    bytes: u64,
    bytes_max: u64,
}

impl Meter {
    fn raw(&mut self, bytes: &[u8]) {
        let Some(left) = &mut self.left else { return };
        let here = &mut self.bytes;
        // What is malformed is refused by who reads it.
        if !matches!(left.pass(bytes, |piece| *here += piece.len() as u64), Ok(None)) {
            self.left = None;
        }
    }
}

struct Making {
    copy: Copy,
    left: Left,
}

impl Tap {
    /// For a request of HTTP/1 whose head, its edits made, is this, and of whose body `here` has come already.
    pub(super) fn of_http1(
        hop: &Rc<Hop>,
        ordered: Ordered,
        head: &[u8],
        (framing, here): (Framing, &[u8]),
        asker: Asker,
    ) -> Rc<Self> {
        let is_secure = ordered.cluster.service.config.tls.originate.is_some();
        let making = match (translate::request_to_http2(head, is_secure), framing) {
            (Ok(_), Framing::Length(bytes)) if bytes > ordered.body_bytes_max as u64 => {
                count(&ordered.state.too_large);
                None
            }
            (Ok((parts, _)), _) => {
                let copy = Copy::new(hop, ordered, parts, asker, HttpVersion::Http1);
                Some(Making { copy, left: Left::of(framing) })
            }
            (Err(_), _) => {
                count(&ordered.state.failed);
                None
            }
        };
        let tap = Self { making: RefCell::new(making), ..Self::default() };
        tap.raw(here);
        Rc::new(tap)
    }

    /// For a request of HTTP/2, of whose body nothing has come yet.
    pub(super) fn of_http2(hop: &Rc<Hop>, ordered: Ordered, parts: &Parts, asker: Asker) -> Rc<Self> {
        let copy = Copy::new(hop, ordered, parts.clone(), asker, HttpVersion::Http2);
        Rc::new(Self { making: RefCell::new(Some(Making { copy, left: Left::UntilClose })), ..Self::default() })
    }

    /// Begins to measure a body that ends there.
    pub(super) fn measure(&self, bytes_max: u64, left: Left) {
        self.meter.replace(Some(Meter { left: Some(left), bytes: 0, bytes_max }));
    }

    /// Whether the body is longer than it may be: whoever sees that passes no more of it on.
    pub fn is_over(&self) -> bool {
        self.meter.borrow().as_ref().is_some_and(|meter| meter.bytes > meter.bytes_max)
    }

    /// Goes on unless the body is longer than it may be; then never: whoever polls this knows, and ends it.
    pub async fn stop_if_over(&self) {
        if self.is_over() {
            std::future::pending::<()>().await;
        }
    }

    /// Measures bytes of which a copy knows already.
    pub(super) fn count_raw(&self, bytes: &[u8]) {
        if let Some(meter) = self.meter.borrow_mut().as_mut() {
            meter.raw(bytes);
        }
    }

    /// Bytes have come, as a client of HTTP/1 sent them; what stands behind the body is not looked at.
    pub fn raw(&self, bytes: &[u8]) {
        self.count_raw(bytes);
        self.see(|making| {
            let body = &mut making.copy.body;
            making.left.pass(bytes, |piece| body.extend_from_slice(piece)).map(|end| end.is_some())
        });
    }

    /// A piece of the body has come.
    pub fn piece(&self, bytes: &[u8], is_last: bool) {
        if let Some(meter) = self.meter.borrow_mut().as_mut() {
            meter.bytes += bytes.len() as u64;
        }
        self.see(|making| {
            making.copy.body.extend_from_slice(bytes);
            Ok(is_last)
        });
    }

    fn see(&self, look: impl FnOnce(&mut Making) -> Result<bool, BadChunk>) {
        let mut slot = self.making.borrow_mut();
        let Some(making) = slot.as_mut() else { return };
        let seen = look(making);
        let is_too_large = making.copy.body.len() > making.copy.ordered.body_bytes_max;
        match seen {
            Ok(false) if !is_too_large => return,
            Ok(_) if is_too_large => count(&making.copy.ordered.state.too_large),
            // The request itself is refused.
            Err(BadChunk(_)) => {}
            Ok(_) => {
                if let Some(Making { copy, .. }) = slot.take() {
                    copy.leave();
                }
            }
        }
        *slot = None;
    }
}

/// The place of a copy among those under way, given back by dropping it.
struct Place(Arc<MirrorState>);

impl Place {
    fn take(state: &Arc<MirrorState>) -> Option<Self> {
        let place = Self(Arc::clone(state));
        (state.active.fetch_add(1, Relaxed) < ACTIVE_MAX).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

impl Copy {
    fn new(hop: &Rc<Hop>, ordered: Ordered, mut parts: Parts, asker: Asker, spoken: HttpVersion) -> Self {
        parts.uri = shadow(parts.uri);
        // All of the body is there.
        parts.headers.remove(header::EXPECT);
        Self { hop: Rc::clone(hop), ordered, parts, body: Vec::new(), asker, spoken }
    }

    /// On its way, if there is a place.
    fn leave(self) {
        let state = Arc::clone(&self.ordered.state);
        let Some(place) = Place::take(&state) else { return count(&state.busy) };
        spawn(async move {
            let is_answered = self.send().await;
            count(if is_answered { &state.answered } else { &state.failed });
            drop(place);
        });
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The same with `-shadow` at the end of the host, as Envoy has it; an IPv6 address stays as it is: nothing can be put behind it.
fn shadow(uri: Uri) -> Uri {
    let mut parts = uri.into_parts();
    parts.authority = parts.authority.map(|authority| {
        let text = authority.as_str();
        let (host, port) = text.rfind(':').map_or((text, ""), |colon| text.split_at(colon));
        match text.starts_with('[') {
            true => authority,
            false => Authority::try_from(format!("{host}-shadow{port}")).unwrap_or(authority),
        }
    });
    // What it was made of was an address, and still is.
    Uri::from_parts(parts).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copys_host_tells_that_it_is_one() {
        for (uri, expected) in [
            ("http://a.example/x?y", "http://a.example-shadow/x?y"),
            ("http://a.example:81/", "http://a.example-shadow:81/"),
            ("http://10.0.0.1:80/", "http://10.0.0.1-shadow:80/"),
            ("http://[::1]:80/", "http://[::1]:80/"),
            ("http://[::1]/", "http://[::1]/"),
        ] {
            assert_eq!(shadow(uri.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn a_body_is_measured_wherever_it_is_torn() {
        for (framing, wire, bytes) in
            [(Framing::Length(5), "abcdeGET /", 5), (Framing::Chunked, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nGET /", 5)]
        {
            for tear in 0..wire.len() {
                for bytes_max in [bytes - 1, bytes] {
                    let tap = Tap::default();
                    tap.measure(bytes_max, Left::of(framing));
                    tap.raw(&wire.as_bytes()[..tear]);
                    tap.raw(&wire.as_bytes()[tear..]);
                    assert_eq!(tap.is_over(), bytes > bytes_max, "{wire:?} at {tear}");
                }
            }
        }
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let state = Arc::default();
        let mut places: Vec<Place> = (0..ACTIVE_MAX).filter_map(|_| Place::take(&state)).collect();
        assert_eq!(places.len(), ACTIVE_MAX as usize);
        assert!(Place::take(&state).is_none());
        places.pop();
        places.extend(Place::take(&state));
        assert_eq!((places.len(), state.active.load(Relaxed)), (ACTIVE_MAX as usize, ACTIVE_MAX));
        drop(places);
        assert_eq!(state.active.load(Relaxed), 0);
    }
}
