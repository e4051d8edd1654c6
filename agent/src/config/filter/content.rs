//! What filters do with the content of answers: keep it, and encode it.

use std::time::Duration;

/// Answers are kept, and given again (RFC 9111, as a shared cache).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// How much is kept, in bytes: heads, bodies and what it takes to find them.
    pub bytes_max: u64,
    /// The longest body that is kept, in bytes.
    pub entry_bytes_max: u64,
    /// For an answer that does not say how long it is fresh: so many percent of the time since it was last modified. Nothing: it is not kept.
    pub heuristic_percent: u32,
    /// And no longer than this.
    pub heuristic_max: Duration,
    /// For how long one that is not fresh any more may stand in for an error, where it does not say so itself (RFC 5861).
    pub stale_if_error: Duration,
    /// For how long it may be given while another is fetched, where it does not say so itself (RFC 5861).
    pub stale_while_revalidate: Duration,
    /// How long a request waits for what another has asked for already, before it asks by itself; nothing: each asks by itself.
    pub wait: Duration,
    /// Whether answers say how the cache has handled them (RFC 9211).
    pub responds: bool,
}

/// Answers are compressed for who takes that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compress {
    /// How, the one that is liked most first.
    pub codings: Vec<Coding>,
    /// How hard it is tried, as each coding counts it; `None`: as is usual for it.
    pub level: Option<u32>,
    /// What is shorter goes as it is, where the length is known, in bytes.
    pub bytes_min: u64,
    /// Media types, in lower case; one ends in `/*`: all of its kind.
    pub types: Vec<String>,
}

/// How content is compressed (the IANA registry of HTTP content codings).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// Zstandard (RFC 8878).
    Zstd,
    /// Brotli (RFC 7932).
    Br,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, Self); 3] = [("zstd", Self::Zstd), ("br", Self::Br), ("gzip", Self::Gzip)];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Br => "br",
            Self::Gzip => "gzip",
        }
    }

    /// The least and the most that can be tried.
    pub fn levels(self) -> (u32, u32) {
        match self {
            Self::Zstd => (1, 19),
            Self::Br => (0, 11),
            Self::Gzip => (1, 9),
        }
    }
}
