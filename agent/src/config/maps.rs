//! How many entries have room in the kernel half's tables.

/// What the entries of some tables are of. One key sizes them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Room {
    /// Services, those that leave among them.
    Services,
    /// Endpoints, of each service; those that leave among them.
    Endpoints,
    /// Chunks of ten slots, from which endpoints are chosen: for a while, a service that changes has them twice.
    Slots,
    /// Endpoints that programs of this host have dialled.
    DialledEndpoints,
    /// Sources (namespaces, cgroups or users) of each service with limits or affinity.
    Sources,
    /// Connections on their way to the agent that it has not accepted yet.
    Accepting,
    /// UDP sockets that are connected to an endpoint.
    UdpSockets,
    /// Sockets that are enrolled for the shortcut.
    ShortcutSockets,
    /// Network namespaces.
    Namespaces,
}

impl Room {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Services,
        Self::Endpoints,
        Self::Slots,
        Self::DialledEndpoints,
        Self::Sources,
        Self::Accepting,
        Self::UdpSockets,
        Self::ShortcutSockets,
        Self::Namespaces,
    ];
    /// Most entries of one table: at a hundred bytes each, more than a gigabyte that no program of the host could use.
    pub const MOST: u32 = 1 << 24;

    /// Its key below `maps`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Endpoints => "endpoints",
            Self::Slots => "slots",
            Self::DialledEndpoints => "dialled_endpoints",
            Self::Sources => "sources",
            Self::Accepting => "accepting",
            Self::UdpSockets => "udp_sockets",
            Self::ShortcutSockets => "shortcut_sockets",
            Self::Namespaces => "namespaces",
        }
    }
}

/// What the file says of the tables' sizes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maps {
    said: [Option<u32>; Room::ALL.len()],
}

impl Maps {
    /// The entries that are to have room; `None`: as many as the services need, and then some.
    pub fn said(&self, room: Room) -> Option<u32> {
        self.said[room as usize]
    }

    /// The same with another size.
    #[must_use]
    pub fn with(mut self, room: Room, entries: Option<u32>) -> Self {
        self.said[room as usize] = entries;
        self
    }
}
