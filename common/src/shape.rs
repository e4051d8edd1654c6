//! Since which version of the ABI a map's layout is what it is: what an agent of another version left pinned is used again where it is
//! still the same (trap T38).
//!
//! To change a map's layout, or what its bytes mean: raise [`crate::ABI_VERSION`] and say so in [`since`].

/// The version of the ABI that gave the map of this name the layout it has now.
pub fn since(map: &str) -> u32 {
    match map {
        #[cfg(feature = "next-layout")]
        "CONNS" => crate::ABI_VERSION,
        "HEARTBEAT" | "LISTENER_TAGS" => 1,
        "ORIGINALS" | "DIALLED" => 5,
        _ => 4,
    }
}

/// Maps that mean something only together: where one of the first is made anew, so are all of the second.
pub const TOGETHER: &[(&[&str], &[&str])] = &[
    // Where the ends of a shortcut find each other.
    (SHORTCUT, SHORTCUT),
    // Whom the agent is handed.
    (&["LISTENERS", "ORIGINALS"], &["LISTENERS", "ORIGINALS"]),
    // A service's id is the same in all of them; sockets keep it, too. What sockets of before hold, their own hooks give back to the
    // tables of before: limits count anew meanwhile.
    (BY_ID, BY_ID),
    (BY_ID, &["CONNS", "CONVERSATIONS"]),
];

const SHORTCUT: &[&str] = &["SYNS", "MEETINGS", "HALVES", "SHORTCUT"];
const BY_ID: &[&str] = &[
    "SERVICES",
    "SLOTS",
    "ENDPOINTS",
    "ENDPOINT_LIVE",
    "ENDPOINT_STATS",
    "LATENCIES",
    "LIMIT_POLICIES",
    "LIMITS",
    "EJECT_POLICIES",
    "AFFINITY",
    "CURSORS",
    "TURNS",
    "SHORTCUT_STATS",
    "NAMES",
];

/// By which hooks find an endpoint, one leading to the next: where one of them is made in another size, the others are copied, too. The hooks
/// before go on with what they have until they are replaced, and of what a new agent writes they find all or nothing.
pub const DIALLED: &[&str] = &["SERVICES", "SLOTS", "ENDPOINTS"];

/// Maps whose values live with a socket: nobody can carry them over. Where one of them is made anew, the hooks that read the old one
/// stay until the last socket that has a value in it is gone.
pub const OF_SOCKETS: &[&str] = &["ACCEPTED", "CONNS", "CONVERSATIONS", "HALVES"];
