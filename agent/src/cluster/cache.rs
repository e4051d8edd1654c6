//! Answers that are kept, node-wide: what is found by a key, within a bound of bytes; and who asks for what is not there.
//!
//! What may be kept and given is said elsewhere, by [`crate::filter`]. Here an answer is immutable: a worker that gives it holds a count of it and
//! no lock. The table is split into shards, each behind a lock that is held for as long as a look into a hash table and a few moves of pointers
//! take: never over a copy of a body, a wait or the freeing of what was evicted.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use lru::LruCache;
use tokio::sync::watch;

/// Most shards.
const SHARDS_MAX: u64 = 16;
/// A shard has room for so many of the longest answers at least, so that none of them pushes out all others.
const LONGEST_IN_SHARD: u64 = 8;
/// Most answers under one key, which differ by what requests say (RFC 9111 section 4.1).
const VARIANTS_MAX: usize = 16;
/// What an entry takes beside its bytes: its places in the tables, and the tables' own.
const OVERHEAD_BYTES: u64 = 512;
/// What a field takes beside its name and value: two handles, and its place in a map.
const FIELD_BYTES: u64 = 96;

/// An answer that is kept.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its status.
    pub status: StatusCode,
    /// Its fields, as they came, but for those of a connection.
    pub headers: HeaderMap,
    /// All of its body.
    pub body: Bytes,
    /// For which requests it was selected: the fields that they have, or not, and what these say.
    pub selecting: Vec<(HeaderName, Option<Vec<u8>>)>,
    /// What it says of its own use.
    pub rules: Rules,
}

/// What an answer says of its own use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// When it came, since 1970.
    pub came: Duration,
    /// How old it was then.
    pub age: Duration,
    /// How old it is fresh.
    pub lifetime: Duration,
    /// It is never given without asking whether it still holds.
    pub asks_always: bool,
    /// When it is not fresh any more it is not given without asking, whatever anybody allows.
    pub asks_when_stale: bool,
    /// For how long behind that it may stand in for an error.
    pub if_error: Duration,
    /// For how long behind that it may be given while another is fetched.
    pub while_revalidate: Duration,
}

impl Stored {
    fn bytes(&self) -> u64 {
        let fields: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let selecting: usize =
            self.selecting.iter().map(|(name, value)| name.as_str().len() + value.as_ref().map_or(0, Vec::len)).sum();
        let count = (self.headers.len() + self.selecting.len()) as u64;
        (self.body.len() + fields + selecting) as u64 + count * FIELD_BYTES + OVERHEAD_BYTES
    }
}

/// How a request is found: by what it is for. The same for all that one answer may serve.
pub type Key = Arc<[u8]>;

/// The answers.
#[derive(Debug)]
pub struct Store {
    shards: Box<[Mutex<Shard>]>,
    shard_bytes_max: u64,
    entry_bytes_max: u64,
    /// What was done.
    pub counts: Counts,
}

/// What was done with answers, and what they take.
#[derive(Debug, Default)]
pub struct Counts {
    /// Answers that were kept.
    pub stored: AtomicU64,
    /// Answers that made room for others.
    pub evicted: AtomicU64,
    /// Answers that were dropped because what they are of was changed.
    pub invalidated: AtomicU64,
    /// What all of them take, in bytes.
    pub bytes: AtomicU64,
    /// How many there are.
    pub entries: AtomicU64,
}

#[derive(Debug)]
struct Shard {
    slots: LruCache<Key, Slot>,
    bytes: u64,
    /// Who is asking for what, by key and by what selects among its answers.
    flights: std::collections::HashMap<(Key, u64), watch::Receiver<Flight>>,
}

/// What is known of one key.
#[derive(Debug, Default)]
struct Slot {
    /// The latest last.
    variants: Vec<Arc<Stored>>,
    /// Until when, since 1970, it is known that its answers are not kept.
    passes_until: Duration,
    bytes: u64,
}

/// How far somebody is who asks for what others want, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    /// Nothing is known yet.
    Asking,
    /// The answer is for nobody else.
    Alone,
}

/// Whether somebody asks already.
#[derive(Debug)]
pub enum Boarding {
    /// Nobody: whoever asks now tells the others.
    Leads(Lead),
    /// Somebody; what comes of it is told here, and its end.
    Waits(watch::Receiver<Flight>),
}

/// Leave to ask for something in the others' stead; they are told when it is dropped.
#[derive(Debug)]
pub struct Lead {
    store: Arc<Store>,
    flight: (Key, u64),
    told: watch::Sender<Flight>,
}

impl Lead {
    /// The answer is for nobody else: who waits asks by itself.
    pub fn alone(&self) {
        self.told.send_replace(Flight::Alone);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.store.shard(&self.flight.0).flights.remove(&self.flight);
    }
}

/// What is known of a key, for a request.
#[derive(Debug)]
pub struct Found {
    /// The answer that was selected.
    pub stored: Option<Arc<Stored>>,
    /// Whether there are others.
    pub has_others: bool,
    /// Whether it is known that what is asked for is not kept.
    pub passes: bool,
    /// By what requests are selected, as far as is known: a hash of it.
    pub selector: u64,
}

impl Store {
    /// For so many bytes, with entries of at most so many each.
    pub fn new(bytes_max: u64, entry_bytes_max: u64) -> Self {
        let fit = bytes_max / (LONGEST_IN_SHARD * entry_bytes_max.max(1));
        // A power of two, so that a part of the hash chooses.
        let shards = 1 << fit.clamp(1, SHARDS_MAX).ilog2();
        let shard = || Shard { slots: LruCache::unbounded(), bytes: 0, flights: Default::default() };
        Self {
            shards: (0..shards).map(|_| Mutex::new(shard())).collect(),
            shard_bytes_max: bytes_max / shards,
            entry_bytes_max,
            counts: Counts::default(),
        }
    }

    /// Longest body that is kept.
    pub fn entry_bytes_max(&self) -> u64 {
        self.entry_bytes_max
    }

    /// What is kept under a key for a request, whose fields `said` tells: all values of a name as one.
    pub fn find(&self, key: &Key, now: Duration, said: impl Fn(&HeaderName) -> Option<Vec<u8>>) -> Found {
        // Copied out, so that nothing is compared under the lock.
        let (variants, passes) = match self.shard(key).slots.get(key) {
            None => (Vec::new(), false),
            Some(slot) => (slot.variants.clone(), now < slot.passes_until),
        };
        let is_selected = |stored: &&Arc<Stored>| stored.selecting.iter().all(|(name, value)| said(name) == *value);
        let stored = variants.iter().rev().find(is_selected).cloned();
        let mut hasher = DefaultHasher::new();
        for (name, _) in variants.last().into_iter().flat_map(|latest| &latest.selecting) {
            (name.as_str(), said(name)).hash(&mut hasher);
        }
        Found { has_others: !variants.is_empty() && stored.is_none(), stored, passes, selector: hasher.finish() }
    }

    /// Asks for something in others' stead, if nobody does.
    pub fn board(self: &Arc<Self>, key: &Key, selector: u64) -> Boarding {
        let flight = (Arc::clone(key), selector);
        let mut shard = self.shard(key);
        if let Some(told) = shard.flights.get(&flight) {
            return Boarding::Waits(told.clone());
        }
        let (told, hears) = watch::channel(Flight::Asking);
        shard.flights.insert(flight.clone(), hears);
        drop(shard);
        Boarding::Leads(Lead { store: Arc::clone(self), flight, told })
    }

    /// Keeps an answer, in the place of one that is selected by the same.
    pub fn keep(&self, key: &Key, stored: Stored) {
        let bytes = stored.bytes() + key.len() as u64;
        if bytes > self.shard_bytes_max {
            return;
        }
        let stored = Arc::new(stored);
        let mut gone = Vec::new();
        let mut shard = self.shard(key);
        let slot = shard.slots.get_or_insert_mut(Arc::clone(key), Slot::default);
        let place = slot.variants.iter().position(|other| other.selecting == stored.selecting);
        let place = place.or((slot.variants.len() == VARIANTS_MAX).then_some(0));
        let replaced = place.map(|place| slot.variants.remove(place));
        slot.variants.push(stored);
        slot.passes_until = Duration::ZERO;
        let freed = replaced.as_ref().map_or(0, |replaced| replaced.bytes() + key.len() as u64);
        slot.bytes = slot.bytes + bytes - freed;
        shard.bytes = shard.bytes + bytes - freed;
        let evicted = self.make_room(&mut shard, &mut gone);
        drop(shard);
        self.counts.stored.fetch_add(1, Relaxed);
        self.counts.evicted.fetch_add(evicted, Relaxed);
        let (plus, minus) = (1, evicted + u64::from(replaced.is_some()));
        self.counts.entries.fetch_add(plus, Relaxed);
        self.counts.entries.fetch_sub(minus, Relaxed);
        self.counts.bytes.fetch_add(bytes, Relaxed);
        self.counts.bytes.fetch_sub(freed + gone.iter().map(|slot| slot.bytes).sum::<u64>(), Relaxed);
        // What was evicted is freed here, behind the lock.
    }

    /// Drops what was not asked for for longest until the rest fits; how many answers that were.
    fn make_room(&self, shard: &mut Shard, gone: &mut Vec<Slot>) -> u64 {
        let mut evicted = 0;
        while shard.bytes > self.shard_bytes_max
            && let Some((_, slot)) = shard.slots.pop_lru()
        {
            shard.bytes -= slot.bytes;
            evicted += slot.variants.len() as u64;
            gone.push(slot);
        }
        evicted
    }

    /// Remembers until then, since 1970, that what is asked for is not kept; what there is stays.
    pub fn passes(&self, key: &Key, until: Duration) {
        let mut gone = Vec::new();
        let mut shard = self.shard(key);
        let mut added = 0;
        let slot = shard.slots.get_or_insert_mut(Arc::clone(key), || {
            added = OVERHEAD_BYTES + key.len() as u64;
            Slot { bytes: added, ..Slot::default() }
        });
        slot.passes_until = until;
        shard.bytes += added;
        let evicted = self.make_room(&mut shard, &mut gone);
        drop(shard);
        self.counts.evicted.fetch_add(evicted, Relaxed);
        self.counts.entries.fetch_sub(evicted, Relaxed);
        self.counts.bytes.fetch_add(added, Relaxed);
        self.counts.bytes.fetch_sub(gone.iter().map(|slot| slot.bytes).sum::<u64>(), Relaxed);
    }

    /// Drops what is kept under a key.
    pub fn drop_key(&self, key: &Key) {
        let mut shard = self.shard(key);
        let Some(slot) = shard.slots.pop(key) else { return };
        shard.bytes -= slot.bytes;
        drop(shard);
        let count = slot.variants.len() as u64;
        self.counts.invalidated.fetch_add(count, Relaxed);
        self.counts.entries.fetch_sub(count, Relaxed);
        self.counts.bytes.fetch_sub(slot.bytes, Relaxed);
        mem::drop(slot);
    }

    fn shard(&self, key: &Key) -> std::sync::MutexGuard<'_, Shard> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let at = (hasher.finish() as usize) & (self.shards.len() - 1);
        // Nothing panics while it is held; if something did, what it left is whole.
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        text.as_bytes().into()
    }

    fn stored(body: &str, selecting: &[(&'static str, Option<&str>)]) -> Stored {
        let select = |(name, value): &(&'static str, Option<&str>)| {
            (HeaderName::from_static(name), value.map(|value| value.as_bytes().to_vec()))
        };
        Stored {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(body.as_bytes()),
            selecting: selecting.iter().map(select).collect(),
            rules: Rules::default(),
        }
    }

    fn body(store: &Store, name: &str, says: Option<&str>) -> Option<Bytes> {
        let found = store.find(&key(name), Duration::ZERO, |_| says.map(|says| says.as_bytes().to_vec()));
        found.stored.map(|stored| stored.body.clone())
    }

    #[test]
    fn an_answer_is_found_by_what_its_request_said() {
        let store = Store::new(1 << 20, 1 << 10);
        store.keep(&key("a"), stored("one", &[("x", Some("1"))]));
        store.keep(&key("a"), stored("none", &[("x", None)]));
        assert_eq!(body(&store, "a", Some("1")).as_deref(), Some(&b"one"[..]));
        assert_eq!(body(&store, "a", None).as_deref(), Some(&b"none"[..]));
        assert_eq!((body(&store, "a", Some("2")), body(&store, "b", None)), (None, None));
        store.keep(&key("a"), stored("uno", &[("x", Some("1"))]));
        assert_eq!(body(&store, "a", Some("1")).as_deref(), Some(&b"uno"[..]));
        assert_eq!(store.counts.entries.load(Relaxed), 2);
        store.drop_key(&key("a"));
        assert_eq!((body(&store, "a", None), store.counts.bytes.load(Relaxed)), (None, 0));
        assert_eq!((store.counts.invalidated.load(Relaxed), store.counts.entries.load(Relaxed)), (2, 0));
    }

    #[test]
    fn who_was_not_asked_for_for_longest_makes_room_and_the_bound_holds() {
        let store = Store::new(10_000, 5_000);
        let long = "x".repeat(2_000);
        for name in ["a", "b", "c"] {
            store.keep(&key(name), stored(&long, &[]));
        }
        assert!(body(&store, "a", None).is_some(), "it is asked for");
        store.keep(&key("d"), stored(&long, &[]));
        let there = ["a", "b", "c", "d"].map(|name| body(&store, name, None).is_some());
        assert_eq!(there, [true, false, true, true]);
        assert_eq!((store.counts.evicted.load(Relaxed), store.counts.entries.load(Relaxed)), (1, 3));
        for index in 0..10_000 {
            store.passes(&key(&format!("p{index}")), Duration::from_secs(1));
            store.keep(&key(&format!("k{}", index % 100)), stored("short", &[]));
            assert!(store.counts.bytes.load(Relaxed) <= 10_000);
        }
        store.keep(&key("long"), stored(&"x".repeat(20_000), &[]));
        assert_eq!(body(&store, "long", None), None);
    }

    #[test]
    fn one_asks_and_the_others_are_told() {
        let store = Arc::new(Store::new(1 << 20, 1 << 10));
        let Boarding::Leads(lead) = store.board(&key("a"), 0) else { panic!("nobody asks") };
        let Boarding::Waits(told) = store.board(&key("a"), 0) else { panic!("somebody asks") };
        assert!(matches!(store.board(&key("a"), 1), Boarding::Leads(_)), "another selection");
        assert_eq!(*told.borrow(), Flight::Asking);
        lead.alone();
        assert_eq!(*told.borrow(), Flight::Alone);
        drop(lead);
        assert!(told.has_changed().is_err(), "it is over");
        assert!(matches!(store.board(&key("a"), 0), Boarding::Leads(_)));
    }

    #[test]
    fn what_is_not_kept_is_remembered_for_a_while_and_forgotten_when_it_is() {
        let store = Store::new(1 << 20, 1 << 10);
        let passes = |now| store.find(&key("a"), Duration::from_secs(now), |_| None).passes;
        store.passes(&key("a"), Duration::from_secs(10));
        assert_eq!((passes(9), passes(10)), (true, false));
        store.passes(&key("a"), Duration::from_secs(20));
        store.keep(&key("a"), stored("x", &[]));
        assert!(!passes(15));
    }
}
