//! The field Cache-Control (RFC 9111 section 5.2, RFC 5861).

use std::time::Duration;

use http::HeaderMap;

use crate::route::Request;

/// More than this is never (RFC 9111 section 1.2.2).
const SECONDS_MAX: u64 = 1 << 31;

/// What a message says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub no_store: bool,
    /// Also of some fields only: what cannot be given without them is not given without asking.
    pub no_cache: bool,
    /// Also of some fields only.
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub no_transform: bool,
    pub only_if_cached: bool,
    pub max_age: Option<Duration>,
    pub s_maxage: Option<Duration>,
    pub min_fresh: Option<Duration>,
    /// With none, any.
    pub max_stale: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    pub stale_while_revalidate: Option<Duration>,
    /// Whether the field is there at all.
    pub is_there: bool,
}

impl Directives {
    pub fn of_request(request: &Request<'_>) -> Self {
        let mut directives = Self::of(request.headers("cache-control"));
        // RFC 9111 section 5.4: of those who know no other field.
        let says = |value: &[u8]| value.to_ascii_lowercase().windows(8).any(|at| at == b"no-cache");
        if !directives.is_there && request.headers("pragma").any(says) {
            directives.no_cache = true;
        }
        directives
    }

    pub fn of_response(headers: &HeaderMap) -> Self {
        Self::of(headers.get_all("cache-control").iter().map(|value| value.as_bytes()))
    }

    fn of<'v>(values: impl Iterator<Item = &'v [u8]>) -> Self {
        let mut directives = Self::default();
        for value in values {
            directives.is_there = true;
            for part in parts(value) {
                let (name, argument) = match part.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&part[..at], Some(unquoted(&part[at + 1..]))),
                    None => (part, None),
                };
                directives.add(&name.trim_ascii().to_ascii_lowercase(), argument);
            }
        }
        directives
    }

    fn add(&mut self, name: &[u8], argument: Option<&[u8]>) {
        // What is no number is stale (section 4.2.1); of two the first holds.
        let first = |known: &mut Option<Duration>| {
            known.get_or_insert_with(|| argument.and_then(seconds).unwrap_or_default());
        };
        match name {
            b"no-store" => self.no_store = true,
            b"no-cache" => self.no_cache = true,
            b"private" => self.private = true,
            b"public" => self.public = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"proxy-revalidate" => self.proxy_revalidate = true,
            b"no-transform" => self.no_transform = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"max-age" => first(&mut self.max_age),
            b"s-maxage" => first(&mut self.s_maxage),
            b"min-fresh" => first(&mut self.min_fresh),
            b"max-stale" if argument.is_none() => self.max_stale = Some(Duration::from_secs(SECONDS_MAX)),
            b"max-stale" => first(&mut self.max_stale),
            b"stale-if-error" => first(&mut self.stale_if_error),
            b"stale-while-revalidate" => first(&mut self.stale_while_revalidate),
            _ => {}
        }
    }
}

/// Whether a message says that nobody may change its content.
pub fn forbids_change(headers: &HeaderMap) -> bool {
    Directives::of_response(headers).no_transform
}

/// What stands between commas that are not in quotes.
fn parts(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    value.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' => return !quoted,
            _ => {}
        }
        false
    })
}

fn unquoted(text: &[u8]) -> &[u8] {
    let text = text.trim_ascii();
    text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text)
}

fn seconds(text: &[u8]) -> Option<Duration> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // Digits that are too many for a number are more than the most.
    let number = std::str::from_utf8(text).ok()?.parse().unwrap_or(SECONDS_MAX);
    Some(Duration::from_secs(number.min(SECONDS_MAX)))
}

/// A count of seconds, as the field Age has it.
pub(super) fn age(value: &[u8]) -> Option<Duration> {
    seconds(value.split(|byte| *byte == b',').next().unwrap_or_default().trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directives_are_read_in_whatever_form_they_are_written() {
        let of = |values: &[&str]| Directives::of(values.iter().map(|value| value.as_bytes()));
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let read =
            of(&["MAX-AGE=10 , s-maxage=\"20\"", "must-revalidate,,proxy-revalidate , foo=\"no-store, private\""]);
        assert_eq!((read.max_age, read.s_maxage), (seconds(10), seconds(20)));
        assert!(read.must_revalidate && read.proxy_revalidate && !read.no_store && !read.private);
        assert!(of(&["private=\"set-cookie\""]).private && of(&["no-cache=\"a, b\""]).no_cache);
        assert_eq!(of(&["max-age=1, max-age=2"]).max_age, seconds(1));
        for stale in ["max-age", "max-age=", "max-age=x", "max-age=-1", "max-age=1.5"] {
            assert_eq!(of(&[stale]).max_age, seconds(0), "{stale}");
        }
        assert_eq!(of(&["max-age=99999999999999999999999"]).max_age, seconds(SECONDS_MAX));
        assert_eq!((of(&["max-stale"]).max_stale, of(&["max-stale=5"]).max_stale), (seconds(SECONDS_MAX), seconds(5)));
        assert_eq!((of(&[]).is_there, of(&[""]).is_there), (false, true));
    }
}
