//! Whose sockets listen at an address: the cgroup in which they were made.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use sockway_common::flow::TCP;

use super::{LISTENING, MESSAGE, MESSAGE_ID_AT, Netlink, SOCKET_ID, SocketId, each, find, in_every_namespace};

/// `INET_DIAG_CGROUP_ID`.
const CGROUP_ID: u16 = 21;

/// The ids of the cgroups whose sockets listen at these addresses, in every network namespace in which a process lives or that has a name.
/// An address that is not on this host has none. Blocks, for milliseconds: not for a thread that serves.
///
/// # Errors
///
/// When the system gives no list of processes, or no thread.
pub fn listening_cgroups(wanted: &[SocketAddr]) -> io::Result<HashMap<SocketAddr, Vec<u64>>> {
    let mut found: HashMap<SocketAddr, Vec<u64>> = HashMap::new();
    in_every_namespace(|| {
        let netlink = Netlink::open()?;
        for (protocol, family) in each(&[TCP]) {
            netlink.list(family, protocol, LISTENING, None, |body| {
                let Some((local, cgroup)) = parse(body, family) else { return };
                for address in wanted.iter().filter(|address| takes(local, **address)) {
                    let cgroups = found.entry(*address).or_default();
                    if !cgroups.contains(&cgroup) {
                        cgroups.push(cgroup);
                    }
                }
            })?;
        }
        Ok(())
    })?;
    Ok(found)
}

/// Whether a socket that listens there is asked by who dials this, in the namespace of this thread.
fn takes(local: SocketAddr, dialled: SocketAddr) -> bool {
    let is_ours = || UdpSocket::bind((dialled.ip(), 0)).is_ok();
    let fits = local.ip().is_unspecified() && (local.is_ipv6() || dialled.is_ipv4());
    local.port() == dialled.port() && (local.ip() == dialled.ip() || fits && is_ours())
}

/// Where a socket listens, and its cgroup.
fn parse(body: &[u8], family: u8) -> Option<(SocketAddr, u64)> {
    let id: &SocketId = body.get(MESSAGE_ID_AT..MESSAGE_ID_AT + SOCKET_ID)?.first_chunk()?;
    let ip: IpAddr = if i32::from(family) == libc::AF_INET {
        IpAddr::from(*id[4..].first_chunk::<4>()?)
    } else {
        IpAddr::from(*id[4..].first_chunk::<16>()?).to_canonical()
    };
    let cgroup = find(body.get(MESSAGE..)?, CGROUP_ID)?.first_chunk()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes([id[0], id[1]])), u64::from_ne_bytes(*cgroup)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::kernel::cgroup;

    #[test]
    fn the_cgroup_of_who_listens_is_found_whether_he_named_his_address_or_not() {
        let own = cgroup::mount().and_then(|mount| cgroup::id(&cgroup::current(&mount).ok()?).ok());
        let Some(own) = own else { return eprintln!("skipped: no cgroup v2") };
        let exact = TcpListener::bind("127.0.0.1:0").expect("a port");
        let any = TcpListener::bind("0.0.0.0:0").expect("a port");
        let at = |listener: &TcpListener| {
            SocketAddr::from(([127, 0, 0, 1], listener.local_addr().expect("an address").port()))
        };
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], at(&any).port()));
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root visits namespaces");
        }
        let found = listening_cgroups(&[at(&exact), at(&any), elsewhere]).expect("root visits namespaces");
        assert_eq!(found.get(&at(&exact)), Some(&vec![own]));
        assert_eq!(found.get(&at(&any)), Some(&vec![own]));
        assert_eq!(found.get(&elsewhere), None);
    }
}
