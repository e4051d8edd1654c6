//! Addresses, and the state of one socket: what it dialled and where it was sent.
//!
//! Addresses are network-order bytes kept in words as the kernel hands them out; IPv4 is mapped into IPv6 (`::ffff:a.b.c.d`),
//! so that every table has one key shape for both families.

use crate::seal::{SEED, mix, mix_address};

/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// An address that a program dials, or an endpoint: IP, port and protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The IP in network order; IPv4 as `[0, 0, MAPPED, a.b.c.d]`.
    pub ip: [u32; 4],
    /// The port in network order.
    pub port: u16,
    /// IP protocol number; [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Zero: keys are compared byte by byte.
    pub zero: u8,
}

/// Third word of an IPv4-mapped IPv6 address, in network order.
pub const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// A TCP address of an IPv4 word in network order.
    #[inline(always)]
    pub const fn v4(ip: u32, port: u16) -> Self {
        Self { ip: [0, 0, MAPPED, ip], port, protocol: TCP, zero: 0 }
    }

    /// A TCP address of IPv6 words in network order (also mapped ones).
    #[inline(always)]
    pub const fn v6(ip: [u32; 4], port: u16) -> Self {
        Self { ip, port, protocol: TCP, zero: 0 }
    }

    /// The same IP and port of another protocol.
    #[inline(always)]
    pub const fn of(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// Whether this is an IPv4 address, mapped.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.ip[0] == 0 && self.ip[1] == 0 && self.ip[2] == MAPPED
    }
}

/// State of a socket that dialled a service, kept in its `sk_storage`: it dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Conn {
    /// Where another layout has it: the tests' hooks of tomorrow take it for what was dialled if they read a socket of today.
    #[cfg(feature = "next-layout")]
    pub actual: Address,
    /// What the program dialled: what `getpeername` answers and the agent routes by.
    pub original: Address,
    /// Where the socket was sent instead.
    #[cfg(not(feature = "next-layout"))]
    pub actual: Address,
    /// Which service, by its id in the service table.
    pub service: u32,
    /// Which endpoint of it, or [`ENDPOINT_AGENT`].
    pub endpoint: u32,
    /// Network namespace of the program (`bpf_get_netns_cookie`).
    pub netns: u64,
    /// Who dialled, as limits, affinity and hashes know it; see [`crate::service`].
    pub source: u64,
    /// When it dialled, in nanoseconds of `CLOCK_MONOTONIC`.
    pub dialled_ns: u64,
    /// What was reserved for it and is to be given back once, bits of [`held`]. Cleared atomically: two hooks may end one socket at once.
    pub held: u64,
    /// Bits of [`conn_flags`].
    pub flags: u32,
    /// The process that dialled, in the initial pid namespace.
    pub pid: u32,
    /// From the dial to the end of the handshake, in µs; 0 until then.
    pub connect_us: u32,
    /// The connect hook's verdict: a [`crate::counter::Counter`].
    pub verdict: u32,
    /// Cgroup of the process that dialled, if somebody watched (see [`crate::watch`]).
    pub cgroup: u64,
    /// Its command, if somebody watched; else all zero.
    pub command: [u8; 16],
}

impl Conn {
    /// Of a socket that has dialled nothing.
    pub const EMPTY: Self = Self {
        original: Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 },
        actual: Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 },
        service: 0,
        endpoint: ENDPOINT_AGENT,
        netns: 0,
        source: 0,
        dialled_ns: 0,
        held: 0,
        flags: 0,
        pid: 0,
        connect_us: 0,
        verdict: 0,
        cgroup: 0,
        command: [0; 16],
    };
}

/// Bits of [`Conn::held`].
pub mod held {
    /// One of the service's open connections.
    pub const SERVICE: u64 = 1;
    /// One of the source's open connections.
    pub const SOURCE: u64 = 1 << 1;
    /// One of the endpoint's open connections, of its statistics.
    pub const ENDPOINT: u64 = 1 << 2;
    /// The same of its live state, which all CPUs share.
    pub const LIVE: u64 = 1 << 3;
}

/// Value of [`Conn::endpoint`] when the socket was sent to the agent.
pub const ENDPOINT_AGENT: u32 = u32::MAX;

/// Bits of [`Conn::flags`].
pub mod conn_flags {
    /// The connect hook has bound the socket to the address that it would have had without the agent.
    pub const BOUND: u32 = 1 << 13;
    /// This socket may be enrolled in the shortcut, if its peer may.
    pub const SHORTCUT: u32 = 1;
    /// A rule of a nearer cgroup said no to the shortcut.
    pub const NEVER: u32 = 1 << 1;
    /// The socket is the agent's own (set by the agent on its upstream sockets).
    pub const AGENT: u32 = 1 << 2;
    /// `connect()` is under way: where capture rules nest, the hook of the outer cgroup runs next, on the address that was put in.
    pub const DIALLING: u32 = 1 << 3;
    /// A UDP socket that was connected to [`Conn::actual`] already when it dialled.
    pub const STAYED: u32 = 1 << 14;
    /// Its end has been counted: where capture rules nest, the hook of the outer cgroup sees it too.
    pub const ENDED: u32 = 1 << 4;
    /// The agent dials a program on behalf of a client: [`Conn::original`] is the client, and the program is to hear it as its peer.
    pub const INTRODUCES: u32 = 1 << 5;
    /// The accepting end is to be told what was dialled: [`Conn::original`].
    pub const TELLS_ORIGINAL: u32 = 1 << 6;
    /// Somebody watched when it was dialled, and it is to be reported when it ends (see [`crate::watch`]).
    pub const NOTED: u32 = 1 << 7;
    /// The agent only relays this connection: it may be joined from its first byte.
    pub const HOLD: u32 = 1 << 12;
    /// sock_ops is told of every state of this socket, and gives back what it holds when it closes.
    pub const WATCHED: u32 = 1 << 8;
    /// Its service ejects endpoints: how the handshake ends is noted in the endpoint's live state.
    pub const EJECTS: u32 = 1 << 9;
}

/// One direction's identity on the wire, the same seen from both ends: addresses and the two initial sequence numbers.
/// The sequence numbers make it unique over network namespaces that use the same addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// The dialling end.
    pub client: Address,
    /// The accepting end.
    pub server: Address,
    /// First byte the client will send (`snd_nxt` at establishment).
    pub client_sequence: u32,
    /// First byte the server will send.
    pub server_sequence: u32,
}

/// What the dialling end of a connection has to say to the accepting end on this host, published between the dialling end's establishment
/// and the accepting end's, under their [`FlowKey`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduction {
    /// For whom was dialled: what `accept` and `getpeername` of the accepting end answer. [`NOWHERE`]: for nobody else.
    pub source: Address,
    /// What was dialled: what `SO_ORIGINAL_DST` of the accepting end answers. [`NOWHERE`]: it is not told.
    pub original: Address,
    /// See [`Introduction::sealed`].
    pub seal: u32,
}

/// No address.
pub const NOWHERE: Address = Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 };

impl Introduction {
    /// The entry with its seal, for the key it will stand under: as [`crate::service::Service::sealed`]. A program must never hear a
    /// stranger's address.
    #[inline(always)]
    pub fn sealed(mut self, key: &FlowKey) -> Self {
        self.seal = self.seal_for(key);
        self
    }

    /// Whether the entry is whole and belongs to this key.
    #[inline(always)]
    pub fn is_whole(&self, key: &FlowKey) -> bool {
        self.seal == self.seal_for(key)
    }

    #[inline(always)]
    fn seal_for(&self, key: &FlowKey) -> u32 {
        let seal = mix_address(mix_address(SEED, &key.client), &key.server);
        let seal = mix(mix(seal, key.client_sequence), key.server_sequence);
        mix_address(mix_address(seal, &self.source), &self.original)
    }
}

/// What an accepted socket was told, kept in its `sk_storage`: it dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// The peer that the kernel knows; a socket that was disconnected and dials has another.
    pub peer: Address,
    /// [`Introduction::source`].
    pub source: Address,
    /// [`Introduction::original`].
    pub original: Address,
}

/// What the hook at the accepting end of a captured connection knows of it: where it is, who dialled, and which listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalKey {
    /// Network namespace of the client, which is also that of the agent's listener.
    pub netns: u64,
    /// The client's own address.
    pub client: Address,
    /// The listener's port, as in an [`Address`]; it listens on the loopback address of the client's family.
    pub listener: u32,
}

/// What a captured connection dialled.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Original {
    /// The address that the program dialled.
    pub address: Address,
    /// Which service that is.
    pub service: u32,
    /// When it was published, in nanoseconds of `CLOCK_MONOTONIC`: what nobody took is swept.
    pub published_ns: u64,
    /// [`Conn::source`].
    pub source: u64,
}

const _: () = {
    assert!(size_of::<Address>() == 20);
    assert!(size_of::<Conn>() == 120);
    assert!(size_of::<FlowKey>() == 48);
    assert!(size_of::<Introduction>() == 44);
    assert!(size_of::<Accepted>() == 60);
    assert!(size_of::<OriginalKey>() == 32);
    assert!(size_of::<Original>() == 40);
};
