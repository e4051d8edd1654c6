//! Who watches flows, and what the hooks tell about one that ended.

use crate::flow::{Address, Conn};

/// What a watcher wants to see: one entry, written by it and renewed while it lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Hooks report until then, in nanoseconds of `CLOCK_MONOTONIC`: a watcher that is killed ends its watch by itself. 0: nobody watches.
    pub until_ns: u64,
    /// Flows that one CPU reports in [`SLICE_NS`] at most.
    pub flows_max: u32,
    /// Process of the watcher.
    pub watcher: u32,
    /// Only flows of this service; 0 for all (ids begin at 1).
    pub service: u32,
    /// Only flows of this process; 0 for all.
    pub pid: u32,
    /// Only flows that were sent to this address; port 0 for all.
    pub endpoint: Address,
    /// The slice in which the watch began, see [`slice`]: whoever dialled later was noted, or is not to be reported.
    pub since: u32,
}

impl Watch {
    /// Whether this watcher wants to see a flow of this process to this endpoint of this service. An endpoint is named without its protocol.
    #[inline(always)]
    pub fn wants(&self, service: u32, pid: u32, endpoint: &Address) -> bool {
        (self.service == 0 || self.service == service)
            && (self.pid == 0 || self.pid == pid)
            && (self.endpoint.port == 0 || self.endpoint.port == endpoint.port && self.endpoint.ip == endpoint.ip)
    }

    /// Whether a flow that was dialled at this time may have been dialled before there was anybody to note it for.
    #[inline(always)]
    pub fn may_be_later_than(&self, dialled_ns: u64) -> bool {
        slice(dialled_ns) as u32 <= self.since
    }
}

/// The slice of time that [`Watch::flows_max`] is for, in nanoseconds: short enough that a watcher sees something of every moment, and a
/// power of two, which hooks divide by for nothing.
pub const SLICE_NS: u64 = 1 << 27;

/// The slice that a time is in.
#[inline(always)]
pub const fn slice(now_ns: u64) -> u64 {
    now_ns / SLICE_NS
}

/// What one CPU has noted and reported in the slice that runs.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Reported {
    /// Which one, see [`slice`].
    pub slice: u64,
    /// Flows reported in it.
    pub flows: u32,
    /// Flows that began in it and are to be reported when they end.
    pub noted: u32,
}

/// One flow, when it has ended.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// What the socket knew: who dialled what, and where it was sent.
    pub conn: Conn,
    /// When it ended, in nanoseconds of `CLOCK_MONOTONIC`.
    pub ended_ns: u64,
    /// Bytes received through TCP, by `tcp_sock.bytes_received`: a FIN counts as one, see [`flow_flags::FIN_RECEIVED`].
    pub received_bytes: u64,
    /// Bytes sent through TCP that the peer has acknowledged, by `tcp_sock.bytes_acked`: SYN and FIN count as one each.
    pub sent_bytes: u64,
    /// Bytes sent from socket to socket, which TCP does not see. What came in that way only the socket that sent it has counted.
    pub shortcut_sent_bytes: u64,
    /// This end's address; all zero when the socket never had one.
    pub local: Address,
    /// One of [`cause`].
    pub cause: u32,
    /// State of TCP that it ended from (`BPF_TCP_…`), for [`cause::CLOSED`]; one of [`crate::udp::conversation_state`] for
    /// [`cause::CONVERSED`].
    pub state: u32,
    /// `sock.sk_err`, or [`ERROR_UNKNOWN`].
    pub error: u32,
    /// Smoothed round-trip time when it ended, in µs; 0 when none was measured.
    pub rtt_us: u32,
    /// Segments sent again.
    pub retransmits: u32,
    /// Bits of [`flow_flags`].
    pub flags: u32,
    /// Datagrams that the program has sent, for [`cause::CONVERSED`].
    pub datagrams: u32,
}

/// Values of [`Flow::cause`].
pub mod cause {
    /// A TCP socket was closed.
    pub const CLOSED: u32 = 0;
    /// `connect()` did not dial what it could have: see the verdict.
    pub const NOT_DIALLED: u32 = 1;
    /// A UDP socket that was connected to an endpoint was released.
    pub const RELEASED: u32 = 2;
    /// A UDP socket was released that had sent to a service without `connect()`.
    pub const CONVERSED: u32 = 3;
    /// A UDP socket that was connected to an endpoint dials anew.
    pub const REPLACED: u32 = 4;
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// The peer's FIN has come in, and counts as a received byte.
    pub const FIN_RECEIVED: u32 = 1;
    /// Some of its bytes went from socket to socket.
    pub const SHORTCUT: u32 = 1 << 1;
    /// The agent has stepped out of the way: the programs' sockets were joined.
    pub const JOINED: u32 = 1 << 2;
}

/// Value of [`Flow::error`] where the kernel's BTF does not say where to read it.
pub const ERROR_UNKNOWN: u32 = u32::MAX;

/// Longest name of a service: a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// A service's name, by its id, for those who read the tables when no agent is there to ask.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// How many of `bytes` are the name.
    pub length: u8,
    /// ASCII.
    pub bytes: [u8; NAME_BYTES_MAX],
}

impl Name {
    /// The name as the table holds it; what is longer than any name may be is cut.
    pub fn new(text: &str) -> Self {
        let mut name = Self { length: text.len().min(NAME_BYTES_MAX) as u8, bytes: [0; NAME_BYTES_MAX] };
        name.bytes.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        name
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let length = (self.length as usize).min(NAME_BYTES_MAX);
        core::str::from_utf8(&self.bytes[..length]).unwrap_or_default()
    }
}

const _: () = {
    assert!(size_of::<Watch>() == 48);
    assert!(size_of::<Reported>() == 16);
    assert!(size_of::<Flow>() == 80 + size_of::<crate::flow::Conn>());
    assert!(size_of::<Name>() == 64);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_goes_there_and_back() {
        for text in ["a", "shop/front", &"n".repeat(NAME_BYTES_MAX)] {
            assert_eq!(Name::new(text).as_str(), text);
        }
        assert_eq!(Name::new(&"n".repeat(64)).as_str().len(), NAME_BYTES_MAX);
    }
}
