//! Joined pairs: two programs whose connections end at the agent, and whose sockets send straight into each other once the agent has
//! nothing more to decide.
//!
//! ```text
//!   program C ══ TCP ══ A₁ agent A₂ ══ TCP ══ S program        until the quiet point, and whenever a reader is slow
//!   program C ───────────────────────────────▶ S               from then on: C's hook puts its messages into S's receive queue
//! ```
//!
//! Each direction has an entry of its own, found by the cookie of the socket that sends. The agent claims it, says where the direction
//! leads, and how many bytes it has passed on; the sending socket's hook, which runs under that socket's lock, decides when to
//! switch. Cookies are never given twice, so an entry that has become another's is seen for what it is.

use crate::flow::{Address, FlowKey};

/// How many entries there are: one for each direction. Four fifths of the sockets that fit into the sockhash are at most programs' whose
/// connections end at the agent; each entry has 128 bytes, which is 4 MiB of the kernel's memory.
pub const ENTRIES: u32 = 32_768;
/// An entry stands at one of so many places, so that directions that live long do not keep others out.
pub const WAYS: u32 = 4;

/// First of the places at which the direction of this socket may have its entry. Cookies are given in turn, which spreads them evenly.
#[inline(always)]
pub const fn first_place(cookie: u64) -> u32 {
    (cookie % (ENTRIES / WAYS) as u64) as u32 * WAYS
}

/// One direction: from the socket of one program to that of the other.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// Cookie of the socket that sends; 0 while the entry is free. Written first when it is given up, and last when it is claimed.
    pub cookie: u64,
    /// Bytes of this socket that the agent has taken since the connection began, once all that became of them is with the kernel.
    pub forwarded: u64,
    /// Cookie of the socket that it sends to: its key in the sockhash.
    pub to_cookie: u64,
    /// That socket's `struct sock`, only ever read through `bpf_probe_read_kernel`, and trusted after its cookie was compared (trap T17).
    pub to_sock: u64,
    /// Cookie of the agent's socket at the other end of the receiver's connection.
    pub via_cookie: u64,
    /// Its `struct sock`.
    pub via_sock: u64,
    /// Bytes that went straight. The hook counts, under the sender's lock.
    pub direct_bytes: u64,
    /// Messages that went straight.
    pub direct_messages: u64,
    /// One of [`join_state`].
    pub state: u32,
    /// First sequence number of the agent's socket: as long as it has sent nothing by TCP, its receiver reads one queue only.
    pub via_first: u32,
    /// Zero: an entry has cache lines of its own.
    pub zero: [u32; 14],
}

/// Values of [`Join::state`].
pub mod join_state {
    /// The two may send straight to each other.
    pub const ARMED: u32 = 1;
    /// They may not: the sender need not be held, and takes the shortcut to the agent.
    pub const REFUSED: u32 = 2;
}

/// One enrolled socket's half of a shortcut, kept in its `sk_storage`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Half {
    /// Where to find the [`Meeting`] (client half only), and the first sequence numbers.
    pub key: FlowKey,
    /// This socket's cookie.
    pub cookie: u64,
    /// This socket's `struct sock`, as a number.
    pub sock: u64,
    /// The peer's cookie: its key in the sockhash.
    pub peer_cookie: u64,
    /// The peer's `struct sock` (see [`Join::to_sock`]).
    pub peer_sock: u64,
    /// Bytes that were redirected to the peer's socket.
    pub redirected_bytes: u64,
    /// Bytes that went straight to the socket that this one is joined with.
    pub joined_bytes: u64,
    /// Cookie of that socket; only while the state is [`half_state::DIRECT`].
    pub to_cookie: u64,
    /// Its `struct sock`.
    pub to_sock: u64,
    /// One of [`half_state`].
    pub state: u32,
    /// Bits of [`half_flags`].
    pub flags: u32,
    /// Bytes that may wait in the peer's receive queue, set when the two met (trap T13).
    pub limit_bytes: u32,
    /// Service that the connection belongs to.
    pub service: u32,
    /// Place of the direction's [`Join`]; only while the state is [`half_state::DIRECT`].
    pub place: u32,
    /// What TCP would have sent next when the direction began to go straight: had it sent since, what follows must not overtake it.
    pub switched_at: u32,
    /// From when on, by the monotonic clock, its sender may be kept for a moment, so that the agent can catch up. An agent of before left a
    /// small count here, which is long ago.
    pub wait_at_ns: u64,
}

impl Half {
    /// The half of a socket of which nothing is known but that it sends through TCP.
    #[inline(always)]
    pub const fn fallen_back() -> Self {
        let nowhere = Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 };
        Self {
            key: FlowKey { client: nowhere, server: nowhere, client_sequence: 0, server_sequence: 0 },
            cookie: 0,
            sock: 0,
            peer_cookie: 0,
            peer_sock: 0,
            redirected_bytes: 0,
            joined_bytes: 0,
            to_cookie: 0,
            to_sock: 0,
            state: half_state::FALLBACK,
            flags: 0,
            limit_bytes: 0,
            service: 0,
            place: 0,
            switched_at: 0,
            wait_at_ns: 0,
        }
    }
}

impl Half {
    /// First sequence number of this socket.
    #[inline(always)]
    pub const fn first(&self) -> u32 {
        if self.flags & half_flags::SERVER != 0 { self.key.server_sequence } else { self.key.client_sequence }
    }
}

/// Values of [`Half::state`]. Bytes that passed through TCP must not be overtaken (trap T6): from `FALLBACK` and `HELD` a direction
/// goes on only by a proof that all of them have been read.
pub mod half_state {
    /// Client half whose first message has not been sent: look at the meeting place.
    pub const WAITING: u32 = 0;
    /// Messages go to the peer's socket directly.
    pub const JOINED: u32 = 1;
    /// This direction goes through TCP, for good unless the pair is joined.
    pub const FALLBACK: u32 = 2;
    /// This direction goes through TCP until it is known whether it leads to a program of this host.
    pub const HELD: u32 = 3;
    /// Messages go to the socket of the other program.
    pub const DIRECT: u32 = 4;
}

/// Bits of [`Half::flags`].
pub mod half_flags {
    /// The peer is the agent: the direction may be joined with another program's socket.
    pub const MAY_JOIN: u32 = 1;
    /// The agent will relay this connection whatever comes: do not fill its shortcut first.
    pub const HOLD: u32 = 1 << 1;
    /// This socket accepted.
    pub const SERVER: u32 = 1 << 2;
    /// The agent's own socket towards a program that may be joined: it has a wider bound, since the program must get nothing by TCP.
    pub const ROOMY: u32 = 1 << 3;
}

/// What two ends of a connection know of each other, kept where they can both see it until the client has sent its first message.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    /// The client's socket cookie: its key in the sockhash.
    pub client_cookie: u64,
    /// The client's `struct sock` (see [`Join::to_sock`]).
    pub client_sock: u64,
    /// The server's cookie; 0 until it has been enrolled.
    pub server_cookie: u64,
    /// The server's `struct sock`.
    pub server_sock: u64,
    /// Service that the connection belongs to.
    pub service: u32,
    /// Bits of [`half_flags`] for the server's half.
    pub flags: u32,
}

/// What went by the shortcut on behalf of one service, per CPU: the kernel's own statistics of a socket (`TCP_INFO`) do not see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShortcutStats {
    /// Messages that went from socket to socket.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of them, messages that went past the agent, from program to program.
    pub joined_messages: u64,
    /// Their bytes.
    pub joined_bytes: u64,
    /// Directions that fell back to TCP.
    pub fallbacks: u64,
    /// Directions that began to go past the agent, or did so again.
    pub joins: u64,
}

impl ShortcutStats {
    /// Adds what another CPU counted.
    pub fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.joined_messages += other.joined_messages;
        self.joined_bytes += other.joined_bytes;
        self.fallbacks += other.fallbacks;
        self.joins += other.joins;
    }
}

const _: () = {
    assert!(size_of::<Join>() == 128);
    assert!(size_of::<Half>() == 144);
    assert!(size_of::<Meeting>() == 40);
    assert!(size_of::<ShortcutStats>() == 48);
    assert!(ENTRIES.is_multiple_of(WAYS));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cookie_has_places_inside_the_table() {
        for cookie in [1, 4_095, 4_096, 65_537, u64::MAX] {
            let first = first_place(cookie);
            assert!(first + WAYS <= ENTRIES && first.is_multiple_of(WAYS));
        }
        assert_ne!(first_place(1), first_place(2));
    }
}
