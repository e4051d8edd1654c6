//! The node's own addresses, from which the kubelet and the node's programs come.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

/// Every address of every interface in the agent's network namespace.
pub(super) fn addresses() -> Vec<IpAddr> {
    let mut list: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: the call fills the pointer, or fails.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut next = list;
    while !next.is_null() {
        // SAFETY: an entry of the list that was just given, and is freed below.
        let entry = unsafe { &*next };
        found.extend(address(entry.ifa_addr));
        next = entry.ifa_next;
    }
    // SAFETY: the list that was given, once.
    unsafe { libc::freeifaddrs(list) };
    found.sort_unstable();
    found.dedup();
    found
}

fn address(address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: null, or an address whose family says how long it is.
    unsafe {
        match i32::from(address.as_ref()?.sa_family) {
            libc::AF_INET => {
                let address = &*address.cast::<libc::sockaddr_in>();
                Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into())
            }
            libc::AF_INET6 => {
                let address = &*address.cast::<libc::sockaddr_in6>();
                Some(Ipv6Addr::from(address.sin6_addr.s6_addr).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_among_them() {
        assert!(addresses().contains(&Ipv4Addr::LOCALHOST.into()));
    }
}
