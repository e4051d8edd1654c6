//! Whether what was dialled can be told to the agent.

use sockway_common::flow::{Address, Original, OriginalKey};

use crate::maps::ORIGINALS;

/// No network namespace has this cookie, and no client this address.
static NOBODY: OriginalKey =
    OriginalKey { netns: 0, client: Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 }, zero: 0 };
static NOTHING: Original = Original {
    address: Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 },
    service: 0,
    cookie: 0,
    published_ns: 0,
    source: 0,
};

/// Whether one more entry has room now. Without, the agent could not learn what was dialled, and nobody could help the connection any more
/// when its SYN leaves and the entry is made: to be asked while it can still be balanced here. All CPUs share the key: one that asks
/// while another does finds the entry there, which needs no room.
#[inline(always)]
pub fn has_room() -> bool {
    if ORIGINALS.insert(&NOBODY, &NOTHING, 0).is_err() {
        return false;
    }
    let _ = ORIGINALS.remove(&NOBODY);
    true
}
