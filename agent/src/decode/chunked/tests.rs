//! Frames good and bad, torn anywhere.

use proptest::prelude::*;

use super::*;

/// Body, trailer fields and what follows; `None` while the body is not complete.
type Decoded = Result<Option<(Vec<u8>, Vec<u8>, Vec<u8>)>, BadChunk>;

fn decode<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Decoded {
    let (mut decoder, mut body, mut rest) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in pieces {
        let mut at = 0;
        loop {
            match decoder.next(piece, &mut at)? {
                Event::Data(range) => body.extend_from_slice(&piece[range]),
                Event::NeedMore => break,
                Event::End => {
                    rest.extend_from_slice(&piece[at..]);
                    break;
                }
            }
        }
    }
    Ok(decoder.is_done().then(|| (body, decoder.trailers().to_vec(), rest)))
}

fn whole(bytes: &[u8]) -> Decoded {
    decode(std::iter::once(bytes))
}

#[test]
fn a_body_is_what_is_in_its_chunks() {
    for (bytes, body, trailers, rest) in [
        (&b"0\r\n\r\n"[..], &b""[..], &b""[..], &b""[..]),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", b""),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\nGET /", b"abc", b"", b"GET /"),
        (b"A;x=y\r\n0123456789\r\n00\r\n\r\n", b"0123456789", b"", b""),
        (b"a;q=\"x;\\\"y\"\r\n0123456789\r\n0;end\r\n\r\n", b"0123456789", b"", b""),
        (b"0000000000000001\r\na\r\n0\r\n\r\n", b"a", b"", b""),
        (b"1\r\n\n\r\n0\r\nX-Sum: 9\r\n\r\n", b"\n", b"X-Sum: 9\r\n", b""),
        (b"0\r\nHost: evil\r\ncontent-length: 9\r\nX: 1\r\nProxy-X: 2\r\n\r\n", b"", b"X: 1\r\n", b""),
    ] {
        let decoded = whole(bytes).unwrap().unwrap();
        assert_eq!(decoded, (body.to_vec(), trailers.to_vec(), rest.to_vec()), "{}", bytes.escape_ascii());
    }
}

#[test]
fn malformed_frames_are_refused() {
    for bytes in [
        &b"\r\n"[..],
        b"0_2e\r\n",
        b"0x5\r\nhello",
        b"+5\r\nhello",
        b"-5\r\nhello",
        b" 5\r\nhello",
        b"5 \r\nhello",
        b"5\t;x\r\nhello",
        b"5\nhello",
        b"5\rhello",
        b"5\r\r\nhello",
        b"g\r\n",
        b"\xef\xbc\x95\r\nhello",
        b"5;x\ry\r\nhello",
        b"5;x\ny\r\nhello",
        b"5;\"x\r\ny\"\r\nhello",
        b"5;\0\r\nhello",
        b"5\r\nhello0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"5\r\nhelloXX0\r\n\r\n",
        b"8000000000000000\r\n",
        b"ffffffffffffffff\r\n",
        b"00000000000000001\r\na",
        b"0\r\nX\r\n\r\n",
        b"0\r\n: 1\r\n\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\n X: 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\nX: \x01\r\n\r\n",
        b"0\r\n\n",
        b"0\r\n\rX\r\n\r\n",
    ] {
        assert!(whole(bytes).is_err(), "{}: {:?}", bytes.escape_ascii(), whole(bytes));
    }
}

#[test]
fn extensions_and_trailer_fields_have_limits() {
    let extension = |bytes: u32| [b"1;", "x".repeat(bytes as usize).as_bytes(), b"\r\na\r\n0\r\n\r\n"].concat();
    assert!(whole(&extension(EXTENSION_BYTES_MAX)).is_ok());
    assert!(whole(&extension(EXTENSION_BYTES_MAX + 1)).is_err());
    let trailers = |count: usize| [b"0\r\n", "x: y\r\n".repeat(count).as_bytes(), b"\r\n"].concat();
    assert!(whole(&trailers(64)).is_ok());
    assert!(whole(&trailers(65)).is_err());
    assert!(whole(&[b"0\r\nx: ", "y".repeat(9000).as_bytes(), b"\r\n\r\n"].concat()).is_err());
}

#[test]
fn what_is_torn_at_every_byte_is_the_same() {
    let bytes = b"5;a=\"b\"\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nX: 1\r\nHost: no\r\nY: 2\r\n\r\nGET / HTTP/1.1";
    let all = whole(bytes).unwrap();
    for cut in 0..bytes.len() {
        let (before, after) = bytes.split_at(cut);
        assert_eq!(decode([before, after].into_iter()).unwrap(), all, "{cut}");
    }
    assert_eq!(decode(bytes.chunks(1)).unwrap(), all);
}

/// A body in chunks of these sizes, with trailer fields and something behind it.
fn framed(chunks: &[Vec<u8>], trailers: &[u8], behind: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, chunk) in chunks.iter().enumerate() {
        let extension = if index % 3 == 1 { ";x=\"y\"" } else { "" };
        bytes.extend_from_slice(format!("{:X}{extension}\r\n", chunk.len()).as_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    [&bytes, &b"0\r\n"[..], trailers, b"\r\n", behind].concat()
}

/// Everything that is sent when a body arrives in these pieces behind a head; and what is left for the next message.
fn reframed(bytes: &[u8], cuts: &[usize], head: &[u8], style: Style) -> (Vec<u8>, Vec<u8>, usize) {
    const ROOM: usize = FRAME_BYTES_MAX;
    let (mut decoder, mut sent, mut rest, mut body_bytes) = (Decoder::default(), Vec::new(), Vec::new(), 0);
    let mut bounds: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
    bounds.sort_unstable();
    for (index, bound) in bounds.windows(2).enumerate() {
        let piece = &bytes[bound[0]..bound[1]];
        if decoder.is_done() {
            rest.extend_from_slice(piece);
            continue;
        }
        let head = if index == 0 { head } else { b"" };
        let mut memory = [&[0xee; ROOM][..], head, piece, &[0xee; 2]].concat();
        let start = ROOM + head.len();
        let reframed = reframe(&mut decoder, &mut memory, head.len(), start..start + piece.len(), style).unwrap();
        sent.extend_from_slice(&memory[reframed.send]);
        sent.extend_from_slice(&reframed.tail);
        body_bytes += reframed.body_bytes;
        if reframed.done {
            rest.extend_from_slice(&memory[reframed.rest..start + piece.len()]);
        }
    }
    assert!(decoder.is_done());
    (sent, rest, body_bytes)
}

proptest! {
    #[test]
    fn a_new_frame_holds_the_same_body(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
        has_trailer in any::<bool>(),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
        head in "[a-z]{0,30}",
    ) {
        let trailers: &[u8] = if has_trailer { b"X-Sum: 1\r\nHost: evil\r\n" } else { b"" };
        let bytes = framed(&chunks, trailers, b"GET / HTTP/1.1\r\n");
        let body = chunks.concat();
        let (sent, rest, body_bytes) = reframed(&bytes, &cuts, head.as_bytes(), Style::Chunks);
        prop_assert_eq!(&rest[..], b"GET / HTTP/1.1\r\n");
        prop_assert_eq!(body_bytes, body.len());
        prop_assert!(sent.starts_with(head.as_bytes()));
        let kept: &[u8] = if has_trailer { b"X-Sum: 1\r\n" } else { b"" };
        prop_assert_eq!(whole(&sent[head.len()..]).unwrap().unwrap(), (body.clone(), kept.to_vec(), Vec::new()));
        let (sent, rest, _) = reframed(&bytes, &cuts, head.as_bytes(), Style::Bare);
        prop_assert_eq!(&rest[..], b"GET / HTTP/1.1\r\n");
        prop_assert_eq!(sent, [head.as_bytes(), &body].concat());
    }

    #[test]
    fn nothing_panics_whatever_comes(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0..200usize) {
        let (before, after) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(decode([before, after].into_iter()), whole(&bytes));
    }
}
