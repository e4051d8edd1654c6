//! What the process holds of the machine's memory: the allocator, and what is given back after work that is rare.
//!
//! # Why not the C library's allocator
//!
//! An idle connection holds two blocks that tokio aligns to a pair of cache lines (its task, and its place in epoll). glibc leaves 112 bytes
//! between two such blocks, 0.25 kB a connection; mimalloc keeps blocks of one size side by side without a header. At rest it holds 1 MB more.

/// The binary's allocator: `#[global_allocator]` stands in `main.rs`, so that what links this library for tests or fuzzing keeps its own.
///
/// Its feature `no_thp` keeps the kernel from backing a few used kilobytes of each thread with 2 MB.
pub const ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Gives back what this thread has freed and the allocator keeps for next time: reading the kernel's BTF and loading take 20 MB for a moment.
/// For starts and changes of the configuration, not for the path.
pub fn give_back() {
    // SAFETY: takes a word, and may be called at any time by any thread, also where another allocator is the program's.
    unsafe { libmimalloc_sys::mi_collect(true) };
}

/// Takes pages of the binary that will hardly be read again out of the resident set: 1.1 MB for the kernel half's object. They are the file's:
/// a later look at `bytes` reads them from there. The pages at both ends stay, because something else may be in them.
pub fn forget(bytes: &'static [u8]) {
    let page = rustix::param::page_size();
    let span = bytes.as_ptr_range();
    let start = span.start.addr().next_multiple_of(page);
    let end = span.end.addr() / page * page;
    if start < end {
        let start = span.start.with_addr(start).cast_mut().cast();
        // SAFETY: whole pages inside a borrowed constant, which the linker puts into a read-only private mapping of the binary: without them the
        // kernel reads the same bytes from the file.
        let _ = unsafe { rustix::mm::madvise(start, end - start.addr(), rustix::mm::Advice::LinuxDontNeed) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static CONSTANT: [u8; 64 * 1024] = {
        let mut bytes = [0; 64 * 1024];
        let mut at = 0;
        while at < bytes.len() {
            bytes[at] = (at % 251) as u8;
            at += 1;
        }
        bytes
    };

    #[test]
    fn what_is_forgotten_reads_the_same() {
        for bytes in [&CONSTANT[..], &CONSTANT[1..100], &CONSTANT[4095..8193], &[]] {
            forget(bytes);
        }
        assert!(CONSTANT.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    }

    #[test]
    fn giving_back_may_be_called_beside_another_allocator() {
        let kept = vec![7_u8; 1 << 20];
        give_back();
        assert!(kept.iter().all(|byte| *byte == 7));
    }
}
