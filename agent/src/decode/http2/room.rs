//! How much room there is for a head: the limits of its service, which hold whatever is spoken. Counted is what HTTP/1 would need for it, so that
//! the same number means the same on either side of a hop.

use http::{HeaderMap, HeaderName, HeaderValue, request::Parts};

use super::Asked;
use crate::{
    config::http::Http,
    decode::http1::{BadRequest, BadResponse},
};

/// What a field takes beside its name and value: a colon, a space and the end of its line.
const FIELD_BYTES: usize = 4;
/// What the library counts for a field beside its name and value (RFC 9113 section 6.5.2).
const ENTRY_BYTES: usize = 32;
/// How much more the library may unpack than is passed on: what is too long is then refused with its reason and counted, which the library
/// does not do. What is longer still is a bare 431, or a response that breaks a rule.
const MORE_BYTES: usize = 64 * 1024;
/// The least and usual length of the longest frame.
const FRAME_BYTES: usize = 16 * 1024;

/// What a head may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    bytes: usize,
    fields: usize,
}

impl Room {
    /// In messages of a service.
    pub fn of(http: &Http) -> Self {
        Self { bytes: http.head_bytes_max, fields: http.head_fields_max }
    }

    /// How much the library may unpack of one head.
    pub fn list_bytes(self) -> u32 {
        let bytes = self.bytes + MORE_BYTES.min(self.bytes) + ENTRY_BYTES * self.fields;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Frames behind the first of one head: as many as the longest may have, and one more.
    pub fn continuations(self) -> u32 {
        self.list_bytes() / FRAME_BYTES as u32 + 1
    }

    /// Checks a request's head, if it has room, and makes it one that may be passed on ([`super::request`]).
    pub fn request(self, parts: &mut Parts, protocol: Option<&[u8]>) -> Result<Asked, BadRequest> {
        self.holds_request(parts)?;
        super::request(parts, protocol)
    }

    /// The same of a response ([`super::response`]).
    pub fn response(self, status: u16, headers: &mut HeaderMap) -> Result<(), BadResponse> {
        self.holds_response(headers)?;
        super::response(status, headers)
    }

    fn holds_request(self, parts: &Parts) -> Result<(), BadRequest> {
        let authority = parts.uri.authority().map_or(0, |authority| authority.as_str().len());
        let path = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
        let start = parts.method.as_str().len() + authority + path;
        match self.is_exceeded(&parts.headers, start) {
            None => Ok(()),
            Some(Excess::Fields) => Err(BadRequest::TooManyFields),
            Some(Excess::Bytes) => Err(BadRequest::TooLong),
        }
    }

    fn holds_response(self, headers: &HeaderMap) -> Result<(), BadResponse> {
        match self.is_exceeded(headers, 0) {
            None => Ok(()),
            Some(Excess::Fields) => Err(BadResponse("too many header fields")),
            Some(Excess::Bytes) => Err(BadResponse("its head is too long")),
        }
    }

    fn is_exceeded(self, headers: &HeaderMap, start_bytes: usize) -> Option<Excess> {
        if headers.len() > self.fields {
            return Some(Excess::Fields);
        }
        let bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + FIELD_BYTES;
        (start_bytes + headers.iter().map(bytes).sum::<usize>() > self.bytes).then_some(Excess::Bytes)
    }
}

/// What there is too much of.
enum Excess {
    Fields,
    Bytes,
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const ROOM: Room = Room { bytes: 100, fields: 3 };

    fn headers(fields: &[(&'static str, usize)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, length) in fields {
            let value = HeaderValue::try_from("z".repeat(*length)).unwrap();
            headers.append(HeaderName::from_static(name), value);
        }
        headers
    }

    #[test]
    fn a_head_has_so_many_bytes_and_fields() {
        let of = |fields: &[(&'static str, usize)]| ROOM.holds_response(&headers(fields)).map_err(|bad| bad.0);
        assert_eq!(of(&[("a", 95)]), Ok(()));
        assert_eq!(of(&[("a", 96)]), Err("its head is too long"));
        assert_eq!(of(&[("a", 45), ("a", 45)]), Ok(()));
        assert_eq!(of(&[("a", 45), ("a", 46)]), Err("its head is too long"));
        assert_eq!(of(&[("a", 0), ("b", 0), ("c", 0)]), Ok(()));
        assert_eq!(of(&[("a", 0), ("b", 0), ("a", 0), ("a", 0)]), Err("too many header fields"));
    }

    #[test]
    fn where_a_request_goes_is_part_of_its_head() {
        let of = |path: usize, value: usize| {
            let request = Request::get(format!("http://abc/{}", "p".repeat(path))).body(()).unwrap();
            let mut parts = request.into_parts().0;
            parts.headers = headers(&[("a", value)]);
            ROOM.holds_request(&parts)
        };
        assert_eq!(of(88, 0), Ok(()));
        assert_eq!(of(88, 1), Err(BadRequest::TooLong));
    }

    #[test]
    fn the_library_unpacks_more_than_is_passed_on() {
        let room = Room::of(&Http::default());
        assert_eq!((room.list_bytes(), room.continuations()), (137_472, 9));
        assert_eq!(Room { bytes: 1 << 20, fields: 10_000 }.continuations(), 88);
    }
}
