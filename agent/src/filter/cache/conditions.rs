//! What a client has already: If-None-Match and If-Modified-Since (RFC 9110 section 13, RFC 9111 section 4.3.2).

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::route::Request;

/// What a request says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Entity tags, or `*`; of several lines one list.
    none_match: Option<Vec<u8>>,
    modified_since: Option<Vec<u8>>,
}

impl Conditions {
    pub(super) fn of(request: &Request<'_>) -> Self {
        let none_match = super::joined(request.headers("if-none-match"));
        Self { none_match, modified_since: request.header("if-modified-since").map(<[u8]>::to_vec) }
    }

    /// Whether there are any.
    pub fn is_empty(&self) -> bool {
        self.none_match.is_none() && self.modified_since.is_none()
    }
}

/// Whether a client that says this has what these fields are of, so that 304 is all it must be told.
pub fn holds(conditions: &Conditions, headers: &HeaderMap) -> bool {
    match &conditions.none_match {
        Some(tags) => {
            let Some(tag) = headers.get(header::ETAG) else { return tags == b"*" };
            tags == b"*" || tags_of(tags).any(|said| opaque(said) == opaque(tag.as_bytes()))
        }
        None => {
            let Some(since) = conditions.modified_since.as_deref().and_then(date) else { return false };
            // What was never said to be modified was there when it was said (RFC 9111 section 4.3.2).
            let modified = [header::LAST_MODIFIED, header::DATE].iter().find_map(|name| headers.get(name));
            modified.and_then(|value| date(value.as_bytes())).is_some_and(|modified| modified <= since)
        }
    }
}

/// The tags of a list; commas may stand within them.
fn tags_of(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let parts = list.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    });
    parts.map(<[u8]>::trim_ascii)
}

/// A tag as it is compared weakly (RFC 9110 section 8.8.3.2).
fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// A date in any of its forms (RFC 9110 section 5.6.7), since 1970.
pub(super) fn date(value: &[u8]) -> Option<Duration> {
    let time = httpdate::parse_http_date(std::str::from_utf8(value).ok()?.trim()).ok()?;
    time.duration_since(SystemTime::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_what_its_tags_or_its_date_say() {
        let headers = |fields: &[(&'static str, &'static str)]| -> HeaderMap {
            fields.iter().map(|(name, value)| (header::HeaderName::from_static(name), value.parse().unwrap())).collect()
        };
        let old = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
        let tagged = headers(&[("etag", "\"a,b\""), old]);
        let weak = headers(&[("etag", "W/\"a,b\"")]);
        for (head, of, expected) in [
            ("If-None-Match: \"a,b\"", &tagged, true),
            ("If-None-Match: \"x\" , W/\"a,b\"", &tagged, true),
            ("If-None-Match: \"x\"\r\nIf-None-Match: \"a,b\"", &weak, true),
            ("If-None-Match: *", &weak, true),
            ("If-None-Match: \"a\"", &tagged, false),
            // The tag comes first, whatever the date says.
            ("If-None-Match: \"a\"\r\nIf-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", &tagged, false),
            ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", &tagged, true),
            ("If-Modified-Since: Sunday, 06-Nov-94 08:49:38 GMT", &tagged, true),
            ("If-Modified-Since: Sun Nov  6 08:49:36 1994", &tagged, false),
            ("If-Modified-Since: yesterday", &tagged, false),
            ("X-A: b", &tagged, false),
        ] {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n");
            let request = Request::of_http1(head.as_bytes(), false, 0);
            assert_eq!(holds(&Conditions::of(&request), of), expected, "{head}");
        }
    }
}
