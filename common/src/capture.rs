//! What the agent tells the kernel half to do, and what the kernel half tells the agent.

/// The kernel half's settings: one entry, written by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// [`crate::ABI_VERSION`] of who wrote this: a later agent compares before it reuses pinned maps.
    pub abi_version: u32,
    /// Bits of [`settings_flags`].
    pub flags: u32,
    /// Cgroup id of the agent: its own connections are never captured.
    pub agent_cgroup: u64,
    /// A heartbeat older than this means that the agent hangs: balance in the kernel instead (trap T25).
    pub heartbeat_max_age_ns: u64,
    /// Bytes that may wait in a peer's receive queue before the shortcut falls back to TCP (trap T13).
    pub shortcut_bytes_max: u32,
    /// Byte offsets into the running kernel's `struct sock` and `struct tcp_sock`, found in its BTF; see [`Offsets`].
    pub offsets: Offsets,
    /// Tells the capture rules in force from those before: see [`settings_flags::EXCLUDED_CGROUPS`].
    pub rules: u32,
}

/// Offsets of the fields that hooks read of sockets. Rust has no CO-RE, so the agent resolves them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// `sock.__sk_common.skc_cookie`.
    pub cookie: u32,
    /// `sock.sk_backlog.rmem_alloc`.
    pub rmem_alloc: u32,
    /// `sock.sk_rcvbuf`.
    pub rcvbuf: u32,
    /// Byte of `tcp_sock.is_mptcp`; 0 where the kernel has no MPTCP.
    pub is_mptcp: u32,
    /// `sock.__sk_common.skc_dport`, followed by `skc_num`.
    pub ports: u32,
    /// `tcp_sock.rcv_nxt`.
    pub rcv_nxt: u32,
    /// `sock.sk_err`.
    pub error: u32,
    /// `sock.__sk_common.skc_flags`, whose bit [`SOCK_DONE`] says that a FIN has come in.
    pub flags: u32,
    /// `tcp_sock.write_seq`: behind the last byte that the socket was given.
    pub write_seq: u32,
    /// `tcp_sock.copied_seq`: behind the last byte that was read from it.
    pub copied_seq: u32,
}

/// Number of the bit in a socket's flags (`enum sock_flags` of `include/net/sock.h`).
pub const SOCK_DONE: u32 = 1;

/// Bits of [`Settings::flags`].
pub mod settings_flags {
    /// Some service and some capture rule may use the shortcut.
    pub const SHORTCUT: u32 = 1;
    /// Accepting ends are to look whether they were told something of their connection: see [`crate::flow::Introduction`].
    pub const INTRODUCTIONS: u32 = 1 << 1;
    /// Hooks are being replaced that count in another table of limits: counts may be below zero until those of both are added up.
    pub const CARRYING: u32 = 1 << 2;
    /// Some cgroups are left out of what is captured around them: their hooks mark each socket that dials a service with
    /// [`super::Settings::rules`], and sockets with that mark pass. A mark of other rules means nothing.
    pub const EXCLUDED_CGROUPS: u32 = 1 << 8;
    /// Some users are left out: those in the table of users.
    pub const EXCLUDED_USERS: u32 = 1 << 9;
    /// Network namespaces are captured or left out as their table says.
    pub const RULED_NAMESPACES: u32 = 1 << 10;
    /// Those that are not in it are left out.
    pub const UNNAMED_EXCLUDED: u32 = 1 << 11;
    /// Any of those that leave out.
    pub const EXCLUDES: u32 = EXCLUDED_CGROUPS | EXCLUDED_USERS | RULED_NAMESPACES;
}

/// Where the agent listens in one network namespace: value of a table keyed by the namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Port on 127.0.0.1, network order; 0 for none.
    pub port_v4: u16,
    /// Port on ::1, network order; 0 for none.
    pub port_v6: u16,
}

/// Which address a program's socket would have towards the agent services, in one network namespace: value of a table keyed by the
/// namespace's cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// IPv4, network order; 0 for none.
    pub v4: u32,
    /// Zero: fills the layout to a multiple of eight.
    pub zero: u32,
    /// IPv6, network order; all zero for none.
    pub v6: [u32; 4],
}

/// Tag that the agent puts into its listeners' `sk_storage`: the hook sends connections to no other socket (trap T24).
pub const LISTENER_TAG: u32 = 0x534b_5759;

/// What the kernel half reports through the ring buffer, rarely: never one per connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// One of [`event_kind`].
    pub kind: u32,
    /// Process (in the initial pid namespace) of `UNSEEN_NAMESPACE`.
    pub pid: u32,
    /// Network namespace cookie.
    pub netns: u64,
    /// Service of `CONNECT_FAILED`.
    pub service: u32,
    /// Endpoint of `CONNECT_FAILED`.
    pub endpoint: u32,
}

/// Values of [`Event::kind`].
pub mod event_kind {
    /// A program in a namespace without a listener of the agent dialled an agent service.
    pub const UNSEEN_NAMESPACE: u32 = 1;
    /// A handshake with an endpoint failed.
    pub const CONNECT_FAILED: u32 = 2;
}

const _: () = {
    assert!(size_of::<Settings>() == 72);
    assert!(size_of::<Listener>() == 4);
    assert!(size_of::<Source>() == 24);
    assert!(size_of::<Event>() == 24);
};
