//! What is true of every decoder whatever bytes come: all of them together, and torn at any byte. The tests hold the corpus and mutations of
//! it to this, the fuzz targets (`cargo xtask fuzz`) what a search for new paths through the code comes up with.

mod translation;

pub use translation::translation;

use super::{
    chunked::{BadChunk, Decoder, Event, FRAME_BYTES_MAX, Style, reframe},
    edit,
    http1::{self, Asked, Edits, FIELDS_MAX},
    sniff::{Spoken, sniff},
};

/// Ends of all beginnings, whole included; of long ones only some.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    (0..=bytes.len()).step_by(1 + bytes.len() / 300)
}

/// What a head is after its edits.
fn edited(bytes: &[u8], head: usize, start_line: usize, edits: &Edits) -> Vec<u8> {
    const ROOM: usize = 4096;
    let mut memory = [&[0; ROOM][..], bytes].concat();
    for (at, byte) in &edits.patches {
        memory[ROOM + at] = *byte;
    }
    let start = edit::cut(&mut memory, ROOM..ROOM + head, &edits.cuts);
    let start = edit::insert_field(&mut memory, start, start_line, &edits.insert).expect("there is room");
    memory[start..].to_vec()
}

/// A request: torn or whole it is read alike, and what is passed on means the same to the next reader.
pub fn request(bytes: &[u8]) {
    let whole = http1::request(bytes, FIELDS_MAX);
    for cut in cuts(bytes) {
        match (http1::request(&bytes[..cut], FIELDS_MAX), &whole) {
            (Ok(None), _) | (Err(_), Err(_)) => {}
            (torn, whole) => assert_eq!(&torn, whole, "at {cut}"),
        }
    }
    let Ok(Some(mut head)) = whole else { return };
    if head.lacks_host {
        head.edits.insert.extend_from_slice(b"Host: a\r\n");
    }
    let passed_on = edited(bytes, head.bytes, head.start_line_bytes, &head.edits);
    let again = http1::request(&passed_on, FIELDS_MAX).expect("what is passed on is good").expect("and whole");
    assert_eq!((again.framing, again.method), (head.framing, head.method));
    assert!(again.edits.cuts.is_empty() || head.websocket, "{:?}", passed_on.escape_ascii());
    assert_eq!(passed_on[again.bytes..], bytes[head.bytes..], "what follows is not touched");
}

/// A response to every kind of request: the same.
pub fn response(bytes: &[u8]) {
    for index in 0..16_u8 {
        let is = |bit: u8| index >> bit & 1 == 1;
        let asked = Asked { head: is(0), websocket: is(1), http10: is(2), connect: is(3), fields_max: FIELDS_MAX };
        let whole = http1::response(bytes, asked);
        for cut in cuts(bytes).filter(|cut| index == 0 || cut % 16 == 0) {
            match (http1::response(&bytes[..cut], asked), &whole) {
                (Ok(None), _) | (Err(_), Err(_)) => {}
                (torn, whole) => assert_eq!(&torn, whole, "at {cut}"),
            }
        }
        let Ok(Some(head)) = whole else { continue };
        let passed_on = edited(bytes, head.bytes, head.start_line_bytes, &head.edits);
        // Chunks that are passed on bare have lost the field that said so.
        let bare = head.framing == http1::Framing::Chunked && asked.http10;
        let again = http1::response(&passed_on, asked).expect("what is passed on is good").expect("and whole");
        assert!(bare || again.framing == head.framing, "{:?}", passed_on.escape_ascii());
        assert_eq!((again.status, again.switches), (head.status, head.switches));
    }
}

/// Body, trailer fields, and how many bytes were read; `None`: there is more to come.
type Decoded = Result<Option<(Vec<u8>, Vec<u8>, usize)>, BadChunk>;

fn decode(bytes: &[u8], cut: usize) -> Decoded {
    let (mut decoder, mut body, mut read) = (Decoder::default(), Vec::new(), 0);
    for piece in [&bytes[..cut], &bytes[cut..]] {
        let mut at = 0;
        while let Event::Data(range) = decoder.next(piece, &mut at)? {
            body.extend_from_slice(&piece[range]);
        }
        read += at;
    }
    Ok(decoder.is_done().then(|| (body, decoder.trailers().to_vec(), read)))
}

/// A chunked body: torn or whole it decodes alike, and framed anew it is the same body.
pub fn chunks(bytes: &[u8]) {
    let whole = decode(bytes, 0);
    for cut in cuts(bytes) {
        assert_eq!(decode(bytes, cut), whole, "at {cut}");
    }
    let Ok(Some((body, trailers, _))) = whole else { return };
    let mut memory = [&[0; FRAME_BYTES_MAX][..], bytes, &[0; 2]].concat();
    let piece = FRAME_BYTES_MAX..FRAME_BYTES_MAX + bytes.len();
    let reframed = reframe(&mut Decoder::default(), &mut memory, 0, piece, Style::Chunks).expect("it was good");
    let sent = [&memory[reframed.send], &reframed.tail].concat();
    assert_eq!(decode(&sent, 0), Ok(Some((body, trailers, sent.len()))));
}

/// The first bytes of a connection: what was sure of a beginning stays so.
pub fn first_bytes(bytes: &[u8]) {
    let whole = sniff(bytes);
    for cut in cuts(bytes) {
        match sniff(&bytes[..cut]) {
            None => {}
            // What was sure of a beginning stays so, whatever follows.
            some => assert_eq!(some, whole, "at {cut}"),
        }
    }
}

/// A TLS client hello: the same, and within its bounds.
pub fn client_hello(bytes: &[u8]) {
    first_bytes(bytes);
    if let Some(Spoken::Tls(hello)) = sniff(bytes) {
        assert!(hello.server_name.is_none_or(|name| name.len() < 256) && hello.protocols.len() <= 8);
    }
}
