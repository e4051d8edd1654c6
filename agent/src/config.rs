//! What the configuration means: checked, complete, every default filled in. What a person wrote is in [`mod@file`].

pub mod admin;
pub mod canary;
pub mod capture;
pub mod deadline;
pub mod drill;
pub mod file;
pub mod filter;
pub mod guard;
pub mod http;
pub mod inbound;
pub mod maps;
pub mod outlier;
pub mod pattern;
pub mod pending;
pub mod policy;
pub mod probe;
pub mod request_limit;
pub mod retry;
pub mod route;
pub mod strategy;
pub mod threshold;
pub mod tls;
pub mod tuning;
pub mod zone;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use sockway_common::flow;

pub use self::{
    admin::{Admin, Audit},
    capture::{Capture, CaptureRule, Except, NamespaceRules},
    deadline::Timing,
    file::ConfigError,
    filter::Filter,
    guard::Guard,
    http::Http,
    maps::Maps,
    outlier::Outlier,
    pending::Pending,
    policy::{Balance, Policy},
    probe::Probe,
    request_limit::RequestLimit,
    route::Route,
    strategy::Strategy,
    tls::Tls,
};

/// The whole configuration at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Name of this agent on its host: names its pins in bpffs, its cgroup and its run-time file.
    pub instance: String,
    /// The zone that this host is in; `None`: it prefers no endpoint to another.
    pub zone: Option<String>,
    /// Number of workers; one per core unless the file says otherwise.
    pub workers: usize,
    /// How long a draining agent waits for connections to finish.
    pub drain_timeout: Duration,
    /// Who may ask the agent, and who may change it.
    pub admin: Admin,
    /// Where changes are written down.
    pub audit: Audit,
    /// Whether the kernel keeps the hooks' run times, which costs every run of every program of the host two readings of the clock.
    pub hook_stats: bool,
    /// How many entries have room in the kernel half's tables.
    pub maps: Maps,
    /// Whose connections are captured.
    pub capture: Capture,
    /// What services and routes are degraded by: names, and whether they are on.
    pub switches: BTreeMap<String, bool>,
    /// What programs dial, in the file's order; names are unique, and so are addresses among the services of one IP protocol.
    pub services: Vec<Arc<Service>>,
    /// Whose connections that come in go through the agent, in the file's order; names are unique.
    pub inbound: Vec<inbound::Inbound>,
}

/// Whether bytes may go socket to socket on this host, without the TCP stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Shortcut {
    /// Only if the self-test of the running kernel passes whole.
    #[default]
    Auto,
    /// Yes, with the deviations of this kernel.
    On,
    /// Never.
    Off,
}

/// What a program dials, and who answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name.
    pub name: String,
    /// The address that programs dial.
    pub address: SocketAddr,
    /// What is spoken.
    pub protocol: Protocol,
    /// What is spoken to its endpoints; `None`: what the client speaks.
    pub upstream_protocol: Option<HttpVersion>,
    /// Who forwards.
    pub mode: Mode,
    /// How its connections are spread over the endpoints, and how many there may be.
    pub policy: Policy,
    /// What its HTTP messages may take.
    pub http: Http,
    /// Where TLS ends and begins.
    pub tls: Tls,
    /// Whether its connections may use the shortcut.
    pub shortcut: Shortcut,
    /// Whether endpoints on this host can ask what their clients dialled (`SO_ORIGINAL_DST`), as proxies do.
    pub original_dst: bool,
    /// How long the agent waits for an endpoint to accept.
    pub connect_timeout: Duration,
    /// How often every endpoint is probed by a TCP connect; `None` probes only those that failed, until they accept again.
    pub probe_interval: Option<Duration>,
    /// The same said in more words; then the interval says nothing.
    pub probe: Option<Probe>,
    /// When an endpoint is left out for what became of its requests; `None`: never.
    pub outlier: Option<Outlier>,
    /// What becomes of a request whose endpoint fails, or that several are to get; `None`: one endpoint answers it as it does.
    pub strategy: Option<Strategy>,
    /// How long a request may take, and what becomes of what its caller says of that; `None`: nothing is said.
    pub timing: Option<Timing>,
    /// How many requests it takes; one passes when all of these let it.
    pub request_limits: Vec<RequestLimit>,
    /// How many requests wait until there is room for them; `None`: they are refused.
    pub pending: Option<Pending>,
    /// What its requests and responses pass, in the order of requests; names are unique.
    pub filters: Vec<Filter>,
    /// What keeps it alive when its endpoints fail.
    pub guard: Guard,
    /// How long connections to an endpoint that is draining, or is listed no more, may go on before they are ended; `None`: for ever.
    pub endpoint_drain: Option<Duration>,
    /// After how long without a datagram a conversation of a UDP service is over, so that its next datagram may go elsewhere.
    pub udp_idle_timeout: Duration,
    /// At least one; addresses are unique.
    pub endpoints: Vec<Endpoint>,
    /// Where requests go that are not for any endpoint, in the file's order; names are unique.
    pub routes: Vec<Route>,
}

/// One address of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of the connections or requests: weight over the sum of weights. At least 1.
    pub weight: u32,
    /// 0 takes connections first; the others in order, as those before them fail.
    pub priority: u8,
    /// The zone it is in.
    pub zone: Option<String>,
    /// What routes tell it from others by.
    pub labels: BTreeMap<String, String>,
    /// Takes no new connections, and those that it has end when their time is over.
    pub is_draining: bool,
}

impl Endpoint {
    /// An endpoint of which nothing is said but where it is.
    pub fn at(address: SocketAddr) -> Self {
        Self { address, weight: 1, priority: 0, zone: None, labels: BTreeMap::new(), is_draining: false }
    }
}

/// What is spoken on a service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Opaque bytes.
    Tcp,
    /// HTTP/1.
    Http,
    /// HTTP/2, by prior knowledge on both sides; gRPC.
    Http2,
    /// Whichever of these the first bytes are, of either side.
    Auto,
    /// Datagrams.
    Udp,
}

/// What is spoken, where there is HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1; of clients also HTTP/1.0.
    Http1,
    /// HTTP/2, by prior knowledge.
    Http2,
}

impl Protocol {
    /// The IP protocol number underneath.
    pub fn transport(self) -> u8 {
        match self {
            Self::Tcp | Self::Http | Self::Http2 | Self::Auto => flow::TCP,
            Self::Udp => flow::UDP,
        }
    }
}

/// Who forwards a service's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The kernel half chooses an endpoint in `connect()`; no cost per packet.
    Kernel,
    /// The agent, by protocol.
    Agent,
}
