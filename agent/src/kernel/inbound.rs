//! Steers connections that come in to the agent: a link of the sk_lookup hook in each namespace that a rule names, the ports and sources of
//! the rules, and the agent's listeners there.
//!
//! Whatever is missing means that the program serves by itself. Tables are written by differences; an access list is in place before a
//! port that it guards, and goes after it.

mod nodes;
mod prefixes;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{
        MapData, SockHash,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{SkLookup, links::FdLink},
};
use sockway_common::inbound::{
    AccessKey, EVERY_RULE, NETNS_BITS, Port, PortKey, RULE_BITS, SourceVerdict, SteerKey, port_flags, source_verdict,
};

use super::{KernelError, flows, load, pins, services, sys};
use crate::config::{capture::Cidr, inbound::Inbound, inbound::Sources};

/// Begin and end of the names of our pins; between them stands the namespace's cookie.
const PIN: (&str, &str) = ("netns-", "-sk_lookup");
/// `AF_INET` and `AF_INET6`, as the hook tells them.
const FAMILIES: [u32; 2] = [libc::AF_INET as u32, libc::AF_INET6 as u32];

type Prefix<K> = (u32, K);

/// What of connections that come in goes to the agent.
pub struct Steering {
    ports: LpmTrie<MapData, PortKey, Port>,
    sources: LpmTrie<MapData, AccessKey, SourceVerdict>,
    sockets: SockHash<MapData, SteerKey>,
    maps: PathBuf,
    links: PathBuf,
    written_ports: HashMap<Prefix<PortKey>, Port>,
    written_sources: HashMap<Prefix<AccessKey>, SourceVerdict>,
    rules: Vec<Rule>,
    next_rule: u32,
    places: HashMap<u64, Steered>,
    is_tidy: bool,
}

/// A rule, and the number under which its sources stand.
#[derive(Clone, Debug)]
struct Rule {
    config: Inbound,
    id: u32,
}

/// A namespace that is steered.
#[derive(Debug)]
struct Steered {
    paths: Vec<String>,
    is_host: bool,
    listeners: u32,
}

/// Whether a file in the directory of links is one of this room's: others leave it alone.
pub fn is_pin(name: &str) -> bool {
    cookie_of(name).is_some()
}

fn cookie_of(name: &str) -> Option<u64> {
    name.strip_prefix(PIN.0)?.strip_suffix(PIN.1)?.parse().ok()
}

impl Steering {
    /// Takes the tables of a loaded object, with `maps` and `links` the directories of pins. What an earlier agent left goes on until
    /// it is settled anew.
    pub fn new(ebpf: &mut Ebpf, maps: PathBuf, links: PathBuf) -> Result<Self, KernelError> {
        let ports: LpmTrie<MapData, PortKey, Port> = services::table(ebpf, "INBOUND_PORTS")?;
        let sources: LpmTrie<MapData, AccessKey, SourceVerdict> = services::table(ebpf, "INBOUND_SOURCES")?;
        let written_ports: HashMap<Prefix<PortKey>, Port> =
            ports.iter().flatten().map(|(key, port)| ((key.prefix_len(), key.data()), port)).collect();
        let written_sources: HashMap<Prefix<AccessKey>, SourceVerdict> =
            sources.iter().flatten().map(|(key, source)| ((key.prefix_len(), key.data()), source)).collect();
        let used = written_sources.keys().map(|(_, key)| key.rule).chain(written_ports.values().map(|port| port.rule));
        let next_rule = used.max().unwrap_or(EVERY_RULE) + 1;
        let sockets = services::table(ebpf, "INBOUND_SOCKETS")?;
        Ok(Self {
            ports,
            sources,
            sockets,
            maps,
            links,
            written_ports,
            written_sources,
            rules: Vec::new(),
            next_rule,
            places: HashMap::new(),
            is_tidy: false,
        })
    }

    /// Whether a rule names the namespace that stands at these paths, or is the host's.
    pub fn wants(&self, paths: &[String], is_host: bool) -> bool {
        self.rules.iter().any(|rule| rule.config.namespaces.captures(paths, is_host))
    }

    /// Whether there is nothing to steer, and nothing left in the tables.
    pub fn is_idle(&self) -> bool {
        self.rules.is_empty() && self.written_ports.is_empty() && self.written_sources.is_empty() && self.is_tidy
    }

    /// Takes these rules from now on; their ports follow with the next [`Steering::settle`].
    ///
    /// # Errors
    ///
    /// When their sources do not fit: the rules before stay.
    pub fn follow(&mut self, rules: &[Inbound]) -> Result<(), KernelError> {
        let mut next = Vec::with_capacity(rules.len());
        for config in rules {
            let same = |rule: &&Rule| rule.config.name == config.name && rule.config.sources == config.sources;
            let id = match self.rules.iter().find(same) {
                Some(rule) => rule.id,
                None => {
                    self.next_rule += 1;
                    self.next_rule - 1
                }
            };
            next.push(Rule { config: config.clone(), id });
        }
        let before = std::mem::replace(&mut self.rules, next);
        if let Err(error) = self.write_sources() {
            self.rules = before;
            self.clear_sources();
            return Err(error);
        }
        Ok(())
    }

    /// Steers one more namespace: `file` is the namespace's, `sockets` are the agent's listeners there, one for each worker, of IPv4 and
    /// of IPv6. Its ports follow with the next [`Steering::settle`].
    pub fn open<S: AsRawFd>(
        &mut self,
        netns: u64,
        (paths, is_host): (Vec<String>, bool),
        file: &File,
        sockets: [&[S]; 2],
    ) -> Result<(), KernelError> {
        for (family, sockets) in FAMILIES.into_iter().zip(sockets) {
            for (listener, socket) in (0..).zip(sockets) {
                let key = SteerKey { netns, family, listener };
                self.sockets.insert(key, socket.as_raw_fd(), 0).map_err(services::map_error("INBOUND_SOCKETS"))?;
            }
        }
        self.attach(netns, file)?;
        self.places.insert(netns, Steered { paths, is_host, listeners: sockets[0].len() as u32 });
        Ok(())
    }

    /// Steers a namespace no longer: its programs serve by themselves.
    pub fn close(&mut self, netns: u64) {
        let Some(steered) = self.places.remove(&netns) else { return };
        self.forget_sockets(netns, steered.listeners);
        let _ = pins::remove_link(&self.pin(netns));
    }

    /// Takes the agent's listeners away: from now on programs serve by themselves, while the rules about sources hold.
    pub fn pause(&mut self) {
        let places: Vec<(u64, u32)> = self.places.iter().map(|(netns, steered)| (*netns, steered.listeners)).collect();
        for (netns, listeners) in places {
            self.forget_sockets(netns, listeners);
        }
    }

    /// Makes the tables say what rules, namespaces and the node's own addresses are now.
    pub fn settle(&mut self) {
        if let Err(error) = self.write_sources() {
            tracing::warn!(%error, "not all addresses of this node found room: probes from the others go through the agent");
        }
        let wanted = self.wanted_ports();
        let mut full = None;
        for (key, port) in &wanted {
            if self.written_ports.get(key) == Some(port) {
                continue;
            }
            match self.ports.insert(&Key::new(key.0, key.1), port, 0) {
                Ok(()) => {
                    self.written_ports.insert(*key, *port);
                }
                Err(error) => full = Some(error),
            }
        }
        if let Some(error) = full {
            tracing::warn!(%error, "not all inbound ports found room: the programs behind the others serve by themselves");
        }
        let gone: Vec<Prefix<PortKey>> =
            self.written_ports.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            let _ = self.ports.remove(&Key::new(key.0, key.1));
            self.written_ports.remove(&key);
        }
        // After the ports that asked for them.
        self.clear_sources();
        self.tidy_links();
    }

    fn wanted_ports(&self) -> HashMap<Prefix<PortKey>, Port> {
        let mut wanted = HashMap::new();
        for (netns, steered) in &self.places {
            let rules: Vec<&Rule> = self
                .rules
                .iter()
                .filter(|rule| rule.config.namespaces.captures(&steered.paths, steered.is_host))
                .collect();
            let ranges: Vec<_> = (0..).zip(rules.iter().map(|rule| rule.config.ports.as_slice())).collect();
            for (ports, rule) in prefixes::assign(&ranges) {
                let port = entry(*netns, rules[rule as usize], &ports, steered.listeners);
                for (first, bits) in prefixes::prefixes(&ports) {
                    wanted.insert((NETNS_BITS + bits, PortKey { netns: *netns, port: first.to_be() }), port);
                }
            }
        }
        wanted
    }

    /// Writes what is not there yet of the rules' sources and the node's addresses.
    fn write_sources(&mut self) -> Result<(), KernelError> {
        for (key, source) in self.wanted_sources() {
            if self.written_sources.get(&key) != Some(&source) {
                self.sources
                    .insert(&Key::new(key.0, key.1), source, 0)
                    .map_err(services::map_error("INBOUND_SOURCES"))?;
                self.written_sources.insert(key, source);
            }
        }
        Ok(())
    }

    /// Removes sources of rules that are no more, and addresses that are no longer the node's.
    fn clear_sources(&mut self) {
        let wanted: HashSet<Prefix<AccessKey>> = self.wanted_sources().into_iter().map(|(key, _)| key).collect();
        let gone: Vec<Prefix<AccessKey>> =
            self.written_sources.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            let _ = self.sources.remove(&Key::new(key.0, key.1));
            self.written_sources.remove(&key);
        }
    }

    fn wanted_sources(&self) -> Vec<(Prefix<AccessKey>, SourceVerdict)> {
        let mut wanted = Vec::new();
        for rule in &self.rules {
            let Sources { allow, deny, pass } = &rule.config.sources;
            let lists = [(allow, source_verdict::STEER), (deny, source_verdict::DENY), (pass, source_verdict::PASS)];
            for (blocks, verdict) in lists {
                let source = |block: &Cidr| {
                    (source_key(rule.id, block.ip(), block.prefix().into()), SourceVerdict::new(rule.id, verdict))
                };
                wanted.extend(blocks.iter().map(source));
            }
        }
        if !self.rules.is_empty() {
            let own = |ip: IpAddr| {
                let bits = if ip.is_ipv4() { 32 } else { 128 };
                (source_key(EVERY_RULE, ip, bits), SourceVerdict::new(EVERY_RULE, source_verdict::PASS))
            };
            wanted.extend(nodes::addresses().into_iter().map(own));
        }
        wanted
    }

    fn forget_sockets(&mut self, netns: u64, listeners: u32) {
        for family in FAMILIES {
            for listener in 0..listeners {
                let _ = self.sockets.remove(&SteerKey { netns, family, listener });
            }
        }
    }

    fn pin(&self, netns: u64) -> PathBuf {
        self.links.join(format!("{}{netns}{}", PIN.0, PIN.1))
    }

    /// Puts a copy of the program that knows its namespace behind the link that an earlier agent pinned, or a new one.
    fn attach(&self, netns: u64, file: &File) -> Result<(), KernelError> {
        let mut copy = load::steering(&self.maps, netns)?;
        let pin = self.pin(netns);
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| KernelError::Attach {
            hook: load::STEERING.into(),
            to: format!("the network namespace {netns}"),
            source,
        };
        let program: &mut SkLookup = copy
            .program_mut(load::STEERING)
            .ok_or_else(|| KernelError::NoProgram { name: load::STEERING.into() })?
            .try_into()
            .map_err(|error: aya::programs::ProgramError| failed(error.into()))?;
        if let Ok(link) = sys::pinned(&pin) {
            let program = program.fd().map_err(|error| failed(error.into()))?;
            if sys::update_link(link.as_fd(), program.as_fd()).is_ok() {
                return Ok(());
            }
            // Its namespace is gone, and the cookie is another's: cookies of a later boot begin anew (trap T42).
            let _ = fs::remove_file(&pin);
        }
        let link =
            program.attach(file).and_then(|link| program.take_link(link)).map_err(|error| failed(error.into()))?;
        let pinned = FdLink::from(link).pin(&pin);
        pinned.map(drop).map_err(|source| KernelError::PinLink { path: pin, source: Box::new(source) })
    }

    /// Once, when all namespaces are known: removes what an earlier agent left in others.
    fn tidy_links(&mut self) {
        if std::mem::replace(&mut self.is_tidy, true) {
            return;
        }
        for (netns, path) in pinned_links(&self.links) {
            if !self.places.contains_key(&netns) {
                let _ = pins::remove_link(&path);
            }
        }
    }
}

fn pinned_links(links: &Path) -> Vec<(u64, PathBuf)> {
    let Ok(entries) = fs::read_dir(links) else { return Vec::new() };
    let ours = |entry: io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        Some((cookie_of(path.file_name()?.to_str()?)?, path))
    };
    entries.filter_map(ours).collect()
}

fn entry(netns: u64, rule: &Rule, ports: &std::ops::RangeInclusive<u16>, listeners: u32) -> Port {
    let by_source = if rule.config.counts_sources() { port_flags::BY_SOURCE } else { 0 };
    let listed_only = if rule.config.sources.allow.is_empty() { 0 } else { port_flags::LISTED_ONLY };
    let flags = by_source | listed_only;
    Port { netns, rule: rule.id, listeners, first: *ports.start(), last: *ports.end(), flags, seal: 0, zero: 0 }
        .sealed()
}

/// The prefix of a block of addresses of one rule.
fn source_key(rule: u32, ip: IpAddr, bits: u32) -> Prefix<AccessKey> {
    let mapped = if ip.is_ipv4() { 128 - 32 } else { 0 };
    let ip = flows::address(std::net::SocketAddr::new(ip, 0)).ip;
    (RULE_BITS + mapped + bits, AccessKey { rule, ip })
}
