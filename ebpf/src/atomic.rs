//! Atomic operations with a result: the machine has them (Linux 5.12), Rust's atomics do not offer them on this target.

use core::arch::asm;

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
