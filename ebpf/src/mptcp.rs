//! A program that speaks MPTCP holds a socket that never dials: a subflow below it does, an ordinary TCP socket, and it is that which the
//! connect hook sees. What the subflow dialled is told to the socket above, where `getpeername` looks for it (trap T9).

use core::ptr;

use aya_ebpf::{helpers::generated::bpf_skc_to_mptcp_sock, programs::SockAddrContext};
use sockway_common::flow::Conn;

use crate::{maps::CONNS, socket};

/// Whether this kernel has MPTCP, set by the agent when it loads this: without, the verifier must not see the helper, whose type is unknown.
/// Its first value is nobody else's: the linker merges constants that are equal, and what the agent sets here would be set there.
#[unsafe(no_mangle)]
static HAS_MPTCP: u32 = 0x5357_0001;

/// Tells the socket above what was dialled, if there is one above.
#[inline(always)]
pub fn tell_owner(ctx: &SockAddrContext) {
    // SAFETY: a constant that the agent sets before the program is loaded.
    if unsafe { ptr::read_volatile(&raw const HAS_MPTCP) } == 0 {
        return;
    }
    let subflow = socket::of_addr(ctx.sock_addr);
    let Some(conn) = socket::stored(&CONNS, subflow) else { return };
    // SAFETY: the helper takes any socket, and gives null for one that is no subflow.
    let owner = unsafe { bpf_skc_to_mptcp_sock(subflow) };
    if owner.is_null() {
        return;
    }
    let Some(told) = socket::stored_or_zeroed(&CONNS, owner.cast()) else { return };
    // What the subflow holds is the subflow's to give back, and its flags are about itself.
    *told = Conn { held: 0, flags: 0, ..*conn };
}
