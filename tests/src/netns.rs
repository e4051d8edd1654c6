//! Network namespaces of the tests, and wires between them. No namespace has a default route: nothing leaves this host.

use std::{
    fs::{self, File},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use nix::sched::{CloneFlags, setns};

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A named network namespace (`ip netns add`) with its loopback up; deleted when dropped.
#[derive(Debug)]
pub struct Netns {
    name: String,
    inode: u64,
}

impl Netns {
    /// Makes a namespace with a unique name.
    #[expect(clippy::new_without_default, reason = "it makes something in the kernel: not a default value")]
    pub fn new() -> Self {
        let name = format!("swt-{}-{}", process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let inode = fs::metadata(path_of(&name)).expect("the namespace's file").ino();
        let netns = Self { name, inode };
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    /// Its name, below `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its file, for `setns`.
    pub fn open(&self) -> File {
        File::open(path_of(&self.name)).expect("the namespace's file")
    }

    /// Runs `ip` on it.
    pub fn ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.name], arguments].concat());
    }

    /// Gives its loopback a further address, `fd00::1/128` for example.
    pub fn add_address(&self, address: &str) {
        self.ip(&["address", "add", address, "dev", "lo", "nodad"]);
    }

    /// Sets a kernel parameter in it, `net.ipv4.ip_forward` for example.
    pub fn sysctl(&self, name: &str, value: &str) {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        within(&self.open(), || fs::write(&file, value)).unwrap_or_else(|error| panic!("{name}={value}: {error}"));
    }

    /// Its inode, by which `/proc/<pid>/ns/net` names it.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// `ip netns del`, as a container runtime does when a pod goes. The kernel's namespace lives on while something holds it.
    pub fn delete(self) {}
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// A wire (veth pair) between two namespaces; it goes when either of them does.
#[derive(Clone, Copy, Debug)]
pub struct Veth {
    /// The address at the end given first.
    pub left: Ipv4Addr,
    /// The address at the end given second.
    pub right: Ipv4Addr,
    /// The IPv6 address at the end given first.
    pub left_v6: Ipv6Addr,
    /// The IPv6 address at the end given second.
    pub right_v6: Ipv6Addr,
}

impl Veth {
    /// Lays a wire, with a /30 of 10.64.0.0/10 and a /64 of fd64::/32 at its ends: each reaches the other and nothing else.
    pub fn between(left: &Netns, right: &Netns) -> Self {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let network = u32::from(Ipv4Addr::new(10, 64, 0, 0)) + (serial % 0x0008_0000) * 4;
        let network_v6 = |end| Ipv6Addr::new(0xfd64, 0, (serial >> 16) as u16, serial as u16, 0, 0, 0, end);
        let wire = Self {
            left: Ipv4Addr::from(network + 1),
            right: Ipv4Addr::from(network + 2),
            left_v6: network_v6(1),
            right_v6: network_v6(2),
        };
        let device = format!("wire{serial}");
        ip(&[
            "link",
            "add",
            &device,
            "netns",
            &left.name,
            "type",
            "veth",
            "peer",
            "name",
            &device,
            "netns",
            &right.name,
        ]);
        for (netns, address, address_v6) in [(left, wire.left, wire.left_v6), (right, wire.right, wire.right_v6)] {
            netns.ip(&["address", "add", &format!("{address}/30"), "dev", &device]);
            netns.ip(&["address", "add", &format!("{address_v6}/64"), "dev", &device, "nodad"]);
            netns.ip(&["link", "set", &device, "up"]);
        }
        wire
    }
}

/// Connects from within a namespace, on a thread that moves there; from the test's own without one.
pub fn connect(netns: Option<&File>, address: SocketAddr) -> io::Result<TcpStream> {
    let Some(netns) = netns else { return TcpStream::connect(address) };
    within(netns, || TcpStream::connect(address))
}

/// Does something on a thread that moves into a namespace.
fn within<T: Send>(netns: &File, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let moved = || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        act()
    };
    thread::scope(|scope| scope.spawn(moved).join().expect("a thread that cannot panic"))
}

fn path_of(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().expect("these tests need the program ip (iproute2)");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {complaint}", arguments.join(" "));
}
