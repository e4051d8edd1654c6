//! Loops that the verifier looks at once, where the kernel can run them for us (`bpf_loop`, Linux 5.17). Elsewhere it follows every turn:
//! of a loop of a hundred turns that is most of what loading a program takes.
//!
//! Before Linux 6.8 the verifier looks at a turn once, with what the loop begins with, and takes out each branch that is not taken then: a
//! turn must not ask whether something still is the constant that it was before the first.

use core::ptr;

use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop};

/// Whether this kernel has `bpf_loop`, set by the agent when it loads this: without, the verifier must not see the helper. Its first value
/// is nobody else's (see [`crate::mptcp`]).
#[unsafe(no_mangle)]
static HAS_LOOP: u32 = 0x5357_0004;

/// Most turns of a loop where the verifier follows each: it keeps 8 192 branches in mind, of all loops that follow one another in a program.
/// Only waits would have more, and end sooner there.
const FOLLOWED_MAX: u64 = 1_000;

/// What a loop does.
pub trait Turns {
    /// One turn, counted from 0. Whether that was the last; to be inlined.
    fn turn(&mut self, step: u64) -> bool;
}

/// Takes so many turns, `MAX` at most, or until one was the last. See [`FOLLOWED_MAX`].
#[inline(always)]
pub fn repeat<T: Turns, const MAX: u64>(times: u64, turns: &mut T) {
    // SAFETY: a constant that the agent sets before the program is loaded.
    if unsafe { ptr::read_volatile(&raw const HAS_LOOP) } == 0 {
        let most = if MAX < FOLLOWED_MAX { MAX } else { FOLLOWED_MAX };
        for step in 0..most {
            if step >= times || turns.turn(step) {
                break;
            }
        }
        return;
    }
    let turn: unsafe extern "C" fn(u64, *mut c_void) -> u64 = once::<T>;
    let times = if times < MAX { times } else { MAX };
    // SAFETY: the helper calls with what it is given here, which outlives it.
    unsafe { bpf_loop(times as u32, turn as *mut c_void, ptr::from_mut(turns).cast(), 0) };
}

/// What the kernel calls for each turn: 1 ends the loop.
unsafe extern "C" fn once<T: Turns>(step: u64, turns: *mut c_void) -> u64 {
    // SAFETY: what `repeat` lent.
    u64::from(unsafe { &mut *turns.cast::<T>() }.turn(step))
}
