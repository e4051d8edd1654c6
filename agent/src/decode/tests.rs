//! Every decoder of first bytes and of HTTP/1 against the corpus in `tests/corpus`: each file torn at every byte, and mutated at random.
//!
//! The mutations of a run are given by a seed, and a failure names it. `cargo xtask fuzz` searches for longer and knows better where.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use super::hold;

/// Mutations of each file: below a second for all of them in a debug build.
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
fn each(name: &str, must_be_true: fn(&[u8])) {
    let files = corpus(name);
    let check = |bytes: &[u8], seed: u64| {
        let held = catch_unwind(AssertUnwindSafe(|| must_be_true(bytes)));
        assert!(held.is_ok(), "{name}, seed {seed}: {}", bytes.escape_ascii());
    };
    files.iter().for_each(|bytes| check(bytes, 0));
    for seed in 1..=ROUNDS * files.len() as u64 {
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

#[test]
fn requests_are_read_in_one_way_however_they_are_torn_or_bent() {
    each("h1-request", hold::request);
}

#[test]
fn responses_are_read_in_one_way_however_they_are_torn_or_bent() {
    each("h1-response", hold::response);
}

#[test]
fn chunks_are_read_in_one_way_however_they_are_torn_or_bent() {
    each("chunked", hold::chunks);
}

#[test]
fn first_bytes_are_judged_in_one_way_however_they_are_torn_or_bent() {
    each("first-bytes", hold::first_bytes);
}

#[test]
fn hellos_are_read_in_one_way_however_they_are_torn_or_bent() {
    each("client-hello", hold::client_hello);
}

#[test]
fn heads_that_change_their_protocol_mean_the_same_however_they_are_bent() {
    each("translation", hold::translation);
}

#[test]
fn a_seed_gives_the_same_mutations_again() {
    let files = corpus("h1-request");
    let all = |from: u64| (from..from + 50).map(|seed| mutated(&files, seed)).collect::<Vec<_>>();
    assert_eq!(all(1), all(1));
    assert_ne!(all(1), all(51));
}
