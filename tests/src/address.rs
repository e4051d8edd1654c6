//! Addresses that no other test uses, all of them on this host.
//!
//! A test process takes 127.A.B.0/24 by its pid; each test in it takes one address of those and counts ports. Two test processes
//! at once would have to be 60 000 pids apart to meet.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process,
    sync::atomic::{AtomicU16, AtomicU32, Ordering},
};

static BLOCKS: AtomicU32 = AtomicU32::new(1);
static PORTS_V6: AtomicU16 = AtomicU16::new(0);

/// One IPv4 address of this host, and ports on it.
#[derive(Debug)]
pub struct Block {
    ip: Ipv4Addr,
    ports: AtomicU16,
}

impl Block {
    /// The next block of this process.
    pub fn take() -> Self {
        let pid = process::id() % 60_000 + 1_024;
        let serial = BLOCKS.fetch_add(1, Ordering::Relaxed);
        assert!(serial < 255, "one test process has 254 blocks of addresses");
        let [_, _, high, low] = pid.to_be_bytes();
        let ip = Ipv4Addr::new(127, high, low, serial as u8);
        // Below the ephemeral range (32768 up), so that no client of this test is given the port of a later service.
        Self { ip, ports: AtomicU16::new(10_000) }
    }

    /// An address and port never given out before.
    pub fn next(&self) -> SocketAddr {
        self.with_port(self.ports.fetch_add(1, Ordering::Relaxed))
    }

    /// This block's address with a port of the caller's choice.
    pub fn with_port(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.ip), port)
    }

    /// An address on ::1. It has no room for blocks, so ports above the ephemeral range are counted through the process.
    pub fn next_v6(&self) -> SocketAddr {
        let spread = (process::id() % 40 * 100) as u16;
        let port = 61_000 + (spread + PORTS_V6.fetch_add(1, Ordering::Relaxed)) % 4_500;
        SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)
    }
}

/// `address` as a program with an IPv6 socket dials it: `::ffff:a.b.c.d`.
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), address.port()),
        IpAddr::V6(_) => address,
    }
}
