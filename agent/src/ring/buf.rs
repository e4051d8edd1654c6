//! Buffers that operations own, and the worker's stock of them.

use std::{cell::RefCell, ops::Range};

/// Free bytes kept in front of what is received, so that a head can grow by a few fields (a request's id, what is left of its time, which attempt
/// it is) or a chunk get its size without being copied.
pub const HEADROOM: usize = 256;
/// Free bytes kept behind what is received: the end of a chunk.
const TAILROOM: usize = 16;

/// What a request is received into: most heads fit.
pub const SMALL: usize = 4 * 1024;
/// What a response is received into: a head and a small body arrive in one piece.
pub const MEDIUM: usize = 16 * 1024;
/// Pieces of a long body, and the longest head.
pub const LARGE: usize = 64 * 1024 + HEADROOM + TAILROOM;
/// Pieces of what comes faster than it is taken: a program that is woken for four times as many bytes is woken a quarter as often.
pub const HUGE: usize = 256 * 1024 + HEADROOM + TAILROOM;

/// Memory with the bytes that were received and not yet consumed somewhere in it.
#[derive(Debug)]
pub struct Buf {
    memory: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Buf {
    fn new(capacity: usize) -> Self {
        Self { memory: vec![0; capacity].into_boxed_slice(), start: HEADROOM, end: HEADROOM }
    }

    /// A buffer that holds exactly these bytes: a local reply, say.
    pub fn of(bytes: &[u8]) -> Self {
        Self { memory: bytes.into(), start: 0, end: bytes.len() }
    }

    /// The bytes not yet consumed.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    /// How many bytes are not yet consumed.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether everything was consumed.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where in [`Buf::memory`] the bytes not yet consumed are.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// All of it, head- and tailroom included.
    pub fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// Consumes everything before `start`, a place in [`Buf::memory`]; or takes back what is after it.
    pub fn set_start(&mut self, start: usize) {
        assert!(start <= self.end);
        self.start = start;
    }

    /// Consumes `bytes`.
    pub fn consume(&mut self, bytes: usize) {
        self.set_start(self.start + bytes);
    }

    /// Forgets all bytes.
    pub fn clear(&mut self) {
        self.start = HEADROOM.min(self.memory.len());
        self.end = self.start;
    }

    /// The part that the kernel may fill next.
    pub(super) fn spare(&mut self) -> &mut [u8] {
        let end = self.memory.len().saturating_sub(TAILROOM).max(self.end);
        &mut self.memory[self.end..end]
    }

    /// How many more bytes can be received.
    pub fn room(&self) -> usize {
        self.memory.len().saturating_sub(TAILROOM).saturating_sub(self.end)
    }

    /// The kernel has written `bytes` into [`Buf::spare`].
    pub(super) fn filled(&mut self, bytes: usize) {
        assert!(bytes <= self.room());
        self.end += bytes;
    }

    /// Puts a copy of `bytes` behind its bytes, as many as there is room for; how many that was.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.room());
        self.spare()[..taken].copy_from_slice(&bytes[..taken]);
        self.filled(taken);
        taken
    }

    /// How large it is.
    pub fn capacity(&self) -> usize {
        self.memory.len()
    }
}

/// A worker's stock of buffers that are not in use.
#[derive(Debug, Default)]
pub struct Buffers {
    small: RefCell<Vec<Buf>>,
    medium: RefCell<Vec<Buf>>,
    large: RefCell<Vec<Buf>>,
    huge: RefCell<Vec<Buf>>,
}

/// How much memory of each size the stock keeps at most; what comes back beyond it is freed. Enough that a steady load never
/// allocates, little enough that a worker at rest stays within a few MiB.
const STOCK_BYTES_MAX: usize = 1 << 20;

impl Buffers {
    /// An empty buffer of [`SMALL`], [`MEDIUM`], [`LARGE`] or [`HUGE`] bytes.
    pub fn take(&self, capacity: usize) -> Buf {
        self.shelf(capacity).borrow_mut().pop().unwrap_or_else(|| Buf::new(capacity))
    }

    /// Gives one back.
    pub fn give(&self, mut buf: Buf) {
        if !matches!(buf.capacity(), SMALL | MEDIUM | LARGE | HUGE) {
            return;
        }
        let mut shelf = self.shelf(buf.capacity()).borrow_mut();
        if shelf.len() < STOCK_BYTES_MAX / buf.capacity() {
            buf.clear();
            shelf.push(buf);
        }
    }

    /// A buffer that holds a copy of `bytes`.
    pub fn holding(&self, bytes: &[u8]) -> Buf {
        let needed = bytes.len() + HEADROOM + TAILROOM;
        let mut buf = match [SMALL, MEDIUM, LARGE].into_iter().find(|capacity| needed <= *capacity) {
            Some(capacity) => self.take(capacity),
            None => Buf::new(needed),
        };
        buf.spare()[..bytes.len()].copy_from_slice(bytes);
        buf.filled(bytes.len());
        buf
    }

    /// Makes room behind the bytes of a full buffer: moves them to its beginning, or to a larger one. `Err` when it holds `bytes_max` of them.
    pub fn make_room(&self, mut buf: Buf, bytes_max: usize) -> Result<Buf, Buf> {
        if buf.start > HEADROOM {
            buf.memory.copy_within(buf.start..buf.end, HEADROOM);
            (buf.start, buf.end) = (HEADROOM, HEADROOM + buf.len());
            return Ok(buf);
        }
        if buf.len() >= bytes_max {
            return Err(buf);
        }
        let mut larger = match buf.capacity() {
            ..MEDIUM => self.take(MEDIUM),
            MEDIUM..LARGE => self.take(LARGE),
            // The longest heads, which few services allow: no stock is kept of these.
            capacity => Buf::new((2 * capacity).min(bytes_max + HEADROOM + TAILROOM)),
        };
        larger.spare()[..buf.len()].copy_from_slice(buf.bytes());
        larger.filled(buf.len());
        self.give(buf);
        Ok(larger)
    }

    fn shelf(&self, capacity: usize) -> &RefCell<Vec<Buf>> {
        match capacity {
            HUGE.. => &self.huge,
            LARGE.. => &self.large,
            MEDIUM.. => &self.medium,
            _ => &self.small,
        }
    }
}
