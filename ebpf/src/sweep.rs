//! The agent runs these programs by itself (`BPF_PROG_TEST_RUN`, on no packet of the network): user space cannot remove an entry of the limits
//! only if nothing is taken, nor add to one that others change; a hook can.

use core::marker::PhantomData;

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::socket_filter, programs::SkBuffContext};
use sockway_common::limit::{LimitCarried, LimitKey, SETTLED_MAX, SWEEP_KEYS_MAX};

use crate::{
    limit,
    repeat::{Turns, repeat},
};

/// Removes the entries of the keys that the made-up packet carries behind its link header, those that are idle; how many.
#[socket_filter]
pub fn sweep_limits(ctx: SkBuffContext) -> i64 {
    // SAFETY: plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    each::<LimitKey, { SWEEP_KEYS_MAX as u64 }>(ctx, |key| limit::sweep(key, now))
}

/// Adds to the entries what the made-up packet carries behind its link header; for how many there was room.
#[socket_filter]
pub fn settle_limits(ctx: SkBuffContext) -> i64 {
    each::<LimitCarried, { SETTLED_MAX as u64 }>(ctx, limit::settle)
}

/// Does something with each thing that a packet carries, `MAX` at most; with how many it was done.
#[inline(always)]
fn each<T, const MAX: u64>(ctx: SkBuffContext, act: impl Fn(&T) -> bool) -> i64 {
    let mut each = Each { ctx, act, done: 0, thing: PhantomData };
    repeat::<_, MAX>(MAX, &mut each);
    each.done
}

struct Each<T, F> {
    ctx: SkBuffContext,
    act: F,
    done: i64,
    thing: PhantomData<T>,
}

impl<T, F: Fn(&T) -> bool> Turns for Each<T, F> {
    #[inline(always)]
    fn turn(&mut self, step: u64) -> bool {
        let Ok(thing) = self.ctx.load::<T>(step as usize * size_of::<T>()) else { return true };
        self.done += i64::from((self.act)(&thing));
        false
    }
}
