//! Since which version of the ABI a map's layout is what it is: what an agent of another version left pinned is used again where it is
//! still the same (trap T38).
//!
//! To change a map's layout, or what its bytes mean: raise [`crate::ABI_VERSION`] and say so in [`since`].

/// The version of the ABI that gave the map of this name the layout it has now.
pub fn since(map: &str) -> u32 {
    match map {
        #[cfg(feature = "next-layout")]
        "CONNS" => 5,
        "HEARTBEAT" | "LISTENER_TAGS" => 1,
        _ => 4,
    }
}

/// Maps that mean something only together: if one of them is made anew, so are the others.
pub const TOGETHER: &[&[&str]] = &[
    // Where the ends of a shortcut find each other.
    &["SYNS", "MEETINGS", "HALVES", "JOINS", "SHORTCUT"],
    // Whom the agent is handed.
    &["LISTENERS", "ORIGINALS"],
];

/// Maps whose values live with a socket: nobody can carry them over. Where one of them is made anew, the hooks that read the old one
/// stay until the last socket that has a value in it is gone.
pub const OF_SOCKETS: &[&str] = &["CONNS", "CONVERSATIONS", "HALVES"];
