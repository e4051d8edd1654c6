//! What the workers ask about single connections: what was dialled, and whether an upstream socket may take the shortcut. One system
//! call each, no lock.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use sockway_common::flow::{Address, Conn, Original, conn_flags};

use super::{
    joins::{Join, Joins, Verdict},
    sys,
};
use crate::{
    cluster::Service,
    config::{Protocol, Shortcut},
};

/// What a captured connection dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalDst {
    /// The address that the program dialled.
    pub address: SocketAddr,
    /// The service's id in the snapshot.
    pub service: u32,
    /// Who dialled, as the service's hashes know it.
    pub source: u64,
}

/// What the workers ask the kernel half about single connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flows(Arc<Source>);

#[derive(Debug)]
enum Source {
    /// No kernel half: every connection is taken to have dialled this.
    Off(OriginalDst),
    Kernel {
        dialled: OwnedFd,
        conns: OwnedFd,
        joins: Arc<Joins>,
        shortcut: Arc<AtomicBool>,
        auto: bool,
        mount: PathBuf,
    },
}

impl Flows {
    /// No kernel half: every accepted connection is taken to have dialled `original`.
    pub fn off(original: OriginalDst) -> Self {
        Self(Arc::new(Source::Off(original)))
    }

    /// Of the kernel half's tables. `shortcut` is false while no rule allows it anywhere; `auto` is the self-test's verdict; `mount` is
    /// that of cgroup v2.
    pub(super) fn of_kernel(
        mount: PathBuf,
        dialled: OwnedFd,
        conns: OwnedFd,
        joins: Joins,
        shortcut: Arc<AtomicBool>,
        auto: bool,
    ) -> Self {
        Self(Arc::new(Source::Kernel { dialled, conns, joins: Arc::new(joins), shortcut, auto, mount }))
    }

    /// Where cgroup v2 is mounted.
    pub fn cgroup_mount(&self) -> Option<&Path> {
        match &*self.0 {
            Source::Off(_) => None,
            Source::Kernel { mount, .. } => Some(mount),
        }
    }

    /// What the client of a connection that the agent accepted had dialled. `None` for a connection that no hook sent here.
    pub fn original(&self, accepted: BorrowedFd<'_>) -> Option<OriginalDst> {
        match &*self.0 {
            Source::Off(original) => Some(*original),
            Source::Kernel { dialled, .. } => {
                let found: Option<Original> =
                    sys::lookup(dialled.as_fd(), &accepted.as_raw_fd()).unwrap_or_else(|error| {
                        tracing::warn!(%error, "an original destination could not be read");
                        None
                    });
                found.map(|found| OriginalDst {
                    address: socket_addr(&found.address),
                    service: found.service,
                    source: found.source,
                })
            }
        }
    }

    /// Lets a socket of the agent, not yet connected, take the shortcut on behalf of `service`, if its policy says so.
    pub fn allow_shortcut(&self, socket: BorrowedFd<'_>, service: &Service) {
        let Source::Kernel { conns, .. } = &*self.0 else { return };
        if !self.takes_shortcut(service) {
            return;
        }
        let hold = if is_opaque(service) { conn_flags::HOLD } else { 0 };
        let flags = conn_flags::SHORTCUT | conn_flags::AGENT | hold;
        let conn = Conn { service: service.id, flags, ..Conn::EMPTY };
        // Without it the connection goes through TCP, which is always right.
        if let Err(error) = sys::store(conns.as_fd(), socket, &conn) {
            tracing::debug!(%error, "an upstream socket was not marked for the shortcut");
        }
    }

    /// Joins the programs at the other ends of two connections of `service`, about which the agent has nothing more to decide.
    pub fn join(
        &self,
        first: BorrowedFd<'_>,
        second: BorrowedFd<'_>,
        service: &Service,
    ) -> Option<(Verdict, Option<Join>)> {
        let Source::Kernel { joins, .. } = &*self.0 else { return None };
        if !self.takes_shortcut(service) {
            return None;
        }
        let joined = joins.join(first, second);
        joined.inspect_err(|error| tracing::warn!(%error, "two connections were not joined")).ok()
    }

    /// Lets the program that a socket of the agent, not yet connected, dials hear `client` as its peer.
    pub fn introduce(&self, socket: BorrowedFd<'_>, service: &Service, client: SocketAddr) {
        let Source::Kernel { conns, .. } = &*self.0 else { return };
        let flags = conn_flags::AGENT | conn_flags::INTRODUCES;
        let conn = Conn { original: address(client), service: service.id, flags, ..Conn::EMPTY };
        if let Err(error) = sys::store(conns.as_fd(), socket, &conn) {
            tracing::debug!(%error, "a client was not introduced: the program hears the agent's address");
        }
    }

    fn takes_shortcut(&self, service: &Service) -> bool {
        match &*self.0 {
            Source::Off(_) => false,
            Source::Kernel { shortcut, auto, .. } => {
                shortcut.load(Ordering::Relaxed) && allows(service.config.shortcut, *auto)
            }
        }
    }
}

/// Whether the agent only relays this service's connections, as they are.
pub fn is_opaque(service: &Service) -> bool {
    service.config.protocol == Protocol::Tcp && !service.config.tls.is_spoken()
}

/// What a policy means, given the self-test's verdict.
pub fn allows(policy: Shortcut, self_test_passed: bool) -> bool {
    match policy {
        Shortcut::On => true,
        Shortcut::Off => false,
        Shortcut::Auto => self_test_passed,
    }
}

/// The shape that the kernel half keeps addresses in.
pub fn address(address: SocketAddr) -> Address {
    let ip = match address.ip() {
        IpAddr::V4(ip) => return Address::v4(u32::from_ne_bytes(ip.octets()), address.port().to_be()),
        IpAddr::V6(ip) => ip.octets(),
    };
    let word = |at: usize| u32::from_ne_bytes([ip[at], ip[at + 1], ip[at + 2], ip[at + 3]]);
    Address::v6([word(0), word(4), word(8), word(12)], address.port().to_be())
}

/// Back from the kernel half's shape; a mapped address becomes IPv4.
pub fn socket_addr(address: &Address) -> SocketAddr {
    let mut octets = [0; 16];
    for (word, bytes) in address.ip.iter().zip(octets.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    SocketAddr::new(Ipv6Addr::from(octets).to_canonical(), u16::from_be(address.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_go_there_and_back() {
        for text in ["127.0.0.1:80", "10.96.0.10:65535", "[::1]:8080", "[2001:db8::7]:1"] {
            let there: SocketAddr = text.parse().unwrap();
            assert_eq!(socket_addr(&address(there)), there);
        }
    }

    #[test]
    fn an_ipv4_address_and_its_mapped_form_are_one_key() {
        let plain: SocketAddr = "10.1.2.3:80".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(address(plain), address(mapped));
        assert!(address(plain).is_v4());
    }

    #[test]
    fn auto_follows_the_self_test() {
        for (policy, passed, allowed) in [
            (Shortcut::Auto, true, true),
            (Shortcut::Auto, false, false),
            (Shortcut::On, false, true),
            (Shortcut::Off, true, false),
        ] {
            assert_eq!(allows(policy, passed), allowed);
        }
    }
}
