//! What a person wrote -> what it means, or every problem found, each as `FILE:LINE:COL: path.of.key: what is wrong; what to do`.
//!
//! `tree` reads YAML into values that know their place, `section` takes them apart by known keys, this file says what each key
//! means, `conflicts` looks at what does not go together, and `show` writes a configuration in the file's own shape.

mod conflicts;
mod section;
mod show;
mod tree;

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::{Path as FilePath, PathBuf},
    time::Duration,
};

use self::{
    conflicts::Conflicts,
    section::{Field, Path, Problems, Section, shown},
    tree::{Node, Value},
};
use super::{Balance, Capture, CaptureRule, Config, Endpoint, Mode, Protocol, Service, Shortcut};

pub use self::{
    section::{Position, Problem},
    show::{balance_word, mode_word, protocol_word, shortcut_word, show},
};

/// The configuration of an agent that was given none.
pub const DEFAULT: &str = include_str!("../../deploy/default.yaml");
/// What messages call it.
pub const DEFAULT_NAME: &str = "(embedded default)";

const INSTANCE_CHARS_MAX: usize = 32; // a cgroup, a directory of bpffs and a file are named after it
const NAME_CHARS_MAX: usize = 63; // a DNS label; also a bound on the label of a metric
const WORKERS_MAX: u32 = 1024; // four times the cores of the largest hosts sold
const DRAIN_TIMEOUT_MS_MAX: u32 = 3_600_000;
const CONNECT_TIMEOUT_MS: u32 = 5_000; // as Envoy's: a SYN that met a full accept queue is sent again after 1 s, and after that
const CONNECT_TIMEOUT_MS_MAX: u32 = 120_000; // Linux itself gives up after about two minutes (tcp_syn_retries = 6)
const PROBE_INTERVAL_MS_MAX: u32 = 3_600_000;
const WEIGHT_MAX: u32 = 65_535;

const SHORTCUTS: [(&str, Shortcut); 3] = [("auto", Shortcut::Auto), ("on", Shortcut::On), ("off", Shortcut::Off)];
const PROTOCOLS: [(&str, Protocol); 2] = [("tcp", Protocol::Tcp), ("http", Protocol::Http)];
const MODES: [(&str, Mode); 2] = [("kernel", Mode::Kernel), ("agent", Mode::Agent)];
const BALANCES: [(&str, Balance); 2] =
    [("round_robin", Balance::RoundRobin), ("weighted_random", Balance::WeightedRandom)];

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
pub fn read(path: &FilePath) -> Result<Config, ConfigError> {
    parse(&text(path)?, &path.display().to_string())
}

/// The file's text, no more of it than a configuration can have.
pub fn text(path: &FilePath) -> Result<String, ConfigError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(tree::BYTES_MAX as u64 + 1).read_to_string(&mut text))
        .map_err(|source| ConfigError::Unreadable { name: path.display().to_string(), source })?;
    Ok(text)
}

/// Reads a text; `name` is what messages call it.
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
    let keys = ["instance", "workers", "drain_timeout_ms", "admin", "capture", "services"];
    let section = Section::open(tree, &Path::Root, &keys, problems)?;
    let instance = section.or("instance", || "default".to_owned(), instance, problems);
    let workers = section.or("workers", one_per_core, |field, p| field.integer(1..=WORKERS_MAX, p), problems);
    let drain_timeout =
        section.or("drain_timeout_ms", || 10_000, |field, p| field.integer(1..=DRAIN_TIMEOUT_MS_MAX, p), problems);
    let admin_address = section.or("admin", default_admin, admin, problems);
    let capture = section.or("capture", default_capture, capture, problems);
    let services = section.or("services", Vec::new, services, problems);
    Some(Config {
        instance: instance?,
        workers: workers? as usize,
        drain_timeout: milliseconds(drain_timeout?),
        admin_address: admin_address?,
        capture: capture?,
        services: services?,
    })
}

fn milliseconds(number: u32) -> Duration {
    Duration::from_millis(number.into())
}

fn one_per_core() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32).min(WORKERS_MAX)
}

fn default_admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9901))
}

fn default_capture() -> Capture {
    Capture { cgroup_mount: None, bpffs: default_bpffs(), rules: whole_host() }
}

fn default_bpffs() -> PathBuf {
    PathBuf::from("/sys/fs/bpf")
}

fn whole_host() -> Vec<CaptureRule> {
    vec![CaptureRule { path: PathBuf::from("/"), shortcut: Shortcut::Auto }]
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

fn admin(field: &Field<'_>, problems: &mut Problems) -> Option<SocketAddr> {
    let section = Section::open(field.node, &field.path, &["address"], problems)?;
    section.or("address", default_admin, |field, p| field.address(true, p), problems)
}

fn capture(field: &Field<'_>, problems: &mut Problems) -> Option<Capture> {
    let section = Section::open(field.node, &field.path, &["cgroup_mount", "bpffs", "cgroups"], problems)?;
    let cgroup_mount = section.or("cgroup_mount", || None, |field, p| field.path(p).map(Some), problems);
    let bpffs = section.or("bpffs", default_bpffs, Field::path, problems);
    let rules = section.or("cgroups", whole_host, capture_rules, problems);
    Some(Capture { cgroup_mount: cgroup_mount?, bpffs: bpffs?, rules: rules? })
}

fn capture_rules(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<CaptureRule>> {
    let items = field.list(problems)?;
    if items.is_empty() {
        field.refuse("captures nothing; name a cgroup, or leave the key out to capture the whole host", problems);
    }
    let mut rules: Vec<CaptureRule> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let item_path = Path::Item(&field.path, index);
        let Some(section) = Section::open(item, &item_path, &["path", "shortcut"], problems) else { continue };
        let path_field =
            section.require("path", "write the cgroup\'s path below the cgroup v2 mount, as /kubepods", problems);
        let shortcut = section.or("shortcut", Shortcut::default, |field, p| field.choice(&SHORTCUTS, p), problems);
        let path = path_field.and_then(|field| field.path(problems));
        if let (Some(field), Some(path)) = (path_field, &path)
            && rules.iter().any(|rule| rule.path == *path)
        {
            field.refuse(format!("{} is listed twice; keep one", path.display()), problems);
        }
        rules.extend(path.zip(shortcut).map(|(path, shortcut)| CaptureRule { path, shortcut }));
    }
    Some(rules)
}

fn services(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Service>> {
    let items = field.list(problems)?;
    let mut conflicts = Conflicts::default();
    let services = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            let draft = draft(item, &Path::Item(&field.path, index), problems)?;
            conflicts.add(index, &draft);
            draft.settle()
        })
        .collect();
    conflicts.report(&field.path, problems);
    Some(services)
}

/// One service as far as it could be read: what is wrong with one key must not hide what is wrong with another.
struct Draft {
    name: Option<(Position, String)>,
    address: Option<(Position, SocketAddr)>,
    protocol: Option<Protocol>,
    mode: Option<Option<Mode>>,
    balance: Option<Balance>,
    shortcut: Option<Shortcut>,
    connect_timeout_ms: Option<u32>,
    probe_interval_ms: Option<Option<u32>>,
    endpoints: Vec<EndpointDraft>,
}

/// One endpoint that could be read.
struct EndpointDraft {
    at: Position,
    index: usize,
    short: bool,
    endpoint: Endpoint,
}

impl Draft {
    fn mode(&self) -> Option<Mode> {
        let by_protocol = self.protocol.map(|protocol| match protocol {
            Protocol::Tcp => Mode::Kernel,
            Protocol::Http => Mode::Agent,
        });
        self.mode?.or(by_protocol)
    }

    fn settle(self) -> Option<Service> {
        Some(Service {
            mode: self.mode()?,
            name: self.name?.1,
            address: self.address?.1,
            protocol: self.protocol?,
            balance: self.balance?,
            shortcut: self.shortcut?,
            connect_timeout: milliseconds(self.connect_timeout_ms?),
            probe_interval: self.probe_interval_ms?.map(milliseconds),
            endpoints: self.endpoints.into_iter().map(|draft| draft.endpoint).collect(),
        })
    }
}

fn draft(item: &Node, path: &Path<'_>, problems: &mut Problems) -> Option<Draft> {
    let keys = [
        "name",
        "address",
        "protocol",
        "mode",
        "balance",
        "shortcut",
        "connect_timeout_ms",
        "probe_interval_ms",
        "endpoints",
    ];
    let section = Section::open(item, path, &keys, problems)?;
    let placed = |field: &Field<'_>| field.node.at;
    let name = section.require("name", "write a name that no other service has", problems);
    let address = section.require("address", "write the IP:PORT that programs dial", problems);
    let protocol = section.require("protocol", "write tcp or http", problems);
    let endpoints = section.require("endpoints", "list at least one IP:PORT", problems);
    let read = endpoints.map(|field| endpoint_drafts(&field, problems)).unwrap_or_default();
    Some(Draft {
        name: name.and_then(|field| Some((placed(&field), service_name(&field, problems)?))),
        address: address.and_then(|field| Some((placed(&field), dialled_address(&field, problems)?))),
        protocol: protocol.and_then(|field| field.choice(&PROTOCOLS, problems)),
        mode: section.or("mode", || None, |field, p| field.choice(&MODES, p).map(Some), problems),
        balance: section.or("balance", || Balance::RoundRobin, |field, p| field.choice(&BALANCES, p), problems),
        shortcut: section.or("shortcut", Shortcut::default, |field, p| field.choice(&SHORTCUTS, p), problems),
        connect_timeout_ms: section.or(
            "connect_timeout_ms",
            || CONNECT_TIMEOUT_MS,
            |field, p| field.integer(1..=CONNECT_TIMEOUT_MS_MAX, p),
            problems,
        ),
        probe_interval_ms: section.or(
            "probe_interval_ms",
            || None,
            |field, p| field.integer(1..=PROBE_INTERVAL_MS_MAX, p).map(Some),
            problems,
        ),
        endpoints: read,
    })
}

fn service_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    let fits = (1..=NAME_CHARS_MAX).contains(&text.len());
    if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b)) {
        return Some(text.to_owned());
    }
    let what =
        format!("\"{}\" is no service name; write 1 to {NAME_CHARS_MAX} of A-Z, a-z, 0-9 and . _ - /", shown(text));
    field.refuse(what, problems);
    None
}

/// An address that a program can connect to.
fn dialled_address(field: &Field<'_>, problems: &mut Problems) -> Option<SocketAddr> {
    let address = field.address(false, problems)?;
    let ip = address.ip();
    let wrong = if ip.is_unspecified() {
        "means \"any address\", which is none to connect to"
    } else if ip.is_multicast() || ip == std::net::Ipv4Addr::BROADCAST {
        "is for many receivers, which TCP does not have"
    } else {
        return Some(address);
    };
    field.refuse(format!("{ip} {wrong}; write the address of one host"), problems);
    None
}

fn endpoint_drafts(field: &Field<'_>, problems: &mut Problems) -> Vec<EndpointDraft> {
    let Some(items) = field.list(problems) else { return Vec::new() };
    if items.is_empty() {
        field.refuse("has no endpoint; list at least one IP:PORT", problems);
    }
    let mut drafts = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let field = Field { node: item, path: Path::Item(&field.path, index) };
        drafts.extend(endpoint_draft(&field, index, problems));
    }
    drafts
}

fn endpoint_draft(field: &Field<'_>, index: usize, problems: &mut Problems) -> Option<EndpointDraft> {
    if let Value::Text(_) = field.node.value {
        let address = dialled_address(field, problems)?;
        return Some(EndpointDraft {
            at: field.node.at,
            index,
            short: true,
            endpoint: Endpoint { address, weight: 1 },
        });
    }
    let section = Section::open(field.node, &field.path, &["address", "weight"], problems)?;
    let weight = section.or("weight", || 1, |field, p| field.integer(1..=WEIGHT_MAX, p), problems);
    let address_field = section.require("address", "write IP:PORT", problems)?;
    let address = dialled_address(&address_field, problems)?;
    // A wrong weight is already noted: the address still takes part in the search for conflicts.
    let endpoint = Endpoint { address, weight: weight.unwrap_or(1) };
    Some(EndpointDraft { at: address_field.node.at, index, short: false, endpoint })
}

#[cfg(test)]
mod tests;
