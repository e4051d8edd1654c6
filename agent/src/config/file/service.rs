//! What programs dial, and who answers.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use super::{
    MODES, PROTOCOLS, SHORTCUTS, STATES, SWITCHES, UPSTREAM_PROTOCOLS,
    conflicts::Conflicts,
    deadline, filter, guard, http, milliseconds, outlier, pending, policy, preset, probe, request_limit, retry,
    route::{self, Routes},
    section::{Field, Path, Position, Problems, Section, shown},
    strategy, tls,
    tree::{Node, Value},
    tuning, zone,
};
use crate::config::{
    Endpoint, Guard, Http, HttpVersion, Mode, Outlier, Pending, Policy, Probe, Protocol, RequestLimit, Route, Service,
    Shortcut, Strategy, Timing, Tls, filter::Filter, policy::Source,
};

const NAME_CHARS_MAX: usize = 63; // a DNS label; also a bound on the label of a metric
pub(super) const CONNECT_TIMEOUT_MS: u32 = 5_000; // as Envoy's: a SYN that met a full accept queue is sent again after 1 s, and after that
pub(super) const CONNECT_TIMEOUT_MS_MAX: u32 = 120_000; // Linux itself gives up after about two minutes (tcp_syn_retries = 6)
const PROBE_INTERVAL_MS_MAX: u32 = 3_600_000;
const ENDPOINT_DRAIN_MS: u32 = 30_000; // what Kubernetes gives a pod to end
const ENDPOINT_DRAIN_MS_MAX: u32 = 86_400_000;
const UDP_IDLE_TIMEOUT_MS: u32 = 30_000; // as Linux's own table of flows (nf_conntrack_udp_timeout)
const UDP_IDLE_TIMEOUT_MS_MAX: u32 = 3_600_000;
const WEIGHT_MAX: u32 = 65_535;
const PRIORITY_MAX: u32 = 127; // as many levels as Envoy has

pub(super) fn services(
    field: &Field<'_>,
    switches: Option<&BTreeMap<String, bool>>,
    problems: &mut Problems,
) -> Option<Vec<Arc<Service>>> {
    let items = field.list(problems)?;
    let mut conflicts = Conflicts::default();
    let services = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| {
            let draft = draft(item, &Path::Item(&field.path, index), problems)?;
            guard::refuse_unknown_switches(&draft.guarded_by, switches, problems);
            conflicts.add(index, &draft);
            draft.settle().map(Arc::new)
        })
        .collect();
    conflicts.report(&field.path, problems);
    Some(services)
}

/// The service at this place, said anew; the others stay, and are looked at for what does not go together. Its name and protocol stay, too.
pub(super) fn amended(
    services: &[Arc<Service>],
    place: usize,
    item: &Node,
    switches: &BTreeMap<String, bool>,
    problems: &mut Problems,
) -> Option<Service> {
    let root = Path::Root;
    let list = Path::Key(&root, "services");
    let draft = draft(item, &Path::Item(&list, place), problems)?;
    guard::refuse_unknown_switches(&draft.guarded_by, Some(switches), problems);
    let mut conflicts = Conflicts::default();
    let moves = draft.address.is_none_or(|(_, address)| address != services[place].address);
    for (other, service) in services.iter().enumerate().filter(|(other, _)| *other != place) {
        conflicts.add_known(other, service, moves);
    }
    conflicts.add(place, &draft);
    conflicts.report(&list, problems);
    draft.settle()
}

/// One service as far as it could be read: what is wrong with one key must not hide what is wrong with another.
pub(super) struct Draft {
    pub(super) name: Option<(Position, String)>,
    pub(super) address: Option<(Position, SocketAddr)>,
    pub(super) protocol: Option<Protocol>,
    upstream_protocol: Option<Option<HttpVersion>>,
    pub(super) mode: Option<Option<Mode>>,
    pub(super) policy: Option<Policy>,
    http: Option<Http>,
    tls: Option<Tls>,
    /// Whether the file says anything of TLS.
    speaks_tls: bool,
    pub(super) shortcut: Option<Shortcut>,
    original_dst: Option<bool>,
    pub(super) connect_timeout_ms: Option<u32>,
    pub(super) probe_interval_ms: Option<Option<u32>>,
    probe: Option<Option<Probe>>,
    outlier: Option<Option<Outlier>>,
    strategy: Option<Option<Strategy>>,
    timing: Option<Option<Timing>>,
    request_limits: Option<Vec<RequestLimit>>,
    pending: Option<Option<Pending>>,
    pub(super) filters: Option<Vec<Filter>>,
    guard: Option<Guard>,
    /// What that names.
    pub(super) guarded_by: guard::Named,
    /// Services that its filters name.
    pub(super) named: filter::Named,
    pub(super) endpoint_drain_ms: Option<Option<u32>>,
    pub(super) udp_idle_timeout_ms: Option<u32>,
    pub(super) endpoints: Vec<EndpointDraft>,
    pub(super) routes: Option<Routes>,
}

/// One endpoint that could be read.
pub(super) struct EndpointDraft {
    pub(super) at: Position,
    pub(super) index: usize,
    pub(super) short: bool,
    pub(super) endpoint: Endpoint,
}

impl Draft {
    pub(super) fn mode(&self) -> Option<Mode> {
        let by_protocol = self.protocol.map(|protocol| match protocol {
            Protocol::Tcp | Protocol::Udp if !self.speaks_tls => Mode::Kernel,
            Protocol::Tcp | Protocol::Udp => Mode::Agent,
            Protocol::Http | Protocol::Http2 | Protocol::Auto => Mode::Agent,
        });
        self.mode?.or(by_protocol)
    }

    fn settle(self) -> Option<Service> {
        Some(Service {
            mode: self.mode()?,
            name: self.name?.1,
            address: self.address?.1,
            protocol: self.protocol?,
            upstream_protocol: self.upstream_protocol?,
            policy: self.policy?,
            http: self.http?,
            tls: self.tls?,
            shortcut: self.shortcut?,
            original_dst: self.original_dst?,
            connect_timeout: milliseconds(self.connect_timeout_ms?),
            probe_interval: self.probe_interval_ms?.map(milliseconds),
            probe: self.probe?,
            outlier: self.outlier?,
            strategy: self.strategy?,
            timing: self.timing?,
            request_limits: self.request_limits?,
            pending: self.pending?,
            filters: self.filters?,
            guard: self.guard?,
            endpoint_drain: self.endpoint_drain_ms?.map(milliseconds),
            udp_idle_timeout: milliseconds(self.udp_idle_timeout_ms?),
            endpoints: self.endpoints.into_iter().map(|draft| draft.endpoint).collect(),
            routes: self.routes?.routes,
        })
    }
}

fn draft(item: &Node, path: &Path<'_>, problems: &mut Problems) -> Option<Draft> {
    let own = [
        "name",
        "preset",
        "address",
        "protocol",
        "upstream_protocol",
        "mode",
        "http",
        "tls",
        "shortcut",
        "original_dst",
        "connect_timeout_ms",
        "probe_interval_ms",
        "probe",
        "outlier",
        "cluster",
        "retry",
        "request_limits",
        "pending",
        "filters",
        "endpoint_drain_ms",
        "udp_idle_timeout_ms",
        "endpoints",
        "routes",
    ];
    let keys = [&own[..], &deadline::KEYS, &guard::KEYS, &policy::KEYS, &tuning::KEYS].concat();
    let section = Section::open(item, path, &keys, problems)?;
    let preset = preset::entries(&section, problems);
    let section = section.over(preset.as_deref().unwrap_or_default());
    let weight = preset.as_ref().map(|_| preset::TEXTBOOK_WEIGHT);
    let placed = |field: &Field<'_>| field.node.at;
    let name = section.require("name", "write a name that no other service has", problems);
    let address = section.require("address", "write the IP:PORT that programs dial", problems);
    let protocol = section.require("protocol", "write tcp, http, http2, udp or auto", problems);
    let endpoints = section.require("endpoints", "list at least one IP:PORT", problems);
    let read = endpoints.map(|field| endpoint_drafts(&field, weight, problems)).unwrap_or_default();
    let protocol = protocol.and_then(|field| field.choice(&PROTOCOLS, problems));
    refuse_foreign_keys(&section, protocol, problems);
    let mut draft = Draft {
        name: name.and_then(|field| Some((placed(&field), service_name(&field, problems)?))),
        address: address.and_then(|field| Some((placed(&field), dialled_address(&field, problems)?))),
        protocol,
        upstream_protocol: section.or(
            "upstream_protocol",
            || None,
            |field, p| field.choice(&UPSTREAM_PROTOCOLS, p).map(Some),
            problems,
        ),
        mode: section.or("mode", || None, |field, p| field.choice(&MODES, p).map(Some), problems),
        policy: policy::policy(&section, problems),
        http: http::http(&section, protocol, problems),
        tls: tls::tls(&section, protocol, problems),
        speaks_tls: section.get("tls").is_some() && protocol != Some(Protocol::Udp),
        shortcut: section.or("shortcut", Shortcut::default, |field, p| field.choice(&SHORTCUTS, p), problems),
        original_dst: section.or("original_dst", || false, |field, p| field.choice(&SWITCHES, p), problems),
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
        probe: Some(None),
        outlier: Some(None),
        strategy: Some(None),
        timing: deadline::timing(&section, problems),
        request_limits: Some(Vec::new()),
        pending: pending::pending(&section, problems),
        filters: Some(Vec::new()),
        guard: None,
        guarded_by: guard::Named::default(),
        named: Vec::new(),
        endpoint_drain_ms: section.or("endpoint_drain_ms", || Some(ENDPOINT_DRAIN_MS), endpoint_drain, problems),
        udp_idle_timeout_ms: section.or(
            "udp_idle_timeout_ms",
            || UDP_IDLE_TIMEOUT_MS,
            |field, p| field.integer(1..=UDP_IDLE_TIMEOUT_MS_MAX, p),
            problems,
        ),
        endpoints: read,
        routes: route::routes(&section, protocol, problems),
    };
    draft.probe = probe::probe(&section, protocol, problems);
    draft.outlier = outlier::outlier(&section, draft.mode(), problems);
    let retry = retry::of_service(&section, (protocol, draft.mode()), problems);
    let strategy = strategy::strategy(&section, (protocol, draft.mode()), problems);
    draft.strategy = retry.zip(strategy).map(|(retry, strategy)| retry.or(strategy));
    deadline::refuse_idle(&section, (draft.mode(), protocol), problems);
    let mut named = Vec::new();
    draft.filters = filter::filters(&section, draft.mode(), protocol, &mut named, problems);
    draft.named = named;
    draft.request_limits = request_limit::request_limits(&section, draft.mode(), protocol, problems);
    draft.guard = guard::guard(&section, (protocol, draft.mode()), &mut draft.guarded_by, problems);
    request_limit::refuse_idle(&section, draft.guard.as_ref(), problems);
    let room = (draft.request_limits.as_ref(), draft.guard.as_ref());
    pending::settle(&section, &mut draft.pending, room, problems);
    let limits = draft.request_limits.as_deref().unwrap_or_default();
    request_limit::refuse_two_lines(&section, limits, problems);
    let balance = draft.policy.as_ref().map(|policy| policy.balance);
    match draft.mode() {
        Some(Mode::Agent) => policy::refuse_in_agent(&section, path, problems),
        Some(Mode::Kernel) => tuning::refuse_in_kernel(&section, balance, problems),
        None => {}
    }
    if let (Some(Mode::Agent), Some(Protocol::Tcp)) = (draft.mode(), protocol) {
        tuning::refuse_where_opaque(&section, balance, problems);
    }
    know_cgroups(&section, &mut draft, problems);
    refuse_idle_preference(&section, &draft, problems);
    refuse_idle_translation(&section, &draft, problems);
    if let (Some(Mode::Kernel), true, Some(field)) = (draft.mode(), draft.speaks_tls, section.get("tls")) {
        field.refuse("is spoken by the agent; write mode: agent, or leave mode out", problems);
    }
    if let (Some(Mode::Kernel), Some(field)) = (draft.mode(), section.get("routes")) {
        field.refuse("are the agent's to follow; write mode: agent, or leave mode out", problems);
    }
    let by_agent = draft.mode() == Some(Mode::Agent) || protocol == Some(Protocol::Udp);
    if let (Some(true), true, Some(field)) = (draft.original_dst, by_agent, section.get("original_dst")) {
        let what = "is told of TCP connections that the kernel balances, straight to the endpoint; \
                    use protocol: tcp and mode: kernel, or leave the key out";
        field.refuse(what, problems);
    }
    Some(draft)
}

/// Where a route asks for a caller's cgroup, cgroups are what its sources are known by.
fn know_cgroups(section: &Section<'_>, draft: &mut Draft, problems: &mut Problems) {
    let by_cgroup = |route: &Route| route.matches.caller.as_ref().is_some_and(|caller| caller.cgroup.is_some());
    let (Some(policy), Some(read), Some(filters)) = (&mut draft.policy, &draft.routes, &draft.filters) else { return };
    let is_asked = read.routes.iter().any(by_cgroup) || filters.iter().any(Filter::asks_cgroup);
    if policy.source == Source::Cgroup || !is_asked {
        return;
    }
    policy.source = Source::Cgroup;
    if let Some(field) = section.get("source") {
        let what = "is not what a route or a filter asks for, which is the caller's cgroup; write source: cgroup, or leave it out";
        field.refuse(what, problems);
    }
}

/// Notes a preference for the own zone where no endpoint is in any.
fn refuse_idle_preference(section: &Section<'_>, draft: &Draft, problems: &mut Problems) {
    let any = draft.endpoints.iter().any(|draft| draft.endpoint.zone.is_some());
    if let (Some(field), Some(true), false) =
        (section.get("prefer_zone"), draft.policy.as_ref().map(|policy| policy.prefer_zone), any)
    {
        let what = "says nothing while no endpoint has a zone; write endpoints as {address: IP:PORT, zone: ZONE}, or \
                    remove it";
        field.refuse(what, problems);
    }
}

/// Notes a protocol for endpoints where nobody could translate into it.
fn refuse_idle_translation(section: &Section<'_>, draft: &Draft, problems: &mut Problems) {
    let Some(field) = section.get("upstream_protocol") else { return };
    let is_http = !matches!(draft.protocol, Some(Protocol::Tcp | Protocol::Udp));
    if !is_http {
        field.refuse("says what HTTP becomes, which is not what is spoken here; leave the key out", problems);
    } else if draft.mode() == Some(Mode::Kernel) {
        field.refuse("is the agent's to do; use mode: agent, or leave the key out", problems);
    }
}

/// Notes keys that say what a service of this protocol cannot have.
fn refuse_foreign_keys(section: &Section<'_>, protocol: Option<Protocol>, problems: &mut Problems) {
    let text = |field: &Field<'_>, word: &str| matches!(&field.node.value, Value::Text(text) if text == word);
    let mut refuse = |key, word: Option<&str>, what: &str| {
        if let Some(field) = section.get(key)
            && word.is_none_or(|word| text(&field, word))
        {
            field.refuse(what, problems);
        }
    };
    match protocol {
        Some(Protocol::Udp) => {
            refuse(
                "mode",
                Some("agent"),
                "the agent speaks no UDP: its datagrams are balanced in the kernel; leave the key out",
            );
            refuse("shortcut", Some("on"), "datagrams have no shortcut, it joins TCP sockets; leave the key out");
            refuse(
                "probe_interval_ms",
                None,
                "a probe is a TCP connect, which nobody accepts there; leave the key out",
            );
            refuse("eject", None, "counts handshakes that failed, and datagrams have none; leave the key out");
        }
        Some(Protocol::Tcp | Protocol::Http | Protocol::Http2 | Protocol::Auto) => {
            refuse(
                "udp_idle_timeout_ms",
                None,
                "ends conversations of UDP, and this service has none; leave the key out",
            );
        }
        None => {}
    }
}

pub(super) fn service_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
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

/// Milliseconds, or `never`.
fn endpoint_drain(field: &Field<'_>, problems: &mut Problems) -> Option<Option<u32>> {
    match &field.node.value {
        Value::Text(text) if text == "never" => Some(None),
        _ => field.integer(0..=ENDPOINT_DRAIN_MS_MAX, problems).map(Some),
    }
}

/// An address that a program can connect to.
fn dialled_address(field: &Field<'_>, problems: &mut Problems) -> Option<SocketAddr> {
    let address = field.address(false, problems)?;
    let ip = address.ip();
    let wrong = if ip.is_unspecified() {
        "means \"any address\", which is none to connect to"
    } else if ip.is_multicast() || ip == std::net::Ipv4Addr::BROADCAST {
        "is for many receivers, and a service sends each caller to one"
    } else {
        return Some(address);
    };
    field.refuse(format!("{ip} {wrong}; write the address of one host"), problems);
    None
}

/// The endpoints; `weight` is what those have of which none is said, or 0.
fn endpoint_drafts(field: &Field<'_>, weight: Option<u32>, problems: &mut Problems) -> Vec<EndpointDraft> {
    let Some(items) = field.list(problems) else { return Vec::new() };
    if items.is_empty() {
        field.refuse("has no endpoint; list at least one IP:PORT", problems);
    }
    let mut drafts = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let field = Field { node: item, path: Path::Item(&field.path, index) };
        drafts.extend(endpoint_draft(&field, index, weight, problems));
    }
    drafts
}

fn endpoint_draft(
    field: &Field<'_>,
    index: usize,
    usual_weight: Option<u32>,
    problems: &mut Problems,
) -> Option<EndpointDraft> {
    if let Value::Text(_) = field.node.value {
        let address = dialled_address(field, problems)?;
        let endpoint = Endpoint { weight: usual_weight.unwrap_or(1), ..Endpoint::at(address) };
        return Some(EndpointDraft { at: field.node.at, index, short: true, endpoint });
    }
    let section = Section::open(
        field.node,
        &field.path,
        &["address", "weight", "priority", "zone", "labels", "state"],
        problems,
    )?;
    let least = if usual_weight.is_some() { 0 } else { 1 };
    let weight = section.or("weight", || 0, |field, p| field.integer(least..=WEIGHT_MAX, p), problems);
    let priority = section.or("priority", || 0, |field, p| field.integer(0..=PRIORITY_MAX, p), problems);
    let zone = section.or("zone", || None, |field, p| zone(field, p).map(Some), problems);
    let labels = section.or("labels", BTreeMap::new, route::labels, problems);
    let is_draining = section.or("state", || false, |field, p| field.choice(&STATES, p), problems);
    let address_field = section.require("address", "write IP:PORT", problems)?;
    let address = dialled_address(&address_field, problems)?;
    // What is wrong is already noted: the address still takes part in the search for conflicts.
    let endpoint = Endpoint {
        address,
        weight: weight.filter(|weight| *weight > 0).or(usual_weight).unwrap_or(1),
        priority: priority.unwrap_or(0) as u8,
        zone: zone.flatten(),
        labels: labels.unwrap_or_default(),
        is_draining: is_draining.unwrap_or(false),
    };
    Some(EndpointDraft { at: address_field.node.at, index, short: false, endpoint })
}
