//! What a person wrote -> what it means, or every problem found, each as `FILE:LINE:COL: path.of.key: what is wrong; what to do`.
//!
//! `tree` reads YAML into values that know their place, `section` takes them apart by known keys, this file, `capture` and `service` say
//! what each key means, `conflicts` looks at what does not go together, and `show` writes a configuration in the file's own shape.

mod admin;
mod amend;
mod calendar;
mod capture;
mod conflicts;
mod deadline;
mod drill;
mod filter;
mod guard;
mod http;
mod inbound;
mod maps;
mod outlier;
mod pending;
mod policy;
mod preset;
mod probe;
mod request_limit;
mod retry;
mod route;
pub mod secret;
mod section;
mod service;
mod show;
mod strategy;
mod threshold;
mod tls;
mod tree;
mod tuning;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::Path as FilePath,
    time::Duration,
};

use self::{
    admin::{admin, audit},
    capture::{capture, default_capture},
    inbound::inbound,
    section::{Field, Path, Problems, Section, shown},
    service::services,
    tree::Node,
};
use super::{
    Admin, Audit, Balance, Config, HttpVersion, Mode, Protocol, Shortcut,
    maps::Maps,
    policy::{Over, Source},
};

pub use self::{
    amend::{amend, written},
    calendar::{show_hours, show_zone},
    drill::{lease, plan, show_lease},
    filter::keys_of,
    request_limit::show as show_limit,
    route::show_tried,
    section::{Position, Problem},
    show::{balance_word, mode_word, protocol_word, range, shortcut_word, show, show_service},
    strategy::strategy_word,
    tls::{bytes, files},
};

/// The configuration of an agent that was given none.
pub const DEFAULT: &str = include_str!("../../deploy/default.yaml");
/// What messages call it.
pub const DEFAULT_NAME: &str = "(embedded default)";

const INSTANCE_CHARS_MAX: usize = 32; // a cgroup, a directory of bpffs and a file are named after it
const ZONE_CHARS_MAX: usize = 63; // the value of a Kubernetes label, which is where zones mostly come from
const WORKERS_MAX: u32 = 1024; // four times the cores of the largest hosts sold
const DRAIN_TIMEOUT_MS_MAX: u32 = 3_600_000;

const SWITCHES: [(&str, bool); 2] = [("on", true), ("off", false)];
const SHORTCUTS: [(&str, Shortcut); 3] = [("auto", Shortcut::Auto), ("on", Shortcut::On), ("off", Shortcut::Off)];
const PROTOCOLS: [(&str, Protocol); 5] = [
    ("tcp", Protocol::Tcp),
    ("http", Protocol::Http),
    ("http2", Protocol::Http2),
    ("udp", Protocol::Udp),
    ("auto", Protocol::Auto),
];
const UPSTREAM_PROTOCOLS: [(&str, HttpVersion); 2] = [("http1", HttpVersion::Http1), ("http2", HttpVersion::Http2)];
const MODES: [(&str, Mode); 2] = [("kernel", Mode::Kernel), ("agent", Mode::Agent)];
const BALANCES: [(&str, Balance); 9] = [
    ("round_robin", Balance::RoundRobin),
    ("random", Balance::Random),
    ("weighted_random", Balance::WeightedRandom),
    ("least_connections", Balance::LeastConnections),
    ("source_hash", Balance::SourceHash),
    ("maglev", Balance::Maglev),
    ("least_request", Balance::LeastRequest),
    ("peak_ewma", Balance::PeakEwma),
    ("ring_hash", Balance::RingHash),
];
const SOURCES: [(&str, Source); 3] =
    [("namespace", Source::Namespace), ("cgroup", Source::Cgroup), ("uid", Source::Uid)];
const OVERS: [(&str, Over); 3] = [("refuse", Over::Refuse), ("forbid", Over::Forbid), ("pass", Over::Pass)];

/// States of an endpoint; true is draining.
const STATES: [(&str, bool); 2] = [("active", false), ("draining", true)];

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{name}: cannot be read: {source}; give --config a file that exists and is readable")]
    Unreadable {
        /// The file.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file says something that cannot be.
    #[error("{}", Listed { name, problems })]
    Invalid {
        /// The file.
        name: String,
        /// All that was found, in the file's order.
        problems: Vec<Problem>,
    },
}

impl ConfigError {
    /// A file that says nothing, where something was in effect.
    pub fn empty(name: String) -> Self {
        let what = "is empty; to serve nothing, say `services: []`".to_owned();
        Self::Invalid { name, problems: vec![Problem { at: Position::START, path: String::new(), what }] }
    }
}

struct Listed<'e> {
    name: &'e str,
    problems: &'e [Problem],
}

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { at, path, what }) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            let colon = if path.is_empty() { "" } else { ": " };
            write!(f, "{newline}{}:{}:{}: {path}{colon}{what}", self.name, at.line, at.column)?;
        }
        Ok(())
    }
}

/// Reads a file.
///
/// # Errors
///
/// When it cannot be read, or with everything that is wrong with it.
pub fn read(path: &FilePath) -> Result<Config, ConfigError> {
    parse(&text(path)?, &path.display().to_string())
}

/// The file's text, no more of it than a configuration can have.
///
/// # Errors
///
/// When it cannot be read, or is no UTF-8.
pub fn text(path: &FilePath) -> Result<String, ConfigError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(tree::BYTES_MAX as u64 + 1).read_to_string(&mut text))
        .map_err(|source| ConfigError::Unreadable { name: path.display().to_string(), source })?;
    Ok(text)
}

/// As [`text`], of a file that was read before: what is none any more is refused, and not waited for.
///
/// # Errors
///
/// As [`text`], and when it is no regular file.
pub fn text_again(path: &FilePath) -> Result<String, ConfigError> {
    regular(path).map_err(|source| ConfigError::Unreadable { name: path.display().to_string(), source })?;
    text(path)
}

/// Opens a file that can be read at any time: nothing in whose other end somebody may or may not write.
fn regular(path: &FilePath) -> io::Result<File> {
    // Of a pipe that nobody writes the open itself would wait.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.file_type() {
        kind if kind.is_file() => Ok(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")),
    }
}

/// Reads a text; `name` is what messages call it.
///
/// # Errors
///
/// With everything that is wrong with it, in the text's order.
pub fn parse(text: &str, name: &str) -> Result<Config, ConfigError> {
    let invalid = |problems| ConfigError::Invalid { name: name.to_owned(), problems };
    let tree = tree::grow(text).map_err(|problem| invalid(vec![problem]))?;
    let mut problems = Problems::default();
    let config = root(&tree, &mut problems);
    problems.0.sort_by_key(|problem| (problem.at.line, problem.at.column));
    match config {
        Some(config) if problems.0.is_empty() => Ok(config),
        _ => Err(invalid(problems.0)),
    }
}

fn root(tree: &Node, problems: &mut Problems) -> Option<Config> {
    let keys = [
        "instance",
        "zone",
        "workers",
        "drain_timeout_ms",
        "admin",
        "audit",
        "hook_stats",
        "maps",
        "capture",
        "switches",
        "services",
        "inbound",
    ];
    let section = Section::open(tree, &Path::Root, &keys, problems)?;
    let instance = section.or("instance", || "default".to_owned(), instance, problems);
    let zone = section.or("zone", || None, |field, p| zone(field, p).map(Some), problems);
    let workers = section.or("workers", one_per_core, |field, p| field.integer(1..=WORKERS_MAX, p), problems);
    let drain_timeout =
        section.or("drain_timeout_ms", || 10_000, |field, p| field.integer(1..=DRAIN_TIMEOUT_MS_MAX, p), problems);
    let admin = section.or("admin", Admin::default, admin, problems);
    let audit = section.or("audit", Audit::default, audit, problems);
    let hook_stats = section.or("hook_stats", || false, |field, p| field.choice(&SWITCHES, p), problems);
    let maps = section.or("maps", Maps::default, maps::maps, problems);
    let capture = section.or("capture", default_capture, capture, problems);
    let switches = section.or("switches", BTreeMap::new, guard::switches, problems);
    let services = section.or("services", Vec::new, |field, p| services(field, switches.as_ref(), p), problems);
    let inbound = section.or("inbound", Vec::new, |field, p| inbound(field, services.as_deref(), p), problems);
    let config = Config {
        instance: instance?,
        zone: zone?,
        workers: workers? as usize,
        drain_timeout: milliseconds(drain_timeout?),
        admin: admin?,
        audit: audit?,
        hook_stats: hook_stats?,
        maps: maps?,
        capture: capture?,
        switches: switches?,
        services: services?,
        inbound: inbound?,
    };
    if let Some(field) = section.get("maps") {
        maps::refuse_too_small(&field, &config, problems);
    }
    Some(config)
}

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

fn one_per_core() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32).min(WORKERS_MAX)
}

fn instance(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if is_instance(text) {
        return Some(text.to_owned());
    }
    let what = format!("\"{}\" is no instance name; write 1 to {INSTANCE_CHARS_MAX} of a-z, 0-9 and -", shown(text));
    field.refuse(what, problems);
    None
}

/// Whether this may be the name of an instance.
pub fn is_instance(text: &str) -> bool {
    let fits = (1..=INSTANCE_CHARS_MAX).contains(&text.len());
    fits && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn zone(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    if is_zone(text) {
        return Some(text.to_owned());
    }
    let what = format!("\"{}\" is no zone; write 1 to {ZONE_CHARS_MAX} of A-Z, a-z, 0-9 and . _ - /", shown(text));
    field.refuse(what, problems);
    None
}

/// Whether this may be the name of a zone.
pub fn is_zone(text: &str) -> bool {
    let fits = (1..=ZONE_CHARS_MAX).contains(&text.len());
    fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b))
}

#[cfg(test)]
mod tests;
