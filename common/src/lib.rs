//! What the two halves agree on: every byte that the kernel programs (`ebpf`) and the agent (`agent`) both read or write.
//!
//! - [`flow`]: addresses and the state of one socket: what it dialled, where it was sent, who its peer is;
//! - [`udp`]: which endpoint each conversation of an unconnected UDP socket goes to;
//! - [`service`]: what the kernel half needs to balance a service by itself;
//! - [`endpoint`]: one endpoint as the kernel half knows it;
//! - [`limit`]: what a service and its sources may take, and what they have taken;
//! - [`capture`]: what the agent tells the kernel half: settings, its listeners, and what the kernel half tells back: events;
//! - [`inbound`]: what the kernel half needs to steer connections that come in to the agent;
//! - [`shape`]: which maps of another version can be used again;
//! - [`counter`]: the kernel half's per-CPU counters, one for each way a hook can end;
//! - [`join`]: the two ends of a shortcut, and of two connections that are joined;
//! - [`latency`]: histograms that the hooks count;
//! - [`watch`]: who watches flows, and what the hooks tell about each;
//! - `pod`: the only `unsafe impl aya::Pod`s, behind the feature `user`.
//!
//! `no_std`, no padding, every size asserted: a change of layout is a change of [`ABI_VERSION`].
#![no_std]

pub mod capture;
pub mod counter;
pub mod endpoint;
pub mod flow;
pub mod inbound;
pub mod join;
pub mod latency;
pub mod limit;
#[cfg(feature = "user")]
mod pod;
mod seal;
pub mod service;
pub mod shape;
pub mod udp;
pub mod watch;

/// Version of everything in this crate. The agent refuses an object or a pinned map of another version.
pub const ABI_VERSION: u32 = 5 + cfg!(feature = "next-layout") as u32;

/// Stamp that the kernel half carries in the ELF section [`ABI_SECTION`], so that the agent can compare before it loads anything:
/// the version, then the size of every shared type in the order of [`ABI_NAMES`].
pub const ABI_STAMP: [u32; ABI_NAMES.len()] = [
    ABI_VERSION,
    size_of::<flow::Address>() as u32,
    size_of::<flow::Conn>() as u32,
    size_of::<join::Half>() as u32,
    size_of::<join::Meeting>() as u32,
    size_of::<flow::FlowKey>() as u32,
    size_of::<flow::OriginalKey>() as u32,
    size_of::<flow::Original>() as u32,
    size_of::<udp::Conversations>() as u32,
    size_of::<udp::Connected>() as u32,
    size_of::<flow::Introduction>() as u32,
    size_of::<flow::Accepted>() as u32,
    size_of::<inbound::Port>() as u32,
    size_of::<service::Service>() as u32,
    size_of::<service::ChunkKey>() as u32,
    size_of::<service::Chunk>() as u32,
    size_of::<service::SourceKey>() as u32,
    size_of::<service::Affinity>() as u32,
    size_of::<endpoint::Endpoint>() as u32,
    size_of::<endpoint::EndpointLive>() as u32,
    size_of::<endpoint::EjectPolicy>() as u32,
    size_of::<limit::LimitPolicy>() as u32,
    size_of::<limit::LimitKey>() as u32,
    size_of::<limit::LimitState>() as u32,
    size_of::<capture::Settings>() as u32,
    size_of::<capture::Listener>() as u32,
    size_of::<capture::Source>() as u32,
    size_of::<capture::Event>() as u32,
    size_of::<latency::EndpointLatency>() as u32,
    size_of::<watch::Watch>() as u32,
    size_of::<watch::Flow>() as u32,
    size_of::<join::Join>() as u32,
    size_of::<join::ShortcutStats>() as u32,
    counter::COUNT as u32,
];

/// What each word of [`ABI_STAMP`] is, for the message of a mismatch.
pub const ABI_NAMES: [&str; 34] = [
    "abi version",
    "flow::Address",
    "flow::Conn",
    "join::Half",
    "join::Meeting",
    "flow::FlowKey",
    "flow::OriginalKey",
    "flow::Original",
    "udp::Conversations",
    "udp::Connected",
    "flow::Introduction",
    "flow::Accepted",
    "inbound::Port",
    "service::Service",
    "service::ChunkKey",
    "service::Chunk",
    "service::SourceKey",
    "service::Affinity",
    "endpoint::Endpoint",
    "endpoint::EndpointLive",
    "endpoint::EjectPolicy",
    "limit::LimitPolicy",
    "limit::LimitKey",
    "limit::LimitState",
    "capture::Settings",
    "capture::Listener",
    "capture::Source",
    "capture::Event",
    "latency::EndpointLatency",
    "watch::Watch",
    "watch::Flow",
    "join::Join",
    "join::ShortcutStats",
    "number of counters",
];

/// ELF section of the kernel half that holds its [`ABI_STAMP`], little-endian words.
pub const ABI_SECTION: &str = "sockway_abi";
