//! Atomic operations with a result: the machine has them (Linux 5.12), Rust's atomics do not offer them on this target.

use core::{
    arch::asm,
    ptr::{self, NonNull},
};

use crate::repeat::{Turns, repeat};

/// Tries to change a word that others change: each failure is another CPU's success, which then is busy connecting for microseconds.
pub const TRIES_MAX: u64 = 16;

/// Adds `n`; what it was before.
///
/// # Safety
///
/// `word` points to eight aligned bytes of a map value that the verifier lets this program write.
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, n: u64) -> u64 {
    let mut value = n;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// Keeps only the bits of `mask`; what it was before.
///
/// # Safety
///
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn fetch_and(word: *mut u64, mask: u64) -> u64 {
    let mut value = mask;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "{value} = atomic_fetch_and((u64 *)({word} + 0), {value})",
            word = in(reg) word,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// Puts `new` where `old` is; what was there, which is `old` if it was done.
///
/// # Safety
///
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    let mut value = old;
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inout("r0") value,
            options(nostack),
        );
    }
    value
}

/// Puts into a word what `next` makes of what is in it, however many CPUs do so at once; whether it was done: `next` may not want to.
///
/// # Safety
///
/// As [`fetch_add`].
#[inline(always)]
pub unsafe fn update(word: *mut u64, next: impl Fn(u64) -> Option<u64>) -> bool {
    let mut update = Update { word: NonNull::new(word), next };
    repeat::<_, TRIES_MAX>(TRIES_MAX, &mut update);
    update.word.is_none()
}

/// A change under way. Small: a function that calls for two has both on its stack, of which Linux 6.1 leaves it little.
struct Update<F> {
    /// None when it is done.
    word: Option<NonNull<u64>>,
    next: F,
}

impl<F: Fn(u64) -> Option<u64>> Turns for Update<F> {
    #[inline(always)]
    fn turn(&mut self, _: u64) -> bool {
        let Some(word) = self.word else { return true };
        // SAFETY: what the caller of `update` promised.
        let before = unsafe { ptr::read_volatile(word.as_ptr()) };
        let Some(next) = (self.next)(before) else { return true };
        // SAFETY: as above.
        let is_done = unsafe { compare_exchange(word.as_ptr(), before, next) } == before;
        if is_done {
            self.word = None;
        }
        is_done
    }
}
