//! What an agent before this one left pinned, taken over: a map whose shape is still the same is used again, another is made beside it.
//!
//! Maps that do not fit are set aside, `before-<n>/maps`, before the new ones are made (trap T37: new maps, filled, pinned, then the hooks).
//! A map that only has another size is copied. What lives with a socket cannot be (trap T38): then the links are set aside too,
//! `before-<n>/links`, new ones are made beside them, and of the old ones only those that dial are taken away. The others (whom a socket
//! has dialled, what it holds) serve their sockets until the last is gone.
//!
//! Every step can be the last of an agent that is killed: the next one finds by what is there how far it came, and goes on.

mod limits;

use std::{
    collections::HashMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use sockway_common::shape;

pub use self::limits::Counts;
use super::{
    KernelError, hooks,
    last::LastSockets,
    load,
    pins::{self, Pins, RESIZED},
    sys::{self, Shape},
};

/// What the kernel cannot list are datagram sockets that have a value in a map: what serves them stays this long.
const DATAGRAMS_STAY: Duration = Duration::from_secs(3_600);

const POPULATE_TRIES: u32 = 200;
const POPULATE_PAUSE: Duration = Duration::from_millis(1);

/// What stands aside.
#[derive(Debug)]
pub struct Carry {
    pins: Pins,
    aside: Vec<Aside>,
}

/// What one change of layout set aside.
#[derive(Debug)]
struct Aside {
    root: PathBuf,
    sockets: Vec<LastSockets>,
    stays_until: Instant,
}

impl Aside {
    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    fn resized(&self) -> PathBuf {
        self.root.join(RESIZED)
    }

    fn has(&self, map: &str) -> bool {
        self.maps().join(map).exists()
    }

    fn open_sockets(&mut self) -> Result<(), KernelError> {
        let there: Vec<PathBuf> =
            shape::OF_SOCKETS.iter().filter(|name| self.has(name)).map(|name| self.maps().join(name)).collect();
        for path in there {
            self.sockets.push(LastSockets::of(sys::pinned(&path).map_err(failed(&path))?));
        }
        if self.has("CONVERSATIONS") {
            self.stays_until = Instant::now() + DATAGRAMS_STAY;
        }
        Ok(())
    }

    /// Whether it holds what lives with sockets.
    fn is_of_sockets(&self) -> bool {
        shape::OF_SOCKETS.iter().any(|map| self.has(map))
    }
}

impl Carry {
    /// Sets aside the pinned maps that are of another shape than `wanted`, the pinned version of the ABI being `version`.
    pub fn begin(pins: &Pins, version: Option<u32>, wanted: &HashMap<String, Shape>) -> Result<Self, KernelError> {
        let mut carry = Self { pins: pins.clone(), aside: Vec::new() };
        for root in pins.aside() {
            carry.remember(root)?;
        }
        let mut unfit = unfit(&pins.maps(), version, wanted);
        if !unfit.is_empty() {
            let last = carry.aside.iter().filter_map(|aside| number(&aside.root)).max().unwrap_or(0);
            let aside = carry.remember(pins.root().join(format!("{ASIDE}{}", last + 1)))?;
            // The settings last: they say of which version the others are, should this be cut short.
            // First those that only go with others: as long as one of the others is there, the next agent finds that they do.
            unfit.sort_by_key(|(name, change)| (*name == "SETTINGS", *change != Change::Company, *name));
            tracing::info!(maps = ?unfit, "maps of another shape are set aside, new ones take over");
            for (name, change) in unfit {
                let to = if change == Change::Layout { aside.maps() } else { aside.resized() };
                fs::create_dir_all(&to).map_err(failed(&to))?;
                let from = pins.maps().join(name);
                fs::rename(&from, to.join(name)).map_err(failed(&from))?;
            }
            aside.open_sockets()?;
        }
        Ok(carry)
    }

    fn remember(&mut self, root: PathBuf) -> Result<&mut Aside, KernelError> {
        self.aside.push(Aside { root, sockets: Vec::new(), stays_until: Instant::now() });
        let aside = self.aside.last_mut().expect("just pushed");
        aside.open_sockets()?;
        Ok(aside)
    }

    /// How many entries have room in the map of this name that an agent before this one made.
    pub fn room(pins: &Pins, map: &str) -> Option<u32> {
        let aside = pins.aside().into_iter().map(|root| root.join(RESIZED).join(map));
        let places = std::iter::once(pins.maps().join(map)).chain(aside);
        let room = |path: PathBuf| sys::shape(sys::pinned(&path).ok()?.as_fd()).ok();
        places.filter_map(room).map(|shape| shape.entries_max).max()
    }

    /// Copies what only changed its size into the new maps; what they hold already stays. A map of another layout is filled by others.
    pub fn fill(&self) -> Result<(), KernelError> {
        for resized in self.aside.iter().map(Aside::resized) {
            for entry in fs::read_dir(resized).into_iter().flatten().flatten() {
                let (old, new) = (entry.path(), self.pins.maps().join(entry.file_name()));
                let (copied, left) = copy(&old, &new).map_err(failed(&new))?;
                let map = entry.file_name();
                tracing::info!(map = %map.display(), copied, "entries are carried over to a new map");
                if left > 0 {
                    tracing::warn!(map = %map.display(), left, "entries find no room in a map that was made smaller");
                }
            }
        }
        Ok(())
    }

    /// What is taken of the limits, copied into a table of another size, if it has one. To be called just before the hooks are replaced:
    /// what the hooks before count from now on is to be added, see [`Counts::since`].
    pub fn counts(&self) -> Result<Option<Counts>, KernelError> {
        let Some(old) = self.aside.iter().rev().map(|aside| aside.resized().join("LIMITS")).find(|path| path.exists())
        else {
            return Ok(None);
        };
        let new = self.pins.maps().join("LIMITS");
        Counts::copy(&old, &new).map(Some).map_err(failed(&new))
    }

    /// Before hooks of this agent are attached: where sockets have state in a map that was set aside, the hooks that read it step aside.
    pub fn step_aside(&self) -> Result<(), KernelError> {
        for aside in self.aside.iter().filter(|aside| aside.is_of_sockets() && !aside.links().exists()) {
            let links = self.pins.links();
            fs::rename(&links, aside.links()).map_err(failed(&links))?;
            fs::create_dir_all(&links).map_err(failed(&links))?;
        }
        Ok(())
    }

    /// After hooks of this agent are attached: from now on they alone dial. What nobody needs any more is taken away.
    pub fn take_over(&mut self) -> Result<(), KernelError> {
        for aside in self.aside.iter().filter(|aside| aside.is_of_sockets()) {
            hooks::unpin_dialling(&aside.links())?;
        }
        let (staying, done): (Vec<Aside>, Vec<Aside>) =
            std::mem::take(&mut self.aside).into_iter().partition(Aside::is_of_sockets);
        self.aside = staying;
        done.iter().try_for_each(|aside| pins::remove_aside(&aside.root).map(|_| ()).map_err(failed(&aside.root)))
    }

    /// Takes away what was set aside for sockets that are gone. To be called from time to time; never waits.
    pub fn let_go(&mut self) {
        self.aside.retain_mut(|aside| {
            // Each is asked, so that they are counted at the same time.
            let gone = aside.sockets.iter_mut().fold(true, |gone, sockets| sockets.are_gone() & gone);
            if !gone || Instant::now() < aside.stays_until {
                return true;
            }
            match pins::remove_aside(&aside.root) {
                Ok(removed) => tracing::info!(removed, path = %aside.root.display(), "the last socket of the layout before is gone"),
                Err(error) => tracing::warn!(%error, path = %aside.root.display(), "pins of the layout before stay"),
            }
            false
        });
    }
}

/// Name of a directory aside, before its number.
pub const ASIDE: &str = "before-";

fn number(root: &Path) -> Option<u32> {
    root.file_name()?.to_str()?.strip_prefix(ASIDE)?.parse().ok()
}

/// How a pinned map differs from the one that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// In nothing itself: it goes with one that differs by its size.
    Company,
    /// By its size alone.
    Size,
    /// By its layout, or what that means.
    Layout,
}

/// The pinned maps that cannot be used again, those that belong to them included.
fn unfit(maps: &Path, version: Option<u32>, wanted: &HashMap<String, Shape>) -> Vec<(&'static str, Change)> {
    let Some(version) = version else { return Vec::new() };
    let there: Vec<&'static str> = load::names().filter(|name| maps.join(name).exists()).collect();
    let change = |name: &'static str| {
        let pinned = sys::pinned(&maps.join(name)).and_then(|map| sys::shape(map.as_fd())).ok();
        differs(version >= shape::since(name), pinned.as_ref(), wanted.get(name))
    };
    let changes: HashMap<&str, Change> = there.iter().filter_map(|name| Some((*name, change(name)?))).collect();
    let anew = |maps: &[&str]| maps.iter().any(|name| changes.get(name) == Some(&Change::Layout));
    let with_others = |name: &'static str| {
        let belongs = shape::TOGETHER.iter().any(|(first, also)| also.contains(&name) && anew(first));
        belongs.then_some(Change::Layout)
    };
    let resized = shape::DIALLED.iter().any(|name| changes.contains_key(name));
    let with_dialled = |name: &str| (resized && shape::DIALLED.contains(&name)).then_some(Change::Company);
    let change = |name: &'static str| {
        Some((name, with_others(name).or(changes.get(name).copied()).or_else(|| with_dialled(name))?))
    };
    there.into_iter().filter_map(change).collect()
}

/// `same_meaning`: whether its bytes mean what they do now.
fn differs(same_meaning: bool, pinned: Option<&Shape>, wanted: Option<&Shape>) -> Option<Change> {
    let (Some(pinned), Some(wanted)) = (pinned, wanted) else { return Some(Change::Layout) };
    let resized = Shape { entries_max: wanted.entries_max, ..*pinned };
    match (same_meaning && resized == *wanted, pinned.entries_max == wanted.entries_max) {
        (true, true) => None,
        (true, false) if pinned.can_be_copied() => Some(Change::Size),
        _ => Some(Change::Layout),
    }
}

/// Copies the entries of a hash map into one that differs in size alone, unless they are there. How many, and how many found no room.
fn copy(old: &Path, new: &Path) -> io::Result<(u64, u64)> {
    let (from, to) = (sys::pinned(old)?, sys::pinned(new)?);
    let (mut copied, mut left) = (0, 0);
    sys::for_each(from.as_fd(), &sys::shape(from.as_fd())?, |key, value| {
        match put_patiently(to.as_fd(), key, value, sys::put_new) {
            Ok(()) => copied += 1,
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => left += 1,
            Err(error) => return Err(error),
        }
        Ok(())
    })?;
    Ok((copied, left))
}

/// The kernel takes memory for each CPU from pages that it fills in the background, and says that there is none while it does.
fn put_patiently(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    put: impl Fn(BorrowedFd<'_>, &[u8], &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    for _ in 0..POPULATE_TRIES {
        match put(map, key, value) {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => std::thread::sleep(POPULATE_PAUSE),
            done => return done,
        }
    }
    put(map, key, value)
}

fn failed(path: &Path) -> impl Fn(io::Error) -> KernelError {
    let path = path.to_owned();
    move |source| KernelError::Pin { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: Shape = Shape { kind: 1, key_bytes: 4, value_bytes: 8, entries_max: 16, flags: 1 };

    #[test]
    fn a_map_is_used_again_only_if_shape_and_meaning_are_the_same() {
        let larger = Shape { entries_max: 32, ..HASH };
        let array = Shape { kind: 2, ..HASH };
        let evicting = Shape { kind: 9, ..HASH };
        let sockets = Shape { kind: 18, ..HASH };
        for (same, pinned, wanted, change) in [
            (true, HASH, HASH, None),
            (true, HASH, larger, Some(Change::Size)),
            (true, HASH, Shape { value_bytes: 16, ..HASH }, Some(Change::Layout)),
            (true, HASH, Shape { value_bytes: 16, ..larger }, Some(Change::Layout)),
            (true, HASH, Shape { flags: 0, ..HASH }, Some(Change::Layout)),
            (false, HASH, HASH, Some(Change::Layout)),
            (true, array, Shape { entries_max: 32, ..array }, Some(Change::Layout)),
            (true, evicting, Shape { entries_max: 32, ..evicting }, Some(Change::Size)),
            (true, sockets, Shape { entries_max: 32, ..sockets }, Some(Change::Layout)),
        ] {
            assert_eq!(differs(same, Some(&pinned), Some(&wanted)), change, "{pinned:?} {wanted:?}");
        }
        assert_eq!(differs(true, None, Some(&HASH)), Some(Change::Layout), "what cannot be asked");
    }
}
