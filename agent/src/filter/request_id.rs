//! Each request has an id: a UUID (RFC 9562) that is made here unless the client says one.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::{Filter, Given, Verdict, value};
use crate::{
    cluster::Outcome,
    config::filter,
    route::{Fields, Request},
};

/// Longest id that is kept: four times a UUID. A longer one is replaced, so that no log grows by what a client says.
const KEPT_BYTES_MAX: usize = 144;

/// See the module.
#[derive(Debug)]
pub(super) struct RequestId {
    config: filter::RequestId,
    name: HeaderName,
}

impl RequestId {
    pub(super) fn new(config: &filter::RequestId) -> Self {
        let name = HeaderName::from_bytes(config.header.as_bytes());
        Self { config: config.clone(), name: name.unwrap_or(HeaderName::from_static("x-request-id")) }
    }
}

impl Filter for RequestId {
    fn judge(&self, request: &Request<'_>, given: &Given<'_>) -> Verdict {
        let said = request.header(self.name.as_str()).filter(|_| self.config.keeps).filter(|said| is_kept(said));
        let kept = said.and_then(|said| std::str::from_utf8(said).ok());
        let (id, outcome) = match kept {
            // Neither the request nor the response has to be told.
            Some(_) if !self.config.responds => return Verdict::pass(Outcome::Passed),
            Some(id) => (value(id), Outcome::Passed),
            None => {
                let chance = (given.chance)();
                let high = if self.config.by_time { by_time((given.now)(), chance) } else { by_chance(chance) };
                (made(high, (given.chance)()), Outcome::Changed)
            }
        };
        let set = Fields::default().set(self.name.clone(), id);
        Verdict {
            response: if self.config.responds { set.clone() } else { Fields::default() },
            request: if kept.is_some() { Fields::default() } else { set },
            ..Verdict::pass(outcome)
        }
    }
}

fn is_kept(said: &[u8]) -> bool {
    (1..=KEPT_BYTES_MAX).contains(&said.len()) && said.iter().all(|byte| matches!(byte, b'!'..=b'~'))
}

/// The upper half of a UUID of version 4 (RFC 9562 section 5.4).
fn by_chance(chance: u64) -> u64 {
    chance & !0xf000 | 0x4000
}

/// The upper half of a UUID of version 7 (RFC 9562 section 5.7): milliseconds, and chance.
fn by_time(now: Duration, chance: u64) -> u64 {
    (now.as_millis() as u64) << 16 | 0x7000 | chance & 0xfff
}

/// Both halves in the usual form; the lower one's first two bits are the variant.
fn text(high: u64, low: u64) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    /// Where the digits of each byte stand.
    const PLACES: [usize; 16] = [0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34];
    let all = u128::from(high) << 64 | u128::from(low & (u64::MAX >> 2) | 1 << 63);
    let mut text = [b'-'; 36];
    for (place, byte) in PLACES.into_iter().zip(all.to_be_bytes()) {
        text[place] = DIGITS[usize::from(byte >> 4)];
        text[place + 1] = DIGITS[usize::from(byte & 0xf)];
    }
    text
}

fn made(high: u64, low: u64) -> HeaderValue {
    // Digits always are a value.
    HeaderValue::from_bytes(&text(high, low)).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::{changed, judged};

    fn filter(by_time: bool, keeps: bool) -> RequestId {
        RequestId::new(&filter::RequestId { header: "x-request-id".into(), by_time, keeps, responds: true })
    }

    #[test]
    fn an_id_is_made_as_its_rfc_has_it() {
        // RFC 9562, appendices A.3 and A.6: what chance and time must have been.
        let time = Duration::from_millis(0x017f_22e2_79b0);
        assert_eq!(text(by_time(time, 0xcc3), 0x18c4_dc0c_0c07_398f), *b"017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
        assert_eq!(
            text(by_chance(0x9191_08f7_52d1_3320), 0x5bac_f847_db41_48a8),
            *b"919108f7-52d1-4320-9bac-f847db4148a8"
        );
        let verdict = judged(&filter(true, true), "GET / HTTP/1.1", 0, time);
        let id = "x-request-id: 017f22e2-79b0-7000-8000-000000000000";
        assert_eq!(
            (changed(&verdict.request, ""), changed(&verdict.response, "X-Request-Id: theirs\r\n")),
            (id.into(), id.into())
        );
    }

    #[test]
    fn what_a_client_says_is_kept_if_it_can_be() {
        for (said, keeps, is_kept) in [
            ("abc", true, true),
            ("abc", false, false),
            ("", true, false),
            ("a b", true, false),
            (&"x".repeat(145), true, false),
        ] {
            let head = format!("GET / HTTP/1.1\r\nX-Request-ID: {said}");
            let verdict = judged(&filter(false, keeps), &head, 7, Duration::ZERO);
            assert_eq!(verdict.request == Fields::default(), is_kept, "{said:?}");
            assert_eq!(changed(&verdict.response, "") == format!("x-request-id: {said}"), is_kept, "{said:?}");
        }
    }
}
