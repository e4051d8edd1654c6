//! Writes a snapshot's services into the kernel half's tables, and only what differs from what stands there: each service's slots under a
//! new generation, then the service entry that names it, then away with what is left over. A hook sees the old table or the new, never a
//! mixture.

mod adopt;
mod entry;
mod gate;
mod limits;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuHashMap},
};
use sockway_common::{
    endpoint::{EjectPolicy, Endpoint, EndpointLive},
    flow::{Address, ENDPOINT_AGENT},
    limit::LimitPolicy,
    service::{
        CHUNK_SLOTS, Chunk, ChunkKey, EndpointKey, EndpointStats, STANDBY_CHUNK, STANDBY_MAX, Service, Slot,
        service_flags,
    },
    watch::Name,
};

use self::{adopt::Found, entry::Wanted};
pub use self::{
    gate::Gate,
    limits::{LimitPrograms, Limits},
};
use super::{KernelError, grace};
use crate::{
    balance,
    cluster::{self, Departure, Snapshot},
    config::Balance,
};

/// `BPF_NOEXIST`: what the hooks count in is made once and never written again.
const NO_EXIST: u64 = 1;

/// How long replaced slots stay: longer than any run of a hook.
const REPLACED_STAY: Duration = Duration::from_secs(1);

/// The tables, and what stands in them.
pub struct Tables {
    services: BpfHashMap<MapData, Address, Service>,
    slots: BpfHashMap<MapData, ChunkKey, Chunk>,
    endpoints: BpfHashMap<MapData, EndpointKey, Endpoint>,
    live: BpfHashMap<MapData, EndpointKey, EndpointLive>,
    stats: PerCpuHashMap<MapData, EndpointKey, EndpointStats>,
    cursors: BpfHashMap<MapData, u32, u64>,
    names: BpfHashMap<MapData, u32, Name>,
    limit_policies: BpfHashMap<MapData, u32, LimitPolicy>,
    eject_policies: BpfHashMap<MapData, u32, EjectPolicy>,
    written: HashMap<u32, Written>,
    found: Option<Found>,
    /// Whose slots are to be removed, and since when: a hook may have read them just before they were replaced.
    replaced: Vec<(Instant, Service)>,
    /// How many entries have room, by table.
    sizes: HashMap<&'static str, u32>,
    generation: u32,
}

/// What was written for one service, by its id.
#[derive(Debug, Default)]
struct Written {
    /// What all of it was made of; `None` when that failed half-way.
    of: Option<Origin>,
    /// `None` once no program can dial it any more.
    dialled: Option<Dialled>,
    /// Those that are chosen from, and those that leave.
    endpoints: Vec<(u32, Endpoint)>,
    name: Option<Name>,
    limits: Option<LimitPolicy>,
    eject: Option<EjectPolicy>,
}

/// What a service's entries are made of: while it is the same, so are they.
#[derive(Debug)]
struct Origin {
    service: Option<Arc<cluster::Service>>,
    departure: Option<Arc<Departure>>,
    changes: u64,
    how: How,
}

/// How a service is captured, whatever it is itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Its connections may use the shortcut.
    pub shortcut: bool,
    /// Nobody can dial it, though what was dialled before goes on and is counted.
    pub left_out: bool,
}

/// The same, of a snapshot that is looked at: nothing is kept, since nearly all of it stands already.
#[derive(Clone, Copy, Debug)]
struct Source<'s> {
    service: Option<&'s Arc<cluster::Service>>,
    departure: Option<&'s Arc<Departure>>,
    changes: u64,
    how: How,
}

impl<'s> Source<'s> {
    /// To be taken before anything of it is read.
    fn new(service: Option<&'s Arc<cluster::Service>>, departure: Option<&'s Arc<Departure>>, how: How) -> Self {
        let changes = service.map(|service| &service.changes).or(departure.map(|departure| &departure.changes));
        Self { service, departure, changes: changes.map_or(0, cluster::Changes::so_far), how }
    }

    fn is(&self, origin: &Origin) -> bool {
        self.service.map(Arc::as_ptr) == origin.service.as_ref().map(Arc::as_ptr)
            && self.departure.map(Arc::as_ptr) == origin.departure.as_ref().map(Arc::as_ptr)
            && (self.changes, self.how) == (origin.changes, origin.how)
    }

    fn kept(&self) -> Origin {
        let (service, departure) = (self.service.cloned(), self.departure.cloned());
        Origin { service, departure, changes: self.changes, how: self.how }
    }
}

/// The part of it by which programs dial.
#[derive(Clone, Debug)]
struct Dialled {
    address: Address,
    entry: Service,
    /// What the slots were made of.
    choices: Vec<balance::Choice>,
    standby: Vec<Slot>,
    recipe: (Balance, u32),
}

impl Tables {
    /// Takes the tables of a loaded object. What an earlier agent left in them stays in force until the first [`Tables::apply`].
    pub fn new(ebpf: &mut Ebpf, sizes: HashMap<&'static str, u32>) -> Result<Self, KernelError> {
        let mut tables = Self {
            services: table(ebpf, "SERVICES")?,
            slots: table(ebpf, "SLOTS")?,
            endpoints: table(ebpf, "ENDPOINTS")?,
            live: table(ebpf, "ENDPOINT_LIVE")?,
            stats: table(ebpf, "ENDPOINT_STATS")?,
            cursors: table(ebpf, "CURSORS")?,
            names: table(ebpf, "NAMES")?,
            limit_policies: table(ebpf, "LIMIT_POLICIES")?,
            eject_policies: table(ebpf, "EJECT_POLICIES")?,
            written: HashMap::new(),
            found: None,
            replaced: Vec::new(),
            sizes,
            generation: 0,
        };
        let found = tables.find();
        tables.generation = found.generation;
        tables.found = (!found.is_nothing()).then_some(found);
        Ok(tables)
    }

    /// Ids that an earlier agent gave: sockets that it sent somewhere still carry them.
    pub fn adopted(&self) -> cluster::Adopted {
        self.found.as_ref().map(Found::ids).unwrap_or_default()
    }

    /// Makes the tables say what `snapshot` says.
    pub fn apply(&mut self, snapshot: &Snapshot, how: impl Fn(&cluster::Service) -> How) -> Result<(), KernelError> {
        self.check_room(snapshot)?;
        for service in &snapshot.services {
            let source = Source::new(Some(service), snapshot.departure(service.id), how(service));
            if !self.stands(service.id, &source) {
                let wanted = Wanted::new(service, source.departure.map(AsRef::as_ref), source.how);
                self.write(&wanted, source.kept())?;
            }
        }
        for id in self.gone(snapshot) {
            let source = Source::new(None, snapshot.departure(id), How::default());
            if !self.stands(id, &source) {
                self.forget(id, source.kept())?;
            }
        }
        if self.found.take().is_some() {
            self.clear_strangers();
        }
        Ok(())
    }

    /// The services that stand in the tables and not in `snapshot`, all of whose own do.
    fn gone(&self, snapshot: &Snapshot) -> Vec<u32> {
        if self.written.len() == snapshot.services.len() {
            return Vec::new();
        }
        let kept: HashSet<u32> = snapshot.services.iter().map(|service| service.id).collect();
        self.written.keys().filter(|id| !kept.contains(id)).copied().collect()
    }

    /// Before anything is written: a snapshot that finds no room changes nothing.
    fn check_room(&self, snapshot: &Snapshot) -> Result<(), KernelError> {
        let listed = snapshot.services.iter().map(|service| service.endpoints.len()).sum::<usize>();
        let leaving = snapshot.departures.iter().map(|departure| departure.endpoints.len()).sum::<usize>();
        for (table, needed) in [("SERVICES", snapshot.services.len()), ("ENDPOINTS", listed + leaving)] {
            let room = self.sizes.get(table).copied().unwrap_or(u32::MAX);
            if needed > room as usize {
                return Err(KernelError::NoRoom { table, needed });
            }
        }
        Ok(())
    }

    /// Removes slots that were replaced a while ago. To be called from time to time; the change that replaced them need not wait for it.
    pub fn tidy(&mut self) {
        let kept = self.replaced.iter().position(|(since, _)| since.elapsed() < REPLACED_STAY);
        let kept = self.replaced.split_off(kept.unwrap_or(self.replaced.len()));
        for (_, old) in std::mem::replace(&mut self.replaced, kept) {
            self.remove_slots(&old);
        }
    }

    /// Whether just this was written for a service.
    fn stands(&self, id: u32, source: &Source<'_>) -> bool {
        self.written.get(&id).and_then(|written| written.of.as_ref()).is_some_and(|of| source.is(of))
    }

    /// Nothing that a hook looks up is written after what leads to it.
    fn write(&mut self, wanted: &Wanted, origin: Origin) -> Result<(), KernelError> {
        let id = wanted.id;
        let mut written = self.written.remove(&id).unwrap_or_default();
        written.of = None;
        let result = self.write_parts(wanted, &mut written);
        if result.is_ok() {
            written.of = Some(origin);
        }
        // Also after a failure: what stands there is to be replaced or removed one day.
        self.written.insert(id, written);
        result
    }

    fn write_parts(&mut self, wanted: &Wanted, written: &mut Written) -> Result<(), KernelError> {
        let id = wanted.id;
        if written.name != Some(wanted.name) {
            self.names.insert(id, wanted.name, 0).map_err(map_error("NAMES"))?;
            written.name = Some(wanted.name);
        }
        let in_turn = written.dialled.as_ref().is_some_and(|old| old.recipe.0 == Balance::RoundRobin);
        if wanted.balance == Balance::RoundRobin && !in_turn {
            insert_new(&mut self.cursors, id, 0, "CURSORS")?;
        }
        replace(&mut self.limit_policies, id, &mut written.limits, wanted.limits, "LIMIT_POLICIES")?;
        replace(&mut self.eject_policies, id, &mut written.eject, wanted.eject, "EJECT_POLICIES")?;
        let was_live = written.dialled.as_ref().is_some_and(|old| old.entry.flags & service_flags::LIVE != 0);
        let live = wanted.flags & service_flags::LIVE != 0;
        let gone = self.write_endpoints(wanted, written, live && !was_live)?;
        if wanted.left_out {
            self.hide(written);
        } else {
            self.write_dialled(wanted, written)?;
        }
        for endpoint in gone {
            self.remove_endpoint(EndpointKey { service: id, endpoint });
        }
        Ok(())
    }

    /// Writes what is new or other among the endpoints; the ids of those to be removed.
    fn write_endpoints(
        &mut self,
        wanted: &Wanted,
        written: &mut Written,
        all_live: bool,
    ) -> Result<Vec<u32>, KernelError> {
        if written.endpoints == wanted.endpoints && !all_live {
            return Ok(Vec::new());
        }
        let old = std::mem::take(&mut written.endpoints);
        let before: HashMap<u32, Endpoint> = old.iter().copied().collect();
        let live = wanted.flags & service_flags::LIVE != 0;
        for (endpoint, value) in &wanted.endpoints {
            let (key, old) = (EndpointKey { service: wanted.id, endpoint: *endpoint }, before.get(endpoint));
            if live && (old.is_none() || all_live) {
                insert_new(&mut self.live, key, EndpointLive::default(), "ENDPOINT_LIVE")?;
            }
            if old != Some(value) {
                self.endpoints.insert(key, value, 0).map_err(map_error("ENDPOINTS"))?;
            }
        }
        written.endpoints.clone_from(&wanted.endpoints);
        let kept = |id: &u32| wanted.endpoints.iter().any(|(endpoint, _)| endpoint == id);
        Ok(old.into_iter().map(|(id, _)| id).filter(|id| !kept(id)).collect())
    }

    /// Writes the service's entry, and its slots if they are others than those that stand there. After a failure what stood there still does.
    fn write_dialled(&mut self, wanted: &Wanted, written: &mut Written) -> Result<(), KernelError> {
        let old = written.dialled.as_ref();
        let recipe = (wanted.balance, wanted.maglev_table_size);
        let same_slots = old
            .filter(|old| old.recipe == recipe && old.choices == wanted.choices && old.standby == wanted.standby)
            .map(|old| (old.entry.generation, old.entry.slots));
        let (generation, slots) = same_slots.map_or_else(|| self.write_slots(wanted), Ok)?;
        let entry = wanted.entry(generation, slots);
        if old.is_none_or(|old| old.entry != entry || old.address != wanted.address) {
            let inserted = self.services.insert(wanted.address, entry, 0).map_err(map_error("SERVICES"));
            if inserted.is_err() && same_slots.is_none() {
                self.remove_slots(&entry);
            }
            inserted?;
        }
        let (choices, standby) = (wanted.choices.clone(), wanted.standby.clone());
        let new = Dialled { address: wanted.address, entry, choices, standby, recipe };
        if let Some(old) = written.dialled.replace(new) {
            if old.address != wanted.address {
                let _ = self.services.remove(&old.address);
            }
            if old.entry.generation != generation {
                self.replaced.push((Instant::now(), old.entry));
            }
        }
        Ok(())
    }

    /// Writes a new generation of slots: its number, and how many there are. Where they find no room beside what was replaced, that is
    /// waited for.
    fn write_slots(&mut self, wanted: &Wanted) -> Result<(u32, u32), KernelError> {
        let slots = balance::table(wanted.balance, &wanted.choices, wanted.maglev_table_size);
        match self.write_generation(wanted, &slots) {
            Err(KernelError::Full { .. }) if self.make_room() => self.write_generation(wanted, &slots),
            written => written,
        }
    }

    /// Writes all of a generation or nothing.
    fn write_generation(&mut self, wanted: &Wanted, slots: &[Slot]) -> Result<(u32, u32), KernelError> {
        self.generation = self.generation.wrapping_add(1);
        let (generation, count) = (self.generation, slots.len() as u32);
        for (first, slots) in [(0, slots), (STANDBY_CHUNK, wanted.standby.as_slice())] {
            for (chunk, part) in slots.chunks(CHUNK_SLOTS).enumerate() {
                let mut value = Chunk::default();
                value.slots[..part.len()].copy_from_slice(part);
                let key = ChunkKey { service: wanted.id, generation, chunk: first + chunk as u32 };
                if let Err(error) = self.slots.insert(key, value, 0) {
                    self.remove_slots(&wanted.entry(generation, count));
                    return Err(map_error("SLOTS")(error));
                }
            }
        }
        Ok((generation, count))
    }

    /// Removes all slots that no service names, those that an earlier agent left among them, once no hook that runs can have read of them:
    /// whether that could be waited for.
    fn make_room(&mut self) -> bool {
        if let Err(error) = grace::wait() {
            tracing::debug!(%error, "slots that were replaced stay for their time");
            return false;
        }
        let named: HashSet<(u32, u32)> =
            self.services.iter().flatten().map(|(_, service)| (service.id, service.generation)).collect();
        adopt::clear(&mut self.slots, |key| named.contains(&(key.service, key.generation)));
        self.replaced.clear();
        true
    }

    /// Removes an old table.
    fn remove_slots(&mut self, old: &Service) {
        let key = |chunk| ChunkKey { service: old.id, generation: old.generation, chunk };
        for chunk in 0..old.slots.div_ceil(CHUNK_SLOTS as u32) {
            let _ = self.slots.remove(&key(chunk));
        }
        let chunks = (STANDBY_CHUNK..).take(STANDBY_MAX.div_ceil(CHUNK_SLOTS));
        chunks.map(key).take_while(|key| self.slots.remove(key).is_ok()).count();
    }

    fn remove_endpoint(&mut self, key: EndpointKey) {
        let _ = self.endpoints.remove(&key);
        let _ = self.live.remove(&key);
        let _ = self.stats.remove(&key);
    }

    /// From now on nobody can dial it.
    fn hide(&mut self, written: &mut Written) {
        if let Some(old) = written.dialled.take() {
            let _ = self.services.remove(&old.address);
            self.remove_slots(&old.entry);
        }
    }

    /// A service that is not in the snapshot: nobody can dial it; what is left of its endpoints stays until they have left.
    fn forget(&mut self, id: u32, origin: Origin) -> Result<(), KernelError> {
        let Some(mut written) = self.written.remove(&id) else { return Ok(()) };
        self.hide(&mut written);
        let _ = self.cursors.remove(&id);
        let _ = self.limit_policies.remove(&id);
        let _ = self.eject_policies.remove(&id);
        let _ = self.open_gate(id);
        (written.limits, written.eject) = (None, None);
        let endpoints = origin.departure.as_deref().map(entry::leaving).unwrap_or_default();
        for (endpoint, value) in endpoints.iter().filter(|one| !written.endpoints.contains(one)) {
            let key = EndpointKey { service: id, endpoint: *endpoint };
            self.endpoints.insert(key, value, 0).map_err(map_error("ENDPOINTS"))?;
        }
        for (endpoint, _) in &written.endpoints {
            if !endpoints.iter().any(|(kept, _)| kept == endpoint) {
                self.remove_endpoint(EndpointKey { service: id, endpoint: *endpoint });
            }
        }
        if endpoints.is_empty() {
            let _ = self.names.remove(&id);
            let _ = self.stats.remove(&EndpointKey { service: id, endpoint: ENDPOINT_AGENT });
        } else {
            (written.endpoints, written.of) = (endpoints, Some(origin));
            self.written.insert(id, written);
        }
        Ok(())
    }

    /// Removes what was counted for endpoints that are no more: a hook that was under way may have made an entry once more.
    pub fn keep_stats(&mut self, is_there: impl Fn(&EndpointKey) -> bool) {
        let gone: Vec<EndpointKey> = self.stats.keys().flatten().filter(|key| !is_there(key)).collect();
        for key in gone {
            let _ = self.stats.remove(&key);
        }
    }

    /// What the connect hooks counted for each endpoint that was dialled, added up over the CPUs.
    pub fn stats(&self) -> Vec<(EndpointKey, EndpointStats)> {
        self.stats
            .iter()
            .flatten()
            .map(|(key, values)| {
                let mut sum = EndpointStats::default();
                values.iter().for_each(|value| sum.add(value));
                (key, sum)
            })
            .collect()
    }
}

/// Puts a service's entry in place of the one that stands there, or takes that away.
fn replace<V: Pod + PartialEq>(
    map: &mut BpfHashMap<MapData, u32, V>,
    id: u32,
    old: &mut Option<V>,
    new: Option<V>,
    name: &'static str,
) -> Result<(), KernelError> {
    if *old == new {
        return Ok(());
    }
    match new {
        Some(value) => map.insert(id, value, 0).map_err(map_error(name))?,
        None => drop(map.remove(&id)),
    }
    *old = new;
    Ok(())
}

fn insert_new<K: Pod, V: Pod>(
    map: &mut BpfHashMap<MapData, K, V>,
    key: K,
    value: V,
    name: &'static str,
) -> Result<(), KernelError> {
    unless_there(map.insert(key, value, NO_EXIST)).map_err(map_error(name))
}

/// That an element is there already is well.
fn unless_there(inserted: Result<(), MapError>) -> Result<(), MapError> {
    match inserted {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Takes a map out of a loaded object, typed.
pub fn table<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<aya::maps::Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(KernelError::NoMap { name })?;
    M::try_from(map).map_err(map_error(name))
}

/// An error of a map, by its name.
pub fn map_error(name: &'static str) -> impl Fn(MapError) -> KernelError {
    move |source| match &source {
        MapError::SyscallError(error) if error.io_error.raw_os_error() == Some(libc::E2BIG) => {
            KernelError::Full { table: name }
        }
        _ => KernelError::Map { name, source: Box::new(source) },
    }
}
