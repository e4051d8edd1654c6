//! What was dialled, told to the agent: the client's end publishes it before its SYN leaves, and when the agent's end is established it
//! becomes that socket's own. Between the two the client's port cannot be another connection's. Afterwards it can: a client that closes
//! before the agent accepts may leave it to the next at once (when the kernel has no room for its TIME_WAIT state).

use aya_ebpf::{helpers::generated::bpf_ktime_get_ns, programs::SockOpsContext};
use aya_log_ebpf::warn;
use sockway_common::{
    counter::Counter,
    flow::{Address, Conn, Original, OriginalKey},
};

use crate::{
    connect::{LOOPBACK_V4, LOOPBACK_V6},
    count,
    maps::{DIALLED, ORIGINALS},
    socket,
};

/// No network namespace has this cookie, and no client this address.
static NOBODY: OriginalKey =
    OriginalKey { netns: 0, client: Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 }, listener: 0 };
static NOTHING: Original =
    Original { address: Address { ip: [0; 4], port: 0, protocol: 0, zero: 0 }, service: 0, published_ns: 0, source: 0 };

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

/// The SYN to the agent is about to leave.
#[inline(always)]
pub fn publish(ctx: &SockOpsContext, conn: &Conn) {
    let listener = u32::from(socket::remote(ctx).port);
    let key = OriginalKey { netns: conn.netns, client: socket::local(ctx), listener };
    let original = Original {
        address: conn.original,
        service: conn.service,
        // SAFETY: plain helper without arguments.
        published_ns: unsafe { bpf_ktime_get_ns() },
        source: conn.source,
    };
    if ORIGINALS.insert(&key, &original, 0).is_ok() {
        count::one(Counter::OriginalPublished);
    } else {
        count::one(Counter::OriginalFull);
        warn!(ctx, "no room to publish an original destination: the agent will close this connection");
    }
}

/// A connection that was dialled on this host is established at its accepting end, and nobody has accepted it yet.
#[inline(always)]
pub fn take(ctx: &SockOpsContext) {
    let here = socket::local(ctx);
    if here.ip != Address::v4(LOOPBACK_V4, 0).ip && here.ip != [0, 0, 0, LOOPBACK_V6] {
        return;
    }
    let key = OriginalKey { netns: socket::netns(ctx), client: socket::remote(ctx), listener: u32::from(here.port) };
    // SAFETY: copied out at once. Nobody writes or removes the entry meanwhile: its client is established, with this very end.
    let Some(mut original) = (unsafe { ORIGINALS.get(&key) }).copied() else { return };
    let _ = ORIGINALS.remove(&key);
    if socket::store(&DIALLED, socket::of_ops(ctx.ops), &mut original).is_none() {
        count::one(Counter::OriginalLost);
    }
}
