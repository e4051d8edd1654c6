//! How full the pinned tables are, and how much memory they take.
//!
//! Counting 100 000 keys costs 100 000 system calls; what a table's descriptor says of its memory (`memlock` in `/proc/self/fdinfo`) costs
//! one. Since Linux 6.4 that is what its entries take now, so that their number follows from it: how much an entry and a bucket take
//! is measured once, on tiny tables of the same shape. Where the kernel says what a full table would take, keys are counted, now and then.

use std::{
    fs, io,
    net::TcpListener,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use sockway_common::counter::Counter;

use super::{
    load::{MAPS, SHORTCUT_MAP},
    size,
    sys::{self, Shape},
};

/// Part of its room that a table may take before the log says so.
const FULL_PERCENT: u64 = 80;
/// Keys counted of one table at most: a bound on the time it takes, reached by tables that are worth a look anyway.
const COUNTED_MAX: u64 = 65_536;

/// Time between two warnings of one table that has no room.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// How the hooks say that a table had no room. In the others they make no entries, or the kernel makes room for them.
const REFUSED: [(&str, Counter); 7] = [
    ("LIMITS", Counter::LimitTableFull),
    ("CONNECTED", Counter::ConnectedFull),
    ("ORIGINALS", Counter::ConnectNoRoom),
    ("ORIGINALS", Counter::OriginalFull),
    ("ENDPOINT_STATS", Counter::EndpointStatsFull),
    ("LATENCIES", Counter::LatencyFull),
    ("SHORTCUT", Counter::ShortcutRefused),
];

/// One table now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The table's name.
    pub table: &'static str,
    /// Entries; `None` for a table that is always full (arrays), or makes room by itself (LRU).
    pub entries: Option<u64>,
    /// Entries that have room.
    pub entries_max: u64,
    /// Memory, as far as the kernel tells.
    pub bytes: Option<u64>,
    /// Times that a hook found no room in it, and passed; `None` for a table in which no hook makes entries that it would miss.
    pub refused: Option<u64>,
}

impl Fill {
    fn is_nearly_full(&self) -> bool {
        self.entries.is_some_and(|entries| entries * 100 >= self.entries_max * FULL_PERCENT)
    }
}

/// The tables of the kernel half.
#[derive(Debug)]
pub struct Tables(Vec<Table>);

#[derive(Debug)]
struct Table {
    name: &'static str,
    map: OwnedFd,
    shape: Shape,
    count: Count,
    warned: bool,
    /// How often there was no room when it was last looked at.
    refused: Option<u64>,
    warned_at: Option<Instant>,
}

/// How entries are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    /// Not at all.
    Never,
    /// By the memory that they take.
    Memory { empty: u64, entry: u64 },
    /// By asking for every key: how many there were when it was last done.
    Keys(u64),
}

impl Tables {
    /// The tables pinned in `maps`.
    pub(super) fn new(maps: &Path) -> Self {
        let table = |name| {
            let map = sys::pinned(&maps.join(name)).ok()?;
            let shape = sys::shape(map.as_fd()).ok()?;
            let count = if shape.is_hash() { gauge(&shape) } else { Count::Never };
            Some(Table { name, map, shape, count, warned: false, refused: None, warned_at: None })
        };
        Self(MAPS.iter().copied().chain([SHORTCUT_MAP]).filter_map(table).collect())
    }

    /// Every table now. One system call or two for each.
    pub fn read(&self, counted: impl Fn(Counter) -> u64) -> Vec<Fill> {
        self.0.iter().map(|table| Fill { refused: refused(table.name, &counted), ..table.read() }).collect()
    }

    /// Says in the log which tables hooks have found full since the last look. To be called from time to time.
    pub fn look(&mut self, counted: impl Fn(Counter) -> u64) {
        for table in &mut self.0 {
            let now = refused(table.name, &counted);
            // What was counted before this agent came is no news.
            let before = std::mem::replace(&mut table.refused, now).or(now);
            if now > before && table.warned_at.is_none_or(|at| at.elapsed() >= WARN_AGAIN) {
                table.warn_if_full();
            }
        }
    }

    /// Counts again what must be counted, and says in the log which tables are nearly full. To be called from time to time.
    pub fn watch(&mut self) {
        for table in &mut self.0 {
            table.count_again();
            let fill = table.read();
            let is_full = fill.is_nearly_full();
            if is_full && !table.warned {
                tracing::warn!(
                    table = fill.table,
                    entries = fill.entries,
                    entries_max = fill.entries_max,
                    key = key(fill.table),
                    "a table of the kernel half is nearly full: what finds no room in it passes, and is counted; raise the key"
                );
            }
            table.warned = is_full;
        }
    }
}

impl Table {
    /// Where keys must be asked for, asks for them.
    fn count_again(&mut self) {
        if let Count::Keys(counted) = &mut self.count {
            *counted = sys::count_keys(self.map.as_fd(), &self.shape, COUNTED_MAX);
        }
    }

    /// A hook found no room: in a table that is full, or else the kernel had no memory at hand, which passes.
    fn warn_if_full(&mut self) {
        self.count_again();
        let fill = self.read();
        if !fill.is_nearly_full() {
            tracing::debug!(table = fill.table, "the kernel had no memory at hand for an entry");
            return;
        }
        self.warned_at = Some(Instant::now());
        tracing::warn!(
            table = fill.table,
            entries_max = fill.entries_max,
            key = key(fill.table),
            "a table of the kernel half is full: what found no room passed, and was counted; raise the key, and start the agent again"
        );
    }

    fn read(&self) -> Fill {
        let bytes = memory(self.map.as_fd());
        let entries = match self.count {
            Count::Never => None,
            Count::Keys(counted) => Some(counted),
            Count::Memory { empty, entry } => bytes.map(|bytes| bytes.saturating_sub(empty) / entry),
        };
        Fill { table: self.name, entries, entries_max: self.shape.entries_max.into(), bytes, refused: None }
    }
}

/// The key that says how large a table is.
fn key(table: &str) -> String {
    size::key_of(table).map_or_else(|| "none: its size is fixed".to_owned(), |key| format!("maps.{key}"))
}

fn refused(table: &str, counted: impl Fn(Counter) -> u64) -> Option<u64> {
    let mut ways = REFUSED.iter().filter(|(name, _)| *name == table).map(|(_, counter)| counted(*counter)).peekable();
    ways.peek()?;
    Some(ways.sum())
}

/// Learns on tiny tables of the same shape what a bucket and an entry take.
fn gauge(shape: &Shape) -> Count {
    let of = |entries_max| sys::create_map(&Shape { entries_max, ..*shape });
    let measure = || -> io::Result<Option<Count>> {
        let (one, two) = (of(1)?, of(2)?);
        let (Some(small), Some(large)) = (memory(one.as_fd()), memory(two.as_fd())) else { return Ok(None) };
        let _held = put_one(one.as_fd(), shape)?;
        let entry = memory(one.as_fd()).unwrap_or(0).saturating_sub(small);
        // Buckets are rounded up to a power of two (`htab_map_alloc`, `sock_hash_alloc`); a trie has none.
        let buckets = u64::from(shape.entries_max).next_power_of_two();
        let empty = small + large.saturating_sub(small) * (buckets - 1);
        Ok((entry > 0).then_some(Count::Memory { empty, entry }))
    };
    measure().ok().flatten().unwrap_or(Count::Keys(0))
}

/// A socket for a table of sockets, with which its entry goes, and zeroes for any other.
fn put_one(map: BorrowedFd<'_>, shape: &Shape) -> io::Result<Option<TcpListener>> {
    let key = vec![0; shape.key_bytes as usize];
    if shape.holds_sockets() {
        let socket = TcpListener::bind("127.0.0.1:0")?;
        let mut value = vec![0; shape.value_bytes as usize];
        value[..4].copy_from_slice(&socket.as_raw_fd().to_ne_bytes());
        sys::put(map, &key, &value)?;
        return Ok(Some(socket));
    }
    let cpus = if shape.is_per_cpu() { aya::util::nr_cpus().map_err(|(_, error)| error)? } else { 1 };
    sys::put(map, &key, &vec![0; (shape.value_bytes as usize).next_multiple_of(8) * cpus])?;
    Ok(None)
}

/// What the kernel says of a map's memory.
fn memory(map: BorrowedFd<'_>) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_nearly_full_at_four_fifths() {
        let fill = |entries| Fill { table: "T", entries, entries_max: 10, bytes: None, refused: None };
        for (entries, nearly_full) in
            [(None, false), (Some(0), false), (Some(7), false), (Some(8), true), (Some(10), true)]
        {
            assert_eq!(fill(entries).is_nearly_full(), nearly_full, "{entries:?}");
        }
    }
}
