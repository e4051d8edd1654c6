//! Joins two connections of this agent: tells the hooks of the two programs' sockets where to send, and how far the agent itself has got.
//! What each service moved by the shortcut is read here too.
//!
//! Told by plain stores into the kernel's memory: joining costs two or three lookups, and relaying nothing that could be seen.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use aya::{
    Ebpf,
    maps::{MapData, PerCpuHashMap, PerCpuValues},
};
use sockway_common::join::{self, ENTRIES, Half, Meeting, ShortcutStats, WAYS, first_place, half_state, join_state};

use super::{KernelError, descriptor, services, sys};

/// Cookie of an entry that is being written: no socket has it.
const CLAIMED: u64 = u64::MAX;

/// The entries of this agent's joins, shared by its workers. An entry has one owner from [`Joins::claim`] until it is given back.
#[derive(Debug)]
pub struct Joins {
    entries: NonNull<join::Join>,
    halves: OwnedFd,
    meetings: OwnedFd,
    /// The program that looks at a receiver's queue, where this kernel takes it.
    looker: Option<OwnedFd>,
}

// SAFETY: the memory is mapped until this is dropped, and only ever used as atomic words.
unsafe impl Send for Joins {}
// SAFETY: as above.
unsafe impl Sync for Joins {}

/// What came of asking for two connections to be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The programs' sockets send straight to each other from the next quiet point of each direction.
    Armed,
    /// The accepting end of the second connection is on its way into the shortcut: ask again.
    NotYet,
    /// The program that dialled is not in the shortcut.
    NoClient,
    /// The other program is not in the shortcut, or not on this host.
    NoServer,
    /// Every place where the entry could stand is taken.
    NoRoom,
}

/// Which way bytes go between two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the first to the second.
    There,
    /// From the second to the first.
    Back,
}

/// What the agent holds of a join: an entry for each direction that has one. Dropping it gives them back, and the programs' sockets send
/// through the agent again.
#[derive(Debug)]
pub struct Join {
    joins: Arc<Joins>,
    places: [Option<u32>; 2],
}

/// The other end of one of the agent's connections.
enum Peer {
    Program { cookie: u64, sock: u64 },
    NotYet,
    None,
}

impl Joins {
    /// Over the tables of a loaded object.
    pub(super) fn new(ebpf: &Ebpf, looker: Option<OwnedFd>) -> Result<Self, KernelError> {
        let table = descriptor(ebpf, "JOINS")?;
        let failed = |error: io::Error| services::map_error("JOINS")(error.into());
        // SAFETY: a new mapping of a map that was made to be mapped; the kernel refuses one that is too long for it.
        let entries = unsafe {
            libc::mmap(
                ptr::null_mut(),
                ENTRIES as usize * size_of::<join::Join>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                table.as_raw_fd(),
                0,
            )
        };
        if entries == libc::MAP_FAILED {
            return Err(failed(io::Error::last_os_error()));
        }
        let entries = NonNull::new(entries.cast()).ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
        Ok(Self { entries, halves: descriptor(ebpf, "HALVES")?, meetings: descriptor(ebpf, "MEETINGS")?, looker })
    }

    /// Joins the programs at the other ends of two connections of this agent, if both are in the shortcut; what is held otherwise is told
    /// that it need not be.
    pub(super) fn join(
        self: &Arc<Self>,
        first: BorrowedFd<'_>,
        second: BorrowedFd<'_>,
    ) -> io::Result<(Verdict, Option<Join>)> {
        let halves = [self.half(first)?, self.half(second)?];
        let peers = [self.peer(halves[0].as_ref())?, self.peer(halves[1].as_ref())?];
        let mut held = Join { joins: Arc::clone(self), places: [None, None] };
        let verdict = match (&peers, &halves) {
            ([Peer::NotYet, _] | [_, Peer::NotYet], _) => Verdict::NotYet,
            (
                &[Peer::Program { cookie: from, sock: from_sock }, Peer::Program { cookie: to, sock: to_sock }],
                [Some(near), Some(far)],
            ) => {
                held.places[0] = self.claim(from, (to, to_sock), far);
                held.places[1] = self.claim(to, (from, from_sock), near);
                if held.places.iter().all(Option::is_some) { Verdict::Armed } else { Verdict::NoRoom }
            }
            ([Peer::Program { cookie, .. }, _], _) => {
                held.places[0] = self.claim_refused(*cookie);
                Verdict::NoServer
            }
            ([_, Peer::Program { cookie, .. }], _) => {
                held.places[1] = self.claim_refused(*cookie);
                Verdict::NoClient
            }
            _ => Verdict::NoClient,
        };
        if verdict == Verdict::NoRoom {
            // One direction alone is not joined: its end would have no entry to be counted in.
            return Ok((verdict, None));
        }
        Ok((verdict, held.places.iter().any(Option::is_some).then_some(held)))
    }

    fn half(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Half>> {
        sys::lookup(self.halves.as_fd(), &socket.as_raw_fd())
    }

    /// Who is at the other end of one of our sockets. One that dialled and has not sent yet has not looked, so we look in its stead.
    fn peer(&self, half: Option<&Half>) -> io::Result<Peer> {
        let Some(half) = half else { return Ok(Peer::None) };
        if half.peer_cookie != 0 {
            return Ok(Peer::Program { cookie: half.peer_cookie, sock: half.peer_sock });
        }
        if half.state != half_state::WAITING {
            return Ok(Peer::None);
        }
        // May be torn, as everything in a map that evicts: the hook compares the two sockets before it believes it.
        let meeting: Option<Meeting> = sys::lookup(self.meetings.as_fd(), &half.key)?;
        Ok(match meeting {
            Some(meeting) if meeting.server_cookie != 0 => {
                Peer::Program { cookie: meeting.server_cookie, sock: meeting.server_sock }
            }
            Some(_) => Peer::NotYet,
            None => Peer::None,
        })
    }

    fn claim(&self, cookie: u64, to: (u64, u64), via: &Half) -> Option<u32> {
        self.write(cookie, to, (via.cookie, via.sock, via.first()), join_state::ARMED)
    }

    fn claim_refused(&self, cookie: u64) -> Option<u32> {
        self.write(cookie, (0, 0), (0, 0, 0), join_state::REFUSED)
    }

    fn write(&self, cookie: u64, to: (u64, u64), via: (u64, u64, u32), state: u32) -> Option<u32> {
        let first = first_place(cookie);
        let place = (first..first + WAYS)
            .find(|place| self.cookie(*place).compare_exchange(0, CLAIMED, Acquire, Relaxed).is_ok())?;
        let entry = self.entry(place);
        // SAFETY: fields of a mapped entry, aligned, which this thread owns; a hook that still reads it sees that the cookie is another.
        unsafe {
            word(&raw mut (*entry).forwarded).store(0, Relaxed);
            word(&raw mut (*entry).to_cookie).store(to.0, Relaxed);
            word(&raw mut (*entry).to_sock).store(to.1, Relaxed);
            word(&raw mut (*entry).via_cookie).store(via.0, Relaxed);
            word(&raw mut (*entry).via_sock).store(via.1, Relaxed);
            word(&raw mut (*entry).direct_bytes).store(0, Relaxed);
            word(&raw mut (*entry).direct_messages).store(0, Relaxed);
            AtomicU32::from_ptr(&raw mut (*entry).via_first).store(via.2, Relaxed);
            AtomicU32::from_ptr(&raw mut (*entry).state).store(state, Relaxed);
        }
        self.cookie(place).store(cookie, Release);
        Some(place)
    }

    fn entry(&self, place: u32) -> *mut join::Join {
        assert!(place < ENTRIES);
        // SAFETY: within the mapping, by the assertion.
        unsafe { self.entries.as_ptr().add(place as usize) }
    }

    fn cookie(&self, place: u32) -> &AtomicU64 {
        // SAFETY: a field of a mapped entry.
        unsafe { word(&raw mut (*self.entry(place)).cookie) }
    }
}

impl Drop for Joins {
    fn drop(&mut self) {
        // SAFETY: what `new` mapped, and nothing points into it: every `Join` holds this alive.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), ENTRIES as usize * size_of::<join::Join>()) };
    }
}

/// A word that the kernel half reads and writes too.
///
/// # Safety
///
/// It must be a field of an entry of a [`Joins`] that outlives what is returned.
unsafe fn word<'a>(field: *mut u64) -> &'a AtomicU64 {
    // SAFETY: aligned by the entry's layout, mapped by the caller's word, and never used but atomically.
    unsafe { AtomicU64::from_ptr(field) }
}

impl Join {
    /// Tells that all of the first `bytes` of this way, counted since its connection began, have been taken and sent on.
    pub fn settled(&self, way: Way, bytes: u64) {
        if let Some(place) = self.places[way as usize] {
            // SAFETY: a field of an entry of `self.joins`, ours until this is dropped.
            unsafe { word(&raw mut (*self.joins.entry(place)).forwarded) }.store(bytes, Release);
        }
    }

    /// Bytes that wait for the program at the end of this way; none if it cannot be sent to straight any more, or that cannot be told.
    pub fn queued(&self, way: Way) -> u32 {
        let (Some(place), Some(looker)) = (self.places[way as usize], &self.joins.looker) else { return 0 };
        let cookie = self.joins.cookie(place).load(Relaxed);
        let packet = [&sys::LINK_HEADER[..], &u64::from(place).to_ne_bytes(), &cookie.to_ne_bytes()].concat();
        sys::run_program(looker.as_fd(), &packet).unwrap_or(0)
    }

    /// Bytes that went this way from program to program.
    pub fn straight(&self, way: Way) -> u64 {
        self.places[way as usize].map_or(0, |place| {
            // SAFETY: as in `settled`.
            unsafe { word(&raw mut (*self.joins.entry(place)).direct_bytes) }.load(Relaxed)
        })
    }
}

impl Drop for Join {
    fn drop(&mut self) {
        for place in self.places.into_iter().flatten() {
            self.joins.cookie(place).store(0, Release);
        }
    }
}

/// What went by the shortcut on behalf of each service.
pub struct ShortcutTable {
    stats: PerCpuHashMap<MapData, u32, ShortcutStats>,
    known: HashSet<u32>,
    cpus: usize,
}

impl ShortcutTable {
    /// Takes the table of a loaded object.
    pub fn new(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        Ok(Self {
            stats: services::table(ebpf, "SHORTCUT_STATS")?,
            known: HashSet::new(),
            cpus: aya::util::nr_cpus().map_err(|(path, source)| KernelError::Cpus { path, source })?,
        })
    }

    /// Has an entry for each of these services and for no other: a hook that counts allocates nothing. What an earlier agent counted goes on.
    pub fn keep(&mut self, services: impl Iterator<Item = u32>) -> Result<(), KernelError> {
        let wanted: HashSet<u32> = services.collect();
        if wanted == self.known {
            return Ok(());
        }
        let present: HashSet<u32> = self.stats.keys().flatten().collect();
        for service in wanted.difference(&present) {
            let zero = PerCpuValues::try_from(vec![ShortcutStats::default(); self.cpus])
                .map_err(|source| services::map_error("SHORTCUT_STATS")(source.into()))?;
            self.stats.insert(service, zero, 0).map_err(services::map_error("SHORTCUT_STATS"))?;
        }
        for service in present.difference(&wanted) {
            let _ = self.stats.remove(service);
        }
        self.known = wanted;
        Ok(())
    }

    /// What was counted, added up over the CPUs.
    pub fn read(&self) -> Vec<(u32, ShortcutStats)> {
        let sum = |values: PerCpuValues<ShortcutStats>| {
            values.iter().fold(ShortcutStats::default(), |mut sum, value| {
                sum.add(value);
                sum
            })
        };
        self.stats.iter().flatten().map(|(service, values)| (service, sum(values))).collect()
    }
}
