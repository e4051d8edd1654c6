//! Takes the kernel half away: what is pinned outlives the agent, and somebody must say that it is over.

use std::{fs, io, os::fd::AsFd as _, path::Path};

use super::{KernelError, cgroup, cgroup_mount, own_cgroup, pins::Pins, selftest, sys};
use crate::config::Capture;

/// Takes away everything that is pinned for `instance`, and its cgroup when it is empty: every socket goes on as plain TCP. How many
/// pins there were.
///
/// # Errors
///
/// When a pin cannot be removed.
pub fn detach(capture: &Capture, instance: &str) -> Result<usize, KernelError> {
    let pins = Pins::new(&capture.bpffs, instance);
    for maps in pins.aside().iter().map(|aside| aside.join("maps")).chain([pins.maps()]) {
        // None there: nothing was enrolled by it.
        let _ = switch_shortcut_off(&maps.join("SETTINGS"));
    }
    let removed = pins.remove().map_err(|source| KernelError::Pin { path: pins.links(), source })?;
    if let Ok(mount) = cgroup_mount(capture) {
        let own = own_cgroup(&mount, instance);
        if cgroup::current(&mount).is_ok_and(|current| current == own) {
            cgroup::enter(&mount).map_err(|source| KernelError::Cgroup { path: mount.clone(), source })?;
        }
        // Busy while another agent runs in it, absent when none ever did: both are well.
        let _ = fs::remove_dir(own);
        selftest::remove_dead(&mount, instance);
    }
    Ok(removed)
}

/// Sockets that are enrolled keep the program they have for as long as they live: it falls back to TCP at the next message. The flags are
/// the second word of the settings in every version.
fn switch_shortcut_off(settings: &Path) -> io::Result<()> {
    let map = sys::pinned(settings)?;
    let mut value = vec![0; sys::shape(map.as_fd())?.value_bytes as usize];
    let entry = 0_u32.to_ne_bytes();
    sys::get(map.as_fd(), &entry, &mut value)?;
    if let Some(flags) = value.get_mut(4..8) {
        flags.fill(0);
    }
    sys::put(map.as_fd(), &entry, &value)
}
