//! What happens on one connection: everything is drawn from the run's seed and its number, and nothing from anywhere else.

use std::net::SocketAddr;

use super::stream::{Stream, mix};

/// Largest amount that goes one way.
const BYTES_MAX: f64 = 8.0 * 1024.0 * 1024.0;
/// Largest single read or write.
const PIECE_MAX: f64 = 256.0 * 1024.0;
/// Most that goes to a reader that splices. More than waits in a receive queue may fall back to TCP, and splice would then take the
/// bytes that came by TCP before the redirected ones (trap T2, stated in `shortcut.rs`): no program can defend itself against that.
const SPLICED_MAX: u64 = 65_536;
/// A direction takes at most about this many reads or writes: a megabyte byte by byte would only heat the room.
const PIECES_MAX: u64 = 4_000;

/// Either end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It dialled.
    Client,
    /// It accepted.
    Server,
}

/// How bytes are put into a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Writer {
    /// `send`.
    Plain,
    /// `writev` of three pieces.
    Vectored,
    /// `sendfile` from a file in memory.
    Sendfile,
    /// `splice` from a pipe.
    Splice,
}

/// How bytes are taken out of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reader {
    /// `recv`.
    Plain,
    /// `recv` with `MSG_PEEK`, then without.
    Peek,
    /// `recv` with `MSG_WAITALL`.
    WaitAll,
    /// `splice` into a pipe.
    Splice,
}

/// How a side waits when the socket is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Waiter {
    /// The call itself blocks.
    Blocking,
    /// `poll`.
    Poll,
    /// epoll, level triggered.
    Level,
    /// epoll, edge triggered.
    Edge,
}

/// How one side does its part.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How it writes.
    pub writer: Writer,
    /// How it reads.
    pub reader: Reader,
    /// How it waits.
    pub waiter: Waiter,
    /// Largest single write.
    pub write_max: usize,
    /// Largest single read.
    pub read_max: usize,
    /// How long it waits before its first read: a slow reader.
    pub late_ms: u64,
    /// Whether it pauses now and then between reads.
    pub lazy: bool,
}

/// How the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both write at once; each half-closes when it is done and reads to the end.
    Both,
    /// This side writes and half-closes; the other reads to the end, then writes.
    First(Side),
    /// The side that leads writes and closes at once; the other has nothing to say.
    WriteAndClose,
    /// This side writes some of its bytes, then resets the connection (`SO_LINGER` 0).
    Reset(Side),
}

/// One connection.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Which transfer this is.
    pub number: u64,
    /// What everything is drawn from.
    pub seed: u64,
    /// Who sends the number.
    pub leader: Side,
    /// How it ends.
    pub end: End,
    /// Bytes from client to server.
    pub up: u64,
    /// Bytes from server to client.
    pub down: u64,
    /// How the client does it.
    pub client: Manner,
    /// How the server does it.
    pub server: Manner,
}

impl Plan {
    /// The plan of a transfer in the run of this seed.
    pub fn of(run: u64, number: u64) -> Self {
        let seed = mix(run.wrapping_add(mix(number)));
        let leader = leader(run, number);
        let mut dice = Dice::of(seed);
        let (up, down) = (dice.amount(), dice.amount());
        let end = dice.end(leader);
        let (up, down) = match (end, leader) {
            (End::WriteAndClose, Side::Client) => (up, 0),
            (End::WriteAndClose, Side::Server) => (0, down),
            _ => (up, down),
        };
        let (client, server) = (dice.manner(up, down), dice.manner(down, up));
        let capped = |bytes: u64, reader| if reader == Reader::Splice { bytes.min(SPLICED_MAX) } else { bytes };
        let (up, down) = (capped(up, server.reader), capped(down, client.reader));
        Self { number, seed, leader, end, up, down, client, server }
    }

    /// How a side does its part.
    pub fn manner(&self, side: Side) -> &Manner {
        if side == Side::Client { &self.client } else { &self.server }
    }

    /// How many bytes a side sends. Of those, a side that resets sends half.
    pub fn sends(&self, side: Side) -> u64 {
        if side == Side::Client { self.up } else { self.down }
    }

    /// The bytes that a side sends.
    pub fn stream(&self, side: Side) -> Stream {
        Stream::new(mix(self.seed ^ side as u64))
    }
}

/// Who leads a transfer in the run of this seed.
pub fn leader(run: u64, number: u64) -> Side {
    if Dice::of(mix(run ^ mix(number))).below(2) == 0 { Side::Client } else { Side::Server }
}

impl Side {
    /// Reads `client@127.0.0.1:80`: who leads the connections to an address.
    pub fn and_address(text: &str) -> Result<(Self, SocketAddr), String> {
        let (side, address) = text.split_once('@').ok_or_else(|| format!("{text} is not LEADER@ADDRESS"))?;
        let side = if side == "server" { Self::Server } else { Self::Client };
        address.parse().map(|address| (side, address)).map_err(|error| format!("{text}: {error}"))
    }

    /// The other one.
    pub fn other(self) -> Self {
        if self == Self::Client { Self::Server } else { Self::Client }
    }
}

/// Chance, drawn from a seed.
#[derive(Debug)]
pub struct Dice {
    state: u64,
    rolls: u64,
}

impl Dice {
    /// Chance that belongs to a seed.
    pub fn of(seed: u64) -> Self {
        Self { state: seed, rolls: 0 }
    }

    /// A number below `sides`.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.rolls += 1;
        mix(self.state ^ mix(self.rolls)) % sides
    }

    /// A number from 1 to `max` whose order of magnitude is as likely as any other.
    fn magnitude(&mut self, max: f64) -> u64 {
        let exponent = self.below(1_000_000) as f64 / 1_000_000.0;
        (max.powf(exponent) as u64).max(1)
    }

    fn amount(&mut self) -> u64 {
        // Most connections are short, so that there are thousands of them; one in six may be anything up to the maximum.
        let max = if self.below(6) == 0 { BYTES_MAX } else { 65_536.0 };
        self.magnitude(max)
    }

    fn end(&mut self, leader: Side) -> End {
        match self.below(12) {
            0..=4 => End::Both,
            5..=6 => End::First(Side::Client),
            7..=8 => End::First(Side::Server),
            9..=10 => End::WriteAndClose,
            // Not the side that leads: a reset with the first bytes is a refused connection to whoever dials, and an endpoint that
            // refuses is probed, which would look like a client that says nothing.
            _ => End::Reset(leader.other()),
        }
    }

    fn manner(&mut self, sends: u64, receives: u64) -> Manner {
        let reader =
            [Reader::Plain, Reader::Plain, Reader::Peek, Reader::WaitAll, Reader::Splice][self.below(5) as usize];
        // A blocking splice would sleep on redirected bytes for ever (trap T2): who splices does it on a non-blocking socket.
        let waiters = [Waiter::Blocking, Waiter::Poll, Waiter::Level, Waiter::Edge];
        let waiters = if reader == Reader::Splice { &waiters[1..] } else { &waiters[..] };
        let piece = |dice: &mut Self, whole: u64| dice.magnitude(PIECE_MAX).max(whole / PIECES_MAX) as usize;
        Manner {
            writer: [Writer::Plain, Writer::Plain, Writer::Vectored, Writer::Sendfile, Writer::Splice]
                [self.below(5) as usize],
            reader: [Reader::Plain, Reader::Plain, Reader::Peek, Reader::WaitAll, Reader::Splice]
                [self.below(5) as usize],
            waiter: waiters[self.below(waiters.len() as u64) as usize],
            write_max: piece(self, sends),
            read_max: piece(self, receives),
            late_ms: if self.below(12) == 0 { self.below(250) } else { 0 },
            lazy: self.below(10) == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_plans_and_another_gives_others() {
        let told = |run| (0..100).map(|number| format!("{:?}", Plan::of(run, number))).collect::<Vec<_>>();
        assert_eq!(told(1), told(1));
        assert_ne!(told(1), told(2));
    }

    #[test]
    fn either_side_leads_about_half_of_the_transfers() {
        let led = (0..10_000).filter(|number| leader(3, *number) == Side::Server).count();
        assert!((4_700..5_300).contains(&led), "{led} of 10000");
    }
}
