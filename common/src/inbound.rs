//! What the kernel half needs to steer connections that come in to the agent: which ports of which network namespace, and which sources
//! may not, or need not, go through it.

use crate::seal::{SEED, mix};

/// Key of the port table, a trie: bits of it that count are the namespace's 64 and as many of the port as a range shares.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    /// Cookie of the network namespace. Compared whole, so that its byte order does not matter.
    pub netns: u64,
    /// The port in network order: its high bits come first.
    pub port: u16,
}

/// Bits of [`PortKey::netns`], which every prefix has.
pub const NETNS_BITS: u32 = 64;
/// Bits of [`PortKey::port`].
pub const PORT_BITS: u32 = 16;

/// What is to become of connections to a range of ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The namespace again: see [`Port::sealed`].
    pub netns: u64,
    /// Whose sources are looked up: [`AccessKey::rule`].
    pub rule: u32,
    /// How many listeners of one family the agent has there: connections are spread over them.
    pub listeners: u32,
    /// First port, in host order.
    pub first: u16,
    /// Last port, in host order.
    pub last: u16,
    /// Bits of [`port_flags`].
    pub flags: u32,
    /// See [`Port::sealed`].
    pub seal: u32,
    /// Zero: fills the layout to a multiple of eight.
    pub zero: u32,
}

/// Bits of [`Port::flags`].
pub mod port_flags {
    /// All connections of one source go to one listener, so that one worker can count them by itself.
    pub const BY_SOURCE: u32 = 1;
    /// A source that no list names is refused.
    pub const LISTED_ONLY: u32 = 1 << 1;
}

impl Port {
    /// The entry with its seal. A lookup compares the key and then reads the value, whose memory may have become another entry's in between
    /// (see [`crate::service::Service::sealed`]).
    pub fn sealed(mut self) -> Self {
        self.seal = self.seal_for();
        self
    }

    /// Whether the entry is whole and speaks of this port.
    #[inline(always)]
    pub fn is_for(&self, netns: u64, port: u16) -> bool {
        self.netns == netns && self.first <= port && port <= self.last && self.seal == self.seal_for()
    }

    #[inline(always)]
    fn seal_for(&self) -> u32 {
        let seal = mix(mix(SEED, self.netns as u32), (self.netns >> 32) as u32);
        let seal = mix(mix(seal, self.rule), self.listeners);
        mix(mix(seal, (self.first as u32) << 16 | self.last as u32), self.flags)
    }
}

/// Key of the source table, a trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccessKey {
    /// [`Port::rule`], or [`EVERY_RULE`]; whole in every prefix.
    pub rule: u32,
    /// The source in network order, IPv4 mapped.
    pub ip: [u32; 4],
}

/// Bits of [`AccessKey::rule`], which every prefix has.
pub const RULE_BITS: u32 = 32;

/// Rule under which stand the sources that every rule passes: the addresses of the node itself.
pub const EVERY_RULE: u32 = 0;

/// What is to become of a source: the longest prefix decides. One word, read at once, that says which rule it belongs to.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceVerdict(pub u64);

/// Values of [`SourceVerdict`].
pub mod source_verdict {
    /// To the agent.
    pub const STEER: u32 = 1;
    /// To the program directly.
    pub const PASS: u32 = 2;
    /// To nobody: the client is refused.
    pub const DENY: u32 = 3;
}

impl SourceVerdict {
    /// A verdict of a rule, one of [`source_verdict`].
    pub const fn new(rule: u32, verdict: u32) -> Self {
        Self((rule as u64) << 32 | verdict as u64)
    }

    /// The verdict, if it is this rule's.
    #[inline(always)]
    pub const fn of(self, rule: u32) -> Option<u32> {
        if (self.0 >> 32) as u32 == rule { Some(self.0 as u32) } else { None }
    }
}

/// Key of the agent's listeners.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteerKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// From 0 to [`Port::listeners`].
    pub listener: u32,
}

const _: () = {
    assert!(size_of::<PortKey>() == 10);
    assert!(size_of::<Port>() == 32);
    assert!(size_of::<AccessKey>() == 20);
    assert!(size_of::<SourceVerdict>() == 8);
    assert!(size_of::<SteerKey>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_speaks_of_its_own_ports_and_namespace_only() {
        let port =
            Port { netns: 7, rule: 1, listeners: 2, first: 8000, last: 8099, flags: 0, seal: 0, zero: 0 }.sealed();
        assert!(port.is_for(7, 8000) && port.is_for(7, 8099));
        assert!(!port.is_for(7, 7999) && !port.is_for(7, 8100) && !port.is_for(8, 8000));
        assert!(!Port { rule: 2, ..port }.is_for(7, 8000), "half of another entry");
    }

    #[test]
    fn a_verdict_is_one_rule_s() {
        let source = SourceVerdict::new(3, source_verdict::DENY);
        assert_eq!((source.of(3), source.of(2)), (Some(source_verdict::DENY), None));
    }
}
