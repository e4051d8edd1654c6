//! `maps`: how many entries have room in the kernel half's tables.

use super::section::{Field, Problems, Section};
use crate::config::{
    Config,
    maps::{Maps, Room},
};

pub(super) fn maps(field: &Field<'_>, problems: &mut Problems) -> Option<Maps> {
    let keys = Room::ALL.map(Room::key);
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let mut maps = Maps::default();
    for room in Room::ALL {
        let said = section.or(room.key(), || None, |field, p| field.integer(1..=Room::MOST, p).map(Some), problems);
        maps = maps.with(room, said?);
    }
    Some(maps)
}

/// Notes what the file itself has too much of for the room that it says.
pub(super) fn refuse_too_small(field: &Field<'_>, config: &Config, problems: &mut Problems) {
    let keys = Room::ALL.map(Room::key);
    let Some(section) = Section::open(field.node, &field.path, &keys, &mut Problems::default()) else { return };
    for (key, what) in too_small(config) {
        section.get(key).inspect(|field| field.refuse(what, problems));
    }
}

/// The keys of `maps` that say too little room for what the configuration has, and what to say of each.
pub(super) fn too_small(config: &Config) -> impl Iterator<Item = (&'static str, String)> {
    let endpoints = config.services.iter().map(|service| service.endpoints.len()).sum::<usize>();
    let needed = [(Room::Services, config.services.len()), (Room::Endpoints, endpoints)];
    needed.into_iter().filter_map(|(room, needed)| {
        let said = config.maps.said(room).filter(|said| (*said as usize) < needed)?;
        let key = room.key();
        let what = format!(
            "is room for {said}, and the file has {needed} {key}; write at least {}, or leave the key out",
            needed * 2
        );
        Some((key, what))
    })
}
