//! What connections take of the limits, carried over to a table of another size. While hooks are replaced one by one, those before count in
//! the table before and those of this agent in the new one: what was copied at first, and what changed since, add up.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use sockway_common::limit::{LimitCarried, LimitKey, LimitState};

use super::{put_patiently, sys};

/// The counts of before, as they were copied.
#[derive(Debug)]
pub struct Counts {
    old: OwnedFd,
    copied: HashMap<LimitKey, LimitState>,
}

impl Counts {
    /// Copies the counts. In the new table no hook may count yet.
    pub(super) fn copy(old: &Path, new: &Path) -> io::Result<Self> {
        let (old, new) = (sys::pinned(old)?, sys::pinned(new)?);
        let mut copied = HashMap::new();
        sys::for_each(old.as_fd(), &sys::shape(old.as_fd())?, |key, value| {
            match put_patiently(new.as_fd(), key, value, sys::put) {
                Ok(()) => drop(copied.insert(read_key(key), read_state(value))),
                // Said when the tables were filled.
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
        Ok(Self { old, copied })
    }

    /// What hooks have taken and given back in the table before since it was copied. None of them may run any more.
    pub fn since(&self) -> io::Result<Vec<LimitCarried>> {
        let mut since = Vec::new();
        sys::for_each(self.old.as_fd(), &sys::shape(self.old.as_fd())?, |key, value| {
            let (key, now) = (read_key(key), read_state(value));
            let then = self.copied.get(&key).copied().unwrap_or_default();
            if now != then {
                let opened = now.open.wrapping_sub(then.open) as i64;
                since.push(LimitCarried { key, opened, theoretical_ns: now.theoretical_ns });
            }
            Ok(())
        })?;
        Ok(since)
    }
}

fn read_key(bytes: &[u8]) -> LimitKey {
    LimitKey { source: word(bytes, 0), service: word(bytes, 8) as u32, scope: (word(bytes, 8) >> 32) as u32 }
}

fn read_state(bytes: &[u8]) -> LimitState {
    LimitState { open: word(bytes, 0), theoretical_ns: word(bytes, 8) }
}

/// Little-endian, as every machine that the kernel half is built for.
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}
