//! What a TLS client asks for before anything is encrypted: the name of the server and the protocols it would speak (RFC 8446 section 4.1.2,
//! RFC 6066 section 3, RFC 7301 section 3.1). Read for the record and for choosing a way; nothing of it is ever changed.

/// Content type of the record with which a TLS connection begins.
pub(super) const HANDSHAKE: u8 = 22;
/// Message type of a ClientHello.
const CLIENT_HELLO: u8 = 1;
/// Longest plaintext of a record (RFC 8446 section 5.1).
const RECORD_BYTES_MAX: usize = 1 << 14;
/// Longest hello that is read; with the largest post-quantum key shares they are below 4 KiB.
pub const HELLO_BYTES_MAX: usize = 8 * 1024;
/// Longest server name: a DNS name.
const NAME_BYTES_MAX: usize = 255;
/// Most protocols that are kept.
const PROTOCOLS_MAX: usize = 8;

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The host that it means to reach.
    pub server_name: Option<String>,
    /// The protocols it offers to speak, the most wanted first.
    pub protocols: Vec<String>,
}

/// How far a hello is there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Hello {
    Whole(ClientHello),
    Begun,
    /// Not TLS, or not as it must be.
    Other,
}

/// Reads a ClientHello from the first records of a connection.
pub(super) fn read(bytes: &[u8]) -> Hello {
    match message(bytes) {
        Ok(Some(message)) => client_hello(&message).map_or(Hello::Other, Hello::Whole),
        Ok(None) => Hello::Begun,
        Err(Malformed) => Hello::Other,
    }
}

struct Malformed;

/// Gathers the first handshake message, which may be torn over several records; `None` while it is not all there. One that is longer than is
/// read counts as an empty one.
fn message(bytes: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let (mut gathered, mut rest) = (Vec::new(), bytes);
    loop {
        // Judged as far as it is there: nothing is waited for that cannot become a hello.
        let expected = [
            |byte| byte == HANDSHAKE,
            |byte| byte == 3,
            |byte| byte <= 4,
            |byte| usize::from(byte) << 8 <= RECORD_BYTES_MAX,
        ];
        if rest.iter().zip(expected).any(|(byte, expected)| !expected(*byte)) {
            return Err(Malformed);
        }
        let Some((header, body)) = rest.split_first_chunk::<5>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(Malformed);
        }
        let here = &body[..length.min(body.len())];
        gathered.extend_from_slice(here);
        if gathered.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(Malformed);
        }
        if let [_, high, middle, low, message @ ..] = &gathered[..] {
            let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
            if length > HELLO_BYTES_MAX {
                return Ok(Some(Vec::new()));
            }
            if message.len() >= length {
                return Ok(Some(message[..length].to_vec()));
            }
        }
        if here.len() < length {
            return Ok(None);
        }
        rest = &body[length..];
    }
}

fn client_hello(message: &[u8]) -> Option<ClientHello> {
    let mut hello = ClientHello::default();
    if message.is_empty() {
        return Some(hello);
    }
    let mut rest = Part(message);
    rest.bytes(2 + 32)?; // version, random
    rest.vector(1)?; // session
    rest.vector(2)?; // cipher suites
    rest.vector(1)?; // compression
    if rest.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = rest.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut content = extensions.vector(2)?;
        match kind {
            0 => hello.server_name = server_name(&mut content.vector(2)?)?,
            16 => hello.protocols = protocols(&mut content.vector(2)?)?,
            _ => {}
        }
    }
    Some(hello)
}

/// The outer `None`: malformed.
fn server_name(list: &mut Part<'_>) -> Option<Option<String>> {
    let mut name = None;
    while !list.0.is_empty() {
        let kind = list.number(1)?;
        let Part(bytes) = list.vector(2)?;
        let is_name = kind == 0 && (1..=NAME_BYTES_MAX).contains(&bytes.len());
        if is_name && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(byte)) {
            name = Some(String::from_utf8_lossy(bytes).to_ascii_lowercase());
        }
    }
    Some(name)
}

fn protocols(list: &mut Part<'_>) -> Option<Vec<String>> {
    let mut protocols = Vec::new();
    while !list.0.is_empty() {
        let Part(protocol) = list.vector(1)?;
        if protocols.len() < PROTOCOLS_MAX {
            protocols.push(protocol.escape_ascii().to_string());
        }
    }
    Some(protocols)
}

/// What of a message is still to be read.
struct Part<'b>(&'b [u8]);

impl<'b> Part<'b> {
    fn bytes(&mut self, count: usize) -> Option<&'b [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.bytes(bytes)?.iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Bytes behind their count, of which the length has `bytes`.
    fn vector(&mut self, bytes: usize) -> Option<Part<'b>> {
        let count = self.number(bytes)?;
        self.bytes(count).map(Part)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vector(length_bytes: usize, content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes()[4 - length_bytes..], content].concat()
    }

    fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &vector(2, content)].concat()
    }

    /// The handshake message.
    fn hello(extensions: &[u8]) -> Vec<u8> {
        let body = [
            &[3, 3][..],
            &[7; 32],
            &vector(1, &[1; 32]),
            &vector(2, &[0x13, 0x01]),
            &vector(1, &[0]),
            &vector(2, extensions),
        ];
        [&[CLIENT_HELLO][..], &vector(3, &body.concat())].concat()
    }

    fn records(message: &[u8], bytes_each: usize) -> Vec<u8> {
        message.chunks(bytes_each).flat_map(|part| [&[HANDSHAKE, 3, 1][..], &vector(2, part)].concat()).collect()
    }

    fn asking() -> Vec<u8> {
        let name = vector(2, &[&[0][..], &vector(2, b"Shop.Example.test")].concat());
        let alpn = vector(2, &[vector(1, b"h2"), vector(1, b"http/1.1")].concat());
        hello(&[extension(10, b"\x00\x02\x00\x1d"), extension(0, &name), extension(16, &alpn)].concat())
    }

    fn asked() -> ClientHello {
        let protocols = vec!["h2".to_owned(), "http/1.1".to_owned()];
        ClientHello { server_name: Some("shop.example.test".to_owned()), protocols }
    }

    #[test]
    fn name_and_protocols_are_read_however_the_hello_is_torn() {
        for bytes_each in [1, 3, 50, RECORD_BYTES_MAX] {
            let bytes = records(&asking(), bytes_each);
            for end in 0..bytes.len() {
                assert_eq!(read(&bytes[..end]), Hello::Begun, "{end} of {} in records of {bytes_each}", bytes.len());
            }
            assert_eq!(read(&bytes), Hello::Whole(asked()));
            assert_eq!(read(&[&bytes[..], b"early data"].concat()), Hello::Whole(asked()));
        }
    }

    #[test]
    fn a_hello_that_asks_for_nothing_is_one_too() {
        assert_eq!(read(&records(&hello(b""), 100)), Hello::Whole(ClientHello::default()));
        let address = vector(2, &[&[0][..], &vector(2, b"a b\0")].concat());
        let odd = hello(&extension(0, &address));
        assert_eq!(read(&records(&odd, 100)), Hello::Whole(ClientHello::default()));
        // Longer than is read: passed on all the same, and not waited for.
        let long = [&[CLIENT_HELLO, 0, 0xff, 0xff][..], &[0; 100]].concat();
        assert_eq!(read(&records(&long, 104)), Hello::Whole(ClientHello::default()));
    }

    #[test]
    fn what_is_no_hello_is_opaque() {
        let bytes = records(&asking(), RECORD_BYTES_MAX);
        for (at, byte) in [(0, 21), (1, 2), (2, 9), (3, 0xff), (5, 2), (43, 0xff)] {
            let mut other = bytes.clone();
            other[at] = byte;
            assert_eq!(read(&other), Hello::Other, "byte {at}");
        }
        assert_eq!(read(&[HANDSHAKE, 3, 1, 0, 0]), Hello::Other);
    }

    proptest! {
        #[test]
        fn nothing_panics_whatever_comes(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..200usize, byte: u8) {
            let _ = read(&bytes);
            let _ = read(&[&[HANDSHAKE, 3, 1, 0, 150, 1, 0, 0, 100][..], &bytes].concat());
            let mut hello = records(&asking(), 60);
            let at = at % hello.len();
            hello[at] = byte;
            let _ = read(&hello);
        }
    }
}
