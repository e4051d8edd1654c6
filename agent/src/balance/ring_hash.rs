//! By a hash, to the next point of a ring on which each endpoint has its share of points: D. Karger and others, "Consistent Hashing and
//! Random Trees", 1997. Sizes and points are those of Envoy's ring, or of nginx's `hash … consistent`.

mod ketama;
mod murmur2;

use xxhash_rust::xxh64::xxh64;

use self::{ketama::crc32, murmur2::murmur2};
use super::Site;
use crate::config::tuning::{PointHash, RingHash};

/// How many points are looked at for one whose endpoint may be chosen; who has none there is found without the ring.
const STEPS_MAX: usize = 1024;

/// The ring.
#[derive(Debug)]
pub struct Ring {
    hash: PointHash,
    /// In their order on the ring, with an index of an endpoint each.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// Of these endpoints, with these shares of what there is.
    pub fn new(rules: &RingHash, sites: &[Site], weights: &[u32]) -> Self {
        let keys: Vec<String> = sites.iter().map(|site| site.address.to_string()).collect();
        let mut points = match rules.hash {
            PointHash::Ketama => ketama::points(&keys, &ketama::counts(sites, weights, rules.size_max.into())),
            PointHash::Xxh64 => points(rules, &keys, weights, |text| xxh64(text, 0)),
            PointHash::Murmur2 => points(rules, &keys, weights, murmur2),
        };
        points.sort_by_key(|(hash, _)| *hash);
        // As nginx does it: of two in one place the first holds.
        if rules.hash == PointHash::Ketama {
            points.dedup_by_key(|(hash, _)| *hash);
        }
        Self { hash: rules.hash, points }
    }

    /// The place of a key.
    pub fn hash(&self, key: &[u8]) -> u64 {
        match self.hash {
            PointHash::Ketama => crc32(0, key).into(),
            PointHash::Xxh64 | PointHash::Murmur2 => xxh64(key, 0),
        }
    }

    /// The endpoint of the first point from `hash` on that `may` be chosen.
    pub fn choose(&self, hash: u64, may: impl Fn(usize) -> bool) -> Option<usize> {
        let hash = if self.hash == PointHash::Ketama { u64::from(hash as u32) } else { hash };
        let start = self.points.partition_point(|(point, _)| *point < hash);
        let (before, behind) = self.points.split_at(start);
        let mut last = None;
        for (_, index) in behind.iter().chain(before).take(STEPS_MAX) {
            // Neighbours are often the same endpoint's.
            if last != Some(*index) && may(*index as usize) {
                return Some(*index as usize);
            }
            last = Some(*index);
        }
        None
    }
}

/// The points as Envoy places them: so many that the endpoint of the smallest weight has a whole number of them, `size_min` in all at
/// least; or `size_max`.
fn points(rules: &RingHash, keys: &[String], weights: &[u32], hash: impl Fn(&[u8]) -> u64) -> Vec<(u64, u32)> {
    let sum: f64 = weights.iter().map(|weight| f64::from((*weight).max(1))).sum();
    let shares = weights.iter().map(|weight| f64::from((*weight).max(1)) / sum);
    let least = shares.clone().fold(1.0, f64::min);
    let scale = ((least * f64::from(rules.size_min)).ceil() / least).min(f64::from(rules.size_max));
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut placed, mut target) = (0.0, 0.0);
    for (index, (key, share)) in (0_u32..).zip(keys.iter().zip(shares)) {
        target += scale * share;
        let mut number = 0_u64;
        while placed < target {
            points.push((hash(format!("{key}_{number}").as_bytes()), index));
            number += 1;
            placed += 1.0;
        }
    }
    points
}

#[cfg(test)]
mod tests;
