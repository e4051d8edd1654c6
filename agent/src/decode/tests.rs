//! Every decoder of first bytes and of HTTP/1 against the corpus in `tests/corpus`: each file torn at every byte, and mutated at random.
//!
//! The mutations of a run are given by a seed. `SOCKWAY_FUZZ_SECONDS=600 cargo test -p sockway --release decode::tests` goes on for ten minutes
//! with each decoder, and a failure names seed and bytes.

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    chunked::{BadChunk, Decoder, Event, FRAME_BYTES_MAX, Style, reframe},
    edit,
    http1::{self, Asked, Edits, FIELDS_MAX},
    sniff::{Spoken, sniff},
};

/// Mutations of each file unless a time is given: below a second for all of them in a debug build.
const ROUNDS: u64 = 300;

/// The files of one decoder.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&directory).expect("the corpus").map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 4, "a corpus of {} files in {}", files.len(), directory.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Holds a decoder to what must be true of it for whatever bytes come: all of the corpus, and mutations of it.
fn hold(name: &str, must_be_true: fn(&[u8])) {
    let files = corpus(name);
    let check = |bytes: &[u8], seed: u64| {
        let held = catch_unwind(AssertUnwindSafe(|| must_be_true(bytes)));
        assert!(held.is_ok(), "{name}, seed {seed}: {}", bytes.escape_ascii());
    };
    files.iter().for_each(|bytes| check(bytes, 0));
    let seconds: Option<u64> = env::var("SOCKWAY_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let (until, mut seed) = (Instant::now() + Duration::from_secs(seconds.unwrap_or(0)), 0);
    while (seconds.is_none() && seed < ROUNDS * files.len() as u64) || Instant::now() < until {
        seed += 1;
        check(&mutated(&files, seed), seed);
    }
}

/// Random numbers of a seed: splitmix64, as in [`crate::proxy`].
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ mixed >> 31) % bound.max(1) as u64) as usize
    }
}

/// What is put in: bytes and words that mean something to somebody.
const PIECES: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\"",
    b"0",
    b"ff",
    b"\xff",
    b"\x80",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n",
    b"Connection: close, host\r\n",
    b"Host: b\r\n",
    b"Upgrade: websocket\r\n",
    b"HTTP/1.1",
    b"http://c/",
    b"0\r\n\r\n",
    b"\x16\x03\x01",
];

fn mutated(files: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let mut chance = Chance(seed);
    let mut bytes = files[chance.below(files.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len() + 1);
        let end = (at + chance.below(12)).min(bytes.len());
        match chance.below(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            1 => drop(bytes.drain(at..end)),
            2 => bytes.truncate(at),
            3 => drop(bytes.splice(at..at, bytes[at..end].to_vec())),
            4 => {
                let other = &files[chance.below(files.len())];
                let from = chance.below(other.len());
                drop(bytes.splice(at..end, other[from..].to_vec()));
            }
            _ => drop(bytes.splice(at..at, PIECES[chance.below(PIECES.len())].to_vec())),
        }
    }
    bytes
}

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

fn request_holds(bytes: &[u8]) {
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

fn response_holds(bytes: &[u8]) {
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

fn chunks_hold(bytes: &[u8]) {
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

fn first_bytes_hold(bytes: &[u8]) {
    let whole = sniff(bytes);
    for cut in cuts(bytes) {
        match sniff(&bytes[..cut]) {
            None => {}
            // What was sure of a beginning stays so, whatever follows.
            some => assert_eq!(some, whole, "at {cut}"),
        }
    }
}

fn hello_holds(bytes: &[u8]) {
    first_bytes_hold(bytes);
    if let Some(Spoken::Tls(hello)) = sniff(bytes) {
        assert!(hello.server_name.is_none_or(|name| name.len() < 256) && hello.protocols.len() <= 8);
    }
}

#[test]
fn requests_are_read_in_one_way_however_they_are_torn_or_bent() {
    hold("h1-request", request_holds);
}

#[test]
fn responses_are_read_in_one_way_however_they_are_torn_or_bent() {
    hold("h1-response", response_holds);
}

#[test]
fn chunks_are_read_in_one_way_however_they_are_torn_or_bent() {
    hold("chunked", chunks_hold);
}

#[test]
fn first_bytes_are_judged_in_one_way_however_they_are_torn_or_bent() {
    hold("first-bytes", first_bytes_hold);
}

#[test]
fn hellos_are_read_in_one_way_however_they_are_torn_or_bent() {
    hold("client-hello", hello_holds);
}

#[test]
fn a_seed_gives_the_same_mutations_again() {
    let files = corpus("h1-request");
    let all = |from: u64| (from..from + 50).map(|seed| mutated(&files, seed)).collect::<Vec<_>>();
    assert_eq!(all(1), all(1));
    assert_ne!(all(1), all(51));
}
