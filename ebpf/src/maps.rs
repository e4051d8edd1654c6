//! Every map: who writes, who reads, its size and why, and what happens when it is full.
//!
//! A pinned map's shape is part of the ABI: change [`sockway_common::ABI_VERSION`] with it.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf, SockHash},
};
use sockway_common::{
    capture::{Listener, Settings, Source},
    counter,
    endpoint::{EjectPolicy, Endpoint, EndpointLive},
    flow::{Accepted, Address, Conn, FlowKey, Introduction, Original, OriginalKey},
    inbound::{AccessKey, Port, PortKey, SourceVerdict, SteerKey},
    join::{ENTRIES, Half, Join, Meeting, ShortcutStats},
    latency::EndpointLatency,
    limit::{LimitKey, LimitPolicy, LimitState},
    service::{Affinity, Chunk, ChunkKey, EndpointKey, EndpointStats, Service, SourceKey},
    udp::{Connected, Conversations},
    watch::{Name, Reported, Watch},
};

/// `BPF_F_NO_PREALLOC`: sparse tables take memory as they fill (trap T40).
const NO_PREALLOC: u32 = 1;

/// Agent writes, every hook reads. One entry.
#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Agent writes the time of `CLOCK_MONOTONIC` while its workers progress; the connect hooks compare.
#[map]
pub static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);

/// Agent writes, connect hooks read. 131 072 services; when full the agent reports which did not fit and those pass.
#[map]
pub static SERVICES: HashMap<Address, Service> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Agent writes, connect hooks read: ten slots in an entry, two entries for each service on average; one service's are there twice
/// while they are swapped.
#[map]
pub static SLOTS: HashMap<ChunkKey, Chunk> = HashMap::with_max_entries(262_144, NO_PREALLOC);

/// Agent writes, connect hooks read. One for each endpoint of each service.
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, Endpoint> = HashMap::with_max_entries(524_288, NO_PREALLOC);

/// Hooks count; the agent makes the entry, for services that need it, and never writes it again. When it is full the agent says so and
/// the service is not changed.
#[map]
pub static ENDPOINT_LIVE: HashMap<EndpointKey, EndpointLive> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Agent writes, connect hooks read: by service id, for services with limits.
#[map]
pub static LIMIT_POLICIES: HashMap<u32, LimitPolicy> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Hooks reserve and give back: hard state, made by the first connection, swept by the agent (through the program `sweep_limits`) when
/// idle. One for each limited service and each of its sources; when it is full what cannot be counted passes, and is counted as such.
/// Pinned: what is reserved outlives the agent.
#[map]
pub static LIMITS: HashMap<LimitKey, LimitState> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Agent writes, sock_ops reads: by service id, for services that eject.
#[map]
pub static EJECT_POLICIES: HashMap<u32, EjectPolicy> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// sock_ops only: a pointer to a socket is written here and read back as a number (see [`crate::socket::number`]).
#[map]
pub static SCRATCH: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Connect hooks write and read. Soft state: a source that was evicted is balanced like a new one.
#[map]
pub static AFFINITY: LruHashMap<SourceKey, Affinity> = LruHashMap::with_max_entries(32_768, 0);

/// Connect hooks count up; the agent makes an entry for each service that takes its slots in turn and removes it with the service.
#[map]
pub static CURSORS: HashMap<u32, u64> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Services whose turns a CPU keeps apart: the hot ones of a host are fewer, and two that meet only lose their turns.
pub const TURNS_SERVICES: u32 = 256;

/// Connect hooks only: what each CPU has taken of the turns of hot services and not used.
#[map]
pub static TURNS: PerCpuArray<Turns> = PerCpuArray::with_max_entries(TURNS_SERVICES, 0);

/// Hooks count, agent reads and removes with the endpoint. The hook makes the entry, at the first connect to an endpoint, since one host
/// dials few of a large cluster's. When it is full, or the kernel has no memory at hand, the connect passes uncounted, which is counted.
#[map]
pub static ENDPOINT_STATS: PerCpuHashMap<EndpointKey, EndpointStats> =
    PerCpuHashMap::with_max_entries(524_288, NO_PREALLOC);

/// What a new entry of [`ENDPOINT_STATS`] begins with; not on the stack, of which `dial_v6` has little left.
pub static NO_STATS: EndpointStats = EndpointStats { connects: 0, failures: 0, closed: 0 };

/// Agent writes, connect hooks read: by network namespace cookie. One entry for each namespace served.
#[map]
pub static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Agent writes, connect hooks read: by network namespace cookie. One entry for each namespace served in which the agent services have a
/// route; without one a socket that goes to the agent has a loopback address.
#[map]
pub static SOURCES: HashMap<u64, Source> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Agent writes, hooks read: users left out, as prefixes of their number, most significant byte first. A range takes at most 62 of them.
#[map]
pub static EXCLUDED_USERS: LpmTrie<u32, u32> = LpmTrie::with_max_entries(65_536, 0);

/// Agent writes, hooks read: for network namespaces, by cookie, that have a name: 1 captured, 0 left out. As many as listeners.
#[map]
pub static RULED_NAMESPACES: HashMap<u64, u32> = HashMap::with_max_entries(65_536, NO_PREALLOC);

/// Hooks of cgroups that are left out mark sockets, hooks of cgroups further up look. Dies with the socket.
#[btf_map]
pub static EXCLUDED: SkStorage<u32> = SkStorage::new();

/// Agent tags its listening sockets with [`sockway_common::capture::LISTENER_TAG`]; connect hooks check.
#[btf_map]
pub static LISTENER_TAGS: SkStorage<u32> = SkStorage::new();

/// Connect hooks write (and the agent, for its upstream sockets), getpeername and sock_ops read. Dies with the socket.
#[btf_map]
pub static CONNS: SkStorage<Conn> = SkStorage::new();

/// Connect hooks write, the agent reads, `sock_release` removes: UDP sockets that are connected to an endpoint, by cookie. When it is full
/// a socket is not told that its endpoint is gone.
#[map]
pub static CONNECTED: HashMap<u64, Connected> = HashMap::with_max_entries(131_072, NO_PREALLOC);

/// Connect hooks write, getpeername and recvmsg read: what a UDP socket was connected to before it dialled anew, which it still is if the
/// kernel let that fail. Dies with the socket.
#[btf_map]
pub static FORMER: SkStorage<Connected> = SkStorage::new();

/// sendmsg hooks write, recvmsg hooks read. Made when an unconnected UDP socket first sends to a service; dies with the socket.
#[btf_map]
pub static CONVERSATIONS: SkStorage<Conversations> = SkStorage::new();

/// sock_ops at the dialling end publishes before the SYN leaves, sock_ops at the agent's end takes it into [`DIALLED`]. Holds what is on
/// its way to the agent's accept queues; what nobody takes (a client that gave up) the agent sweeps. When it is full the connect hook
/// balances agent services in the kernel.
#[map]
pub static ORIGINALS: HashMap<OriginalKey, Original> = HashMap::with_max_entries(262_144, NO_PREALLOC);

/// sock_ops writes, the agent reads: what the client of a socket that it accepted has dialled. Dies with the socket.
#[btf_map]
pub static DIALLED: SkStorage<Original> = SkStorage::new();

/// Hooks count, agent reads.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counter::COUNT as u32, 0);

/// Hooks write, agent reads. Events are rare; a lost one is counted and what it said is found by the agent's scan or by the next.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// When an event was last sent, so that a flood of failures is not a flood of events. Soft state: an evicted entry sends once more.
#[map]
pub static EVENTS_SENT: LruHashMap<u64, u64> = LruHashMap::with_max_entries(4096, 0);

/// sock_ops at the accepting side notes a SYN, sock_ops at the dialling side looks whether its peer is on this host and allows the
/// shortcut. Soft state: an evicted entry means that a pair is not enrolled.
#[map]
pub static SYNS: LruHashMap<SynKey, u32> = LruHashMap::with_max_entries(16_384, 0);

/// Where the two ends of a shortcut learn of each other, from establishment to the client's first message. Soft state: an evicted
/// entry makes the client's direction fall back to TCP.
#[map]
pub static MEETINGS: LruHashMap<FlowKey, Meeting> = LruHashMap::with_max_entries(32_768, 0);

/// An enrolled socket's half. Dies with the socket.
#[btf_map]
pub static HALVES: SkStorage<Half> = SkStorage::new();

/// `BPF_F_MMAPABLE`: the agent writes in place, without a system call.
const MMAPABLE: u32 = 1 << 10;

/// The agent claims an entry for each direction that it wants joined, sock_msg looks for its socket's. Not pinned: it belongs to this
/// loading of the object and to the agent that did it, and sockets keep the program that they were enrolled with (trap T7), so that
/// no hook ever trusts an entry of an agent that is gone. A direction that finds no place free is relayed.
#[map]
pub static JOINS: Array<Join> = Array::with_max_entries(ENTRIES, MMAPABLE);

/// Hooks count, agent reads; the agent makes an entry for each service that may use the shortcut.
#[map]
pub static SHORTCUT_STATS: PerCpuHashMap<u32, ShortcutStats> = PerCpuHashMap::with_max_entries(131_072, NO_PREALLOC);

/// Enrolled sockets by cookie. 131 072 sockets (about 0.84 KiB of kernel memory each); when full sockets are not enrolled.
#[map]
pub static SHORTCUT: SockHash<u64> = SockHash::with_max_entries(131_072, 0);

/// Hooks count, agent reads and removes with the endpoint. The hook makes the entry, at the first handshake with an endpoint, since one
/// host dials few of a large cluster's. When it is full, the latencies of further endpoints are not measured, which is counted.
#[map]
pub static LATENCIES: PerCpuHashMap<EndpointKey, EndpointLatency> =
    PerCpuHashMap::with_max_entries(65_536, NO_PREALLOC);

/// What a new entry of [`LATENCIES`] begins with: too much for the stack.
pub static NO_LATENCY: EndpointLatency = EndpointLatency::ZERO;

/// Watcher writes and renews, hooks read. One entry, because a ring buffer has one reader.
#[map]
pub static WATCH: Array<Watch> = Array::with_max_entries(1, 0);

/// Hooks write, watcher reads. Half a second at 5 000 flows a second; a flow that finds no room is counted, and the watcher told.
#[map]
pub static FLOWS: RingBuf = RingBuf::with_byte_size(512 * 1024, 0);

/// Hooks count what they reported to the watcher, each CPU for itself.
#[map]
pub static REPORTED: PerCpuArray<Reported> = PerCpuArray::with_max_entries(1, 0);

/// Agent writes, by service id; no hook reads. Who looks at the tables while no agent runs learns the services' names here.
#[map]
pub static NAMES: HashMap<u32, Name> = HashMap::with_max_entries(131_072, NO_PREALLOC);
/// Value of [`TURNS`]: turns from `next` up to `end` are this CPU's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Turns {
    pub service: u32,
    pub zero: u32,
    pub next: u64,
    pub end: u64,
    pub last_ns: u64,
}

/// Agent writes, sk_lookup reads: the ports whose connections go to the agent. A range takes at most 30 entries; when full the agent
/// reports which ranges did not fit, and those go to the program.
#[map]
pub static INBOUND_PORTS: LpmTrie<PortKey, Port> = LpmTrie::with_max_entries(65_536, 0);

/// Agent writes, sk_lookup reads: sources that a rule names, and the node's own addresses. When full the agent refuses the configuration:
/// half of an access list is none.
#[map]
pub static INBOUND_SOURCES: LpmTrie<AccessKey, SourceVerdict> = LpmTrie::with_max_entries(262_144, 0);

/// Agent writes, sk_lookup reads: the agent's inbound listeners, for each namespace, family and worker. The kernel takes a socket out
/// when it is closed, also that of an agent that was killed: then the program serves.
#[map]
pub static INBOUND_SOCKETS: SockHash<SteerKey> = SockHash::with_max_entries(65_536, 0);

/// sock_ops at the dialling end publishes, sock_ops at the accepting end takes, microseconds later. Soft state: of what was evicted the
/// program hears the agent's address instead of the client's.
#[map]
pub static INTRODUCTIONS: LruHashMap<FlowKey, Introduction> = LruHashMap::with_max_entries(8192, 0);

/// sock_ops writes, getpeername and getsockopt read. Dies with the socket.
#[btf_map]
pub static ACCEPTED: SkStorage<Accepted> = SkStorage::new();

/// Key of [`SYNS`]: the client's and the server's address.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SynKey {
    pub client: Address,
    pub server: Address,
}
