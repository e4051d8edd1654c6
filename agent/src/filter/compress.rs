//! Answers are compressed for who takes that (RFC 9110 sections 8.4 and 12.5.3): which coding a request gets, and which answers are worth it.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{Duty, Filter, Given, Verdict};
use crate::{
    cluster::Outcome,
    config::filter::content::{self, Coding},
    route::Request,
};

/// See the module.
#[derive(Debug)]
pub(super) struct Compress {
    config: Arc<content::Compress>,
}

/// What is to be done with an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// How it is compressed; `None`: its client takes it only as it is.
    pub coding: Option<Coding>,
    /// What is to be done, as it is configured.
    pub config: Arc<content::Compress>,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It goes as it is, whoever asks.
    No,
    /// It goes as it is to this client, and to another it might not.
    NotHere,
    /// It is compressed.
    Yes(Coding),
}

impl Compress {
    pub(super) fn new(config: &content::Compress) -> Self {
        Self { config: Arc::new(config.clone()) }
    }
}

impl Filter for Compress {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        // Messages of gRPC are compressed each by itself, and of a head or a part there is nothing to compress.
        if request.method == b"HEAD" || request.grpc().is_some() || request.header("range").is_some() {
            return Verdict::pass(Outcome::Passed);
        }
        let order = Order { coding: liked(request, &self.config.codings), config: Arc::clone(&self.config) };
        Verdict { duty: Some(Duty::Compress(order)), ..Verdict::pass(Outcome::Passed) }
    }
}

/// The coding that a client likes most, and of those that it likes alike, the one that stands first here; `None` if it likes none of them as much
/// as what is not compressed.
fn liked(request: &Request<'_>, codings: &[Coding]) -> Option<Coding> {
    let said: Vec<(&[u8], u16)> = request.headers("accept-encoding").flat_map(items).collect();
    let of = |name: &[u8]| said.iter().find(|(said, _)| said.eq_ignore_ascii_case(name)).map(|(_, weight)| *weight);
    let any = of(b"*");
    let weight = |coding: &Coding| {
        // RFC 9110 section 8.4.1.3.
        let alias = if *coding == Coding::Gzip { of(b"x-gzip") } else { None };
        of(coding.name().as_bytes()).or(alias).or(any).unwrap_or_default()
    };
    // Who says nothing of what is not compressed takes it, and would rather have the other.
    let plain = of(b"identity").unwrap_or_default();
    let best = codings.iter().rev().max_by_key(|coding| weight(coding))?;
    (weight(best) > 0 && weight(best) >= plain).then_some(*best)
}

/// The items of a list, each with its weight in thousandths. One whose weight is none is not wanted.
fn items(value: &[u8]) -> impl Iterator<Item = (&[u8], u16)> {
    value.split(|byte| *byte == b',').filter_map(|item| {
        let mut parts = item.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let weight = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
        Some((name, weight.map_or(1_000, |weight| thousandths(weight).unwrap_or_default())))
    })
}

/// A weight (RFC 9110 section 12.4.2).
fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, part) = text.split_at(1.min(text.len()));
    let digits = match part {
        [] => part,
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return None,
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let part = (0..3).fold(0, |all, at| all * 10 + digits.get(at).map_or(0, |digit| u16::from(digit - b'0')));
    match whole {
        b"0" => Some(part),
        b"1" if part == 0 => Some(1_000),
        _ => None,
    }
}

/// What becomes of an answer; `length` is how long its body is, if that is known.
pub fn worth(order: &Order, status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> Worth {
    let has_none = [StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED];
    let is_whole = !status.is_informational() && status != StatusCode::PARTIAL_CONTENT && !has_none.contains(&status);
    let is_encoded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let is_left = headers.contains_key(header::CONTENT_RANGE) || super::cache::forbids_change(headers);
    if !is_whole || is_encoded || is_left || !is_meant(order, headers) {
        return Worth::No;
    }
    if length.is_some_and(|length| length < order.config.bytes_min) {
        return Worth::No;
    }
    order.coding.map_or(Worth::NotHere, Worth::Yes)
}

fn is_meant(order: &Order, headers: &HeaderMap) -> bool {
    let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = said.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind.starts_with("application/grpc") {
        return false;
    }
    let fits = |meant: &String| match meant.strip_suffix('*') {
        Some(start) => kind.starts_with(start),
        None => *meant == kind,
    };
    !kind.is_empty() && order.config.types.iter().any(fits)
}

/// Says in the fields of an answer that it might have been encoded otherwise.
pub fn says_varies(headers: &mut HeaderMap) {
    let is_said = headers.get_all(header::VARY).iter().any(|value| {
        let mut names = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding"))
    });
    if !is_said {
        headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// Says in the fields of an answer how it is compressed.
pub fn says_coding(headers: &mut HeaderMap, coding: Coding) {
    says_varies(headers);
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    headers.remove(header::CONTENT_LENGTH);
    // Of what it was before: parts, and sums.
    headers.remove(header::ACCEPT_RANGES);
    headers.remove("content-md5");
    headers.remove("content-digest");
    // Byte for byte it is another by now (RFC 9110 section 8.8.1).
    if let Some(tag) = headers.get(header::ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/"))
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(header::ETAG, weak);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Coding; 3] = [Coding::Zstd, Coding::Br, Coding::Gzip];

    #[test]
    fn a_client_gets_what_it_likes_most() {
        for (said, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("gzip, br, zstd", Some(Coding::Zstd)),
            ("gzip;q=1, br;q=0.9, zstd;q=0", Some(Coding::Gzip)),
            ("GZIP ; Q=0.5 , br; q=0.501", Some(Coding::Br)),
            ("x-gzip", Some(Coding::Gzip)),
            ("*", Some(Coding::Zstd)),
            ("*;q=0.5, zstd;q=0", Some(Coding::Br)),
            ("identity, gzip;q=0.5", None),
            ("identity;q=0.5, gzip", Some(Coding::Gzip)),
            ("identity;q=0, *;q=0", None),
            ("deflate, compress", None),
            ("gzip;q=0.0001, br;q=2, zstd;q=x", None),
            ("", None),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {said}\r\n\r\n");
            assert_eq!(liked(&Request::of_http1(head.as_bytes(), false, 0), &ALL), expected, "{said}");
        }
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        assert_eq!(liked(&Request::of_http1(head, false, 0), &ALL), None);
    }

    #[test]
    fn what_is_worth_it_is_compressed_and_says_so() {
        let types = ["text/*", "application/json"].map(str::to_owned).to_vec();
        let config = Arc::new(content::Compress { codings: ALL.to_vec(), level: None, bytes_min: 100, types });
        let order = |coding| Order { coding, config: Arc::clone(&config) };
        let yes = Worth::Yes(Coding::Br);
        for (status, fields, length, expected) in [
            (200, "content-type: text/html; charset=utf-8", Some(100), yes),
            (200, "content-type: Application/JSON", None, yes),
            (200, "content-type: text/event-stream", None, yes),
            (404, "content-type: text/plain\ncontent-encoding: identity", Some(1000), yes),
            (200, "content-type: text/html", Some(99), Worth::No),
            (200, "content-type: image/png", None, Worth::No),
            (200, "x-a: b", None, Worth::No),
            (200, "content-type: text/html\ncontent-encoding: gzip", None, Worth::No),
            (200, "content-type: text/html\ncache-control: public, no-transform", None, Worth::No),
            (206, "content-type: text/html\ncontent-range: bytes 0-1/2", None, Worth::No),
            (204, "content-type: text/html", None, Worth::No),
            (304, "content-type: text/html", None, Worth::No),
        ] {
            let field = |line: &str| {
                let (name, value) = line.split_once(": ").expect("a field");
                (header::HeaderName::from_bytes(name.as_bytes()).expect("a name"), value.parse().expect("a value"))
            };
            let headers: HeaderMap = fields.lines().map(field).collect();
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(worth(&order(Some(Coding::Br)), status, &headers, length), expected, "{status} {fields}");
            let without = if expected == yes { Worth::NotHere } else { Worth::No };
            assert_eq!(worth(&order(None), status, &headers, length), without, "{status} {fields}");
        }
    }

    #[test]
    fn fields_tell_of_the_coding() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(5));
        headers.insert(header::ETAG, HeaderValue::from_static("\"a\""));
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        says_coding(&mut headers, Coding::Zstd);
        says_varies(&mut headers);
        let vary: Vec<&str> = headers.get_all(header::VARY).iter().filter_map(|value| value.to_str().ok()).collect();
        assert_eq!((vary, headers.contains_key(header::CONTENT_LENGTH)), (vec!["origin", "accept-encoding"], false));
        assert!(headers[header::ETAG] == "W/\"a\"" && headers[header::CONTENT_ENCODING] == "zstd");
    }
}
