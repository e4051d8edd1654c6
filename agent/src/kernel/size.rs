//! How large the kernel half's tables are made: as the file says, else as its services need with room to grow.
//!
//! An empty table costs its buckets alone (sixteen bytes for each entry that has room, `htab_map_alloc`), since entries take memory as they
//! come: what nobody said is therefore generous, and what was pinned larger stays so.

use std::collections::HashMap;

use super::sys::Shape;
use crate::config::{
    Balance, Config,
    maps::{Maps, Room},
};

/// Chunks of ten slots; see [`sockway_common::service::Chunk`].
const CHUNK_SLOTS: usize = sockway_common::service::CHUNK_SLOTS;

/// What the services of a configuration need.
#[derive(Clone, Copy, Debug, Default)]
struct Needs {
    services: usize,
    endpoints: usize,
    /// Endpoints of services that keep a live state of each.
    live: usize,
    chunks: usize,
    /// Whether slots change with what endpoints can take: a table of parts of 65 535 is as long as they ask for.
    uneven: bool,
}

/// One table, what its key is, and how large it is if that is not said.
struct Sized {
    table: &'static str,
    room: Room,
    unsaid: fn(&Needs) -> usize,
}

const fn sized(table: &'static str, room: Room, unsaid: fn(&Needs) -> usize) -> Sized {
    Sized { table, room, unsaid }
}

/// Every table whose size a key says. The others are of fixed size: one entry, one for each counter, tries of rules, and what is evicted
/// when it is full and only lives for the moment of a handshake.
const SIZED: [Sized; 20] = [
    sized("SERVICES", Room::Services, services),
    sized("CURSORS", Room::Services, services),
    sized("NAMES", Room::Services, services),
    sized("LIMIT_POLICIES", Room::Services, services),
    sized("EJECT_POLICIES", Room::Services, services),
    sized("SHORTCUT_STATS", Room::Services, services),
    // All that are listed, those of the reload before while they leave, and those of the one before that.
    sized("ENDPOINTS", Room::Endpoints, |needs| room(4 * needs.endpoints, 65_536)),
    sized("ENDPOINT_LIVE", Room::Endpoints, |needs| room(4 * needs.live, 16_384)),
    // A service's slots are there twice while they are swapped, and each reload may swap all.
    sized("SLOTS", Room::Slots, |needs| room(4 * needs.chunks, if needs.uneven { 262_144 } else { 16_384 })),
    sized("ENDPOINT_STATS", Room::DialledEndpoints, |needs| room(needs.endpoints + needs.services, 65_536)),
    // A value takes 560 bytes for each CPU, and one host dials few of a large cluster's endpoints.
    sized("LATENCIES", Room::DialledEndpoints, |_| 65_536),
    sized("LIMITS", Room::Sources, |_| 65_536),
    // Its entries are made with it.
    sized("AFFINITY", Room::Sources, |_| 32_768),
    // Sixteen listeners' accept queues (net.core.somaxconn is 4096).
    sized("ORIGINALS", Room::Accepting, |_| 65_536),
    sized("CONNECTED", Room::UdpSockets, |_| 65_536),
    sized("SHORTCUT", Room::ShortcutSockets, |_| 131_072),
    sized("LISTENERS", Room::Namespaces, |_| 16_384),
    sized("SOURCES", Room::Namespaces, |_| 16_384),
    sized("RULED_NAMESPACES", Room::Namespaces, |_| 16_384),
    // One for each family and worker.
    sized("INBOUND_SOCKETS", Room::Namespaces, |_| 65_536),
];

fn services(needs: &Needs) -> usize {
    room(2 * needs.services, 16_384)
}

/// Buckets come in powers of two.
fn room(needed: usize, least: usize) -> usize {
    needed.max(least).next_power_of_two()
}

impl Needs {
    fn of(config: &Config) -> Self {
        let mut needs = Self { services: config.services.len(), ..Self::default() };
        for service in &config.services {
            let (endpoints, policy) = (service.endpoints.len(), &service.policy);
            let weights: usize = service.endpoints.iter().map(|endpoint| endpoint.weight as usize).sum();
            let slots = match policy.balance {
                Balance::Maglev => policy.maglev_table_size as usize,
                // As often as its weight says, at most.
                Balance::RoundRobin | Balance::SourceHash | Balance::RingHash => weights,
                Balance::Random | Balance::WeightedRandom | Balance::LeastConnections => endpoints,
                Balance::LeastRequest | Balance::PeakEwma => endpoints,
            };
            let levels = service.endpoints.iter().any(|endpoint| endpoint.priority > 0) || policy.prefer_zone;
            needs.uneven |= levels || policy.slow_start.is_some() || policy.panic_threshold_percent > 0;
            needs.endpoints += endpoints;
            needs.chunks += slots.div_ceil(CHUNK_SLOTS);
            if policy.balance == Balance::LeastConnections || policy.eject.is_some() {
                needs.live += endpoints;
            }
        }
        needs
    }
}

/// The key that says how large a table is, as `maps.KEY`; `None`: its size is fixed.
pub fn key_of(table: &str) -> Option<&'static str> {
    SIZED.iter().find(|sized| sized.table == table).map(|sized| sized.room.key())
}

/// How many entries have room in each table of which somebody may say so, by its name. `pinned`: how many have room in the one that is
/// there, if there is one.
pub fn sizes(config: &Config, pinned: impl Fn(&str) -> Option<u32>) -> HashMap<&'static str, u32> {
    let needs = Needs::of(config);
    let size = |sized: &Sized| {
        let entries = said(&config.maps, sized).unwrap_or_else(|| {
            let unsaid = u32::try_from((sized.unsaid)(&needs)).unwrap_or(Room::MOST).min(Room::MOST);
            pinned(sized.table).unwrap_or(0).max(unsaid)
        });
        (sized.table, entries)
    };
    SIZED.iter().map(size).collect()
}

fn said(maps: &Maps, sized: &Sized) -> Option<u32> {
    let said = maps.said(sized.room)?;
    // A listener of each family for each of the workers of a host of usual size.
    Some(if sized.table == "INBOUND_SOCKETS" { said.saturating_mul(4).min(Room::MOST) } else { said })
}

/// The shapes of the object's maps, with these sizes.
pub fn resized(shapes: HashMap<String, Shape>, sizes: &HashMap<&'static str, u32>) -> HashMap<String, Shape> {
    let resize = |(name, shape): (String, Shape)| {
        let entries_max = sizes.get(name.as_str()).copied().unwrap_or(shape.entries_max);
        (name, Shape { entries_max, ..shape })
    };
    shapes.into_iter().map(resize).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn what_is_not_said_follows_from_the_services_and_never_shrinks() {
        let text =
            "services: [{name: s, address: 10.0.0.1:80, protocol: tcp, balance: maglev, endpoints: [10.1.0.1:80]}]";
        let few = file::parse(text, "F").expect("a good file");
        let many = Config { services: vec![few.services[0].clone(); 9_000], ..few.clone() };
        let said = Config { maps: Maps::default().with(Room::Services, Some(9)), ..few.clone() };
        for (config, table, pinned, expected) in [
            (&few, "SERVICES", None, 16_384),
            (&few, "SERVICES", Some(131_072), 131_072),
            (&said, "SERVICES", Some(131_072), 9),
            (&said, "NAMES", None, 9),
            (&said, "ENDPOINTS", None, 65_536),
            (&many, "SERVICES", None, 32_768),
            (&many, "SERVICES", Some(20_000), 32_768),
            (&many, "ENDPOINTS", None, 65_536),
            // 65 537 slots each: more than may be.
            (&many, "SLOTS", None, Room::MOST),
        ] {
            assert_eq!(sizes(config, |_| pinned)[table], expected, "{table}, pinned {pinned:?}");
        }
        assert_eq!((key_of("NAMES"), key_of("SETTINGS")), (Some("services"), None));
    }

    #[test]
    fn every_sized_table_is_one_that_is_kept() {
        let kept: Vec<&str> = super::super::load::names().collect();
        assert!(SIZED.iter().all(|sized| kept.contains(&sized.table)));
    }
}
