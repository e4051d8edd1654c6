//! The conversations of one UDP socket: what it asked, and which endpoint its datagrams go to. Kept in the socket's `sk_storage`, where
//! they die with it; and the list of UDP sockets that are connected.

use crate::flow::Address;

/// Conversations that one socket has at once: a resolver speaks to two or three services from one socket. What goes beyond pushes the one
/// out that was quiet for longest; late replies of that one come from the endpoint's own address.
pub const CONVERSATIONS_MAX: usize = 8;

/// The conversations of one socket.
///
/// The kernel runs the hooks on `sendmsg` and `recvmsg` under the socket's lock (`BPF_CGROUP_RUN_PROG_UDP4_SENDMSG_LOCK` and its kin in
/// `include/linux/bpf-cgroup.h`), so that threads that share a socket find each entry whole.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Conversations {
    /// In no order.
    pub table: [Conversation; CONVERSATIONS_MAX],
}

/// Datagrams of one socket to one service, and the replies.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// The address that the program sends to: where replies seem to come from.
    pub original: Address,
    /// The endpoint that they go to instead.
    pub actual: Address,
    /// Which service, by its id in the service table.
    pub service: u32,
    /// Which endpoint of it.
    pub endpoint: u32,
    /// Datagrams that the program has sent, modulo 2^32.
    pub sent: u32,
    /// One of [`conversation_state`], and perhaps [`conversation_state::PASSED_BY`].
    pub state: u32,
    /// When a datagram last went either way, in nanoseconds of `CLOCK_MONOTONIC`.
    pub used_ns: u64,
}

/// Values of [`Conversation::state`]. Zero, as storage begins, is an entry that was never used.
pub mod conversation_state {
    /// The next datagram to this address goes to this endpoint, if it may.
    pub const CURRENT: u32 = 1;
    /// Another endpoint was chosen since; late replies still seem to come from the address that was asked.
    pub const FORMER: u32 = 2;
    /// A bit beside them: since the last datagram of the conversation the program has asked the endpoint by its own address, which is whom
    /// it hears from then.
    pub const PASSED_BY: u32 = 0x100;
}

/// A UDP socket that `connect()` has turned to an endpoint: value of a table keyed by the socket's cookie, which is never given twice.
///
/// The socket's storage says the same, but the kernel lists the storage of TCP sockets only (`inet_sk_diag_fill`): who wants to end the
/// sockets of an endpoint that is gone (trap T28) must find them here, and compares with where the socket is connected to now.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The address that the program dialled.
    pub original: Address,
    /// The endpoint.
    pub actual: Address,
}

const _: () = {
    assert!(size_of::<Connected>() == 40);
    assert!(CONVERSATIONS_MAX.is_power_of_two(), "the hook masks an index with it");
    assert!(size_of::<Conversation>() == 64);
    assert!(size_of::<Conversations>() == 64 * CONVERSATIONS_MAX);
};
