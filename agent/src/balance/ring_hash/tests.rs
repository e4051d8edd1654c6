//! The ring against Envoy's sizes, nginx's choices, and what may move.

use sockway_common::service::spread;

use super::*;
use crate::config::tuning::{RING_SIZE_MAX, Tuning};

fn rules(hash: PointHash) -> RingHash {
    match hash {
        PointHash::Ketama => Tuning::default().ring_hash,
        _ => RingHash { size_min: 1024, size_max: RING_SIZE_MAX, hash },
    }
}

fn sites(count: u32) -> Vec<Site> {
    (0..count).map(|n| Site::plain(([10, 0, (n / 256) as u8, n as u8], 80).into())).collect()
}

fn shares(ring: &Ring, count: usize) -> Vec<usize> {
    ring.points.iter().fold(vec![0; count], |mut shares, (_, index)| {
        shares[*index as usize] += 1;
        shares
    })
}

#[test]
fn points_are_as_many_as_envoy_s() {
    for (size_min, size_max, weights, expected) in [
        (1024, 8_388_608, &[1, 1][..], &[512, 512][..]),
        // ceil(1024 / 3) for each.
        (1024, 8_388_608, &[1, 1, 1], &[342, 342, 342]),
        (3, 8_388_608, &[1, 2], &[1, 2]),
        (6, 8_388_608, &[1, 2], &[2, 4]),
        // Too many: those whose turn it is when a whole point is due.
        (3, 4, &[1, 1, 1, 1, 1, 1], &[1, 1, 0, 1, 1, 0]),
    ] {
        for hash in [PointHash::Xxh64, PointHash::Murmur2] {
            let ring = Ring::new(&RingHash { size_min, size_max, hash }, &sites(weights.len() as u32), weights);
            assert_eq!(shares(&ring, weights.len()), expected, "{size_min} {weights:?}");
        }
    }
}

#[test]
fn points_stand_where_their_texts_say_and_a_key_goes_to_the_next() {
    let ring = Ring::new(&rules(PointHash::Xxh64), &sites(2), &[1, 1]);
    let place = |text: &str| xxh64(text.as_bytes(), 0);
    for (text, index) in [("10.0.0.0:80_0", 0), ("10.0.0.0:80_511", 0), ("10.0.0.1:80_0", 1)] {
        assert_eq!(ring.choose(place(text), |_| true), Some(index));
        let (before, behind) = (place(text) - 1, place(text) + 1);
        let next =
            |hash| ring.points.iter().find(|(point, _)| *point >= hash).or(ring.points.first()).map(|point| point.1);
        assert_eq!(ring.choose(before, |_| true), next(before).map(|index| index as usize));
        assert_eq!(ring.choose(behind, |_| true), next(behind).map(|index| index as usize));
    }
    assert_eq!(ring.choose(u64::MAX, |_| true), Some(ring.points[0].1 as usize), "behind the last comes the first");
}

#[test]
fn another_is_asked_by_the_ring_s_order_and_nobody_when_nobody_may_be() {
    let ring = Ring::new(&rules(PointHash::Xxh64), &sites(10), &[1; 10]);
    for key in 0..200 {
        let hash = spread(key);
        let own = ring.choose(hash, |_| true).expect("one");
        let other = ring.choose(hash, |index| index != own).expect("another");
        let start = ring.points.partition_point(|(point, _)| *point < hash);
        let next =
            (0..).map(|step| ring.points[(start + step) % ring.points.len()].1 as usize).find(|index| *index != own);
        assert_eq!(Some(other), next);
        assert_eq!(ring.choose(hash, |_| false), None);
    }
}

/// What nginx 1.22.1 says of `key-0` to `key-9999` with `hash $arg_k consistent` and these servers and weights.
#[test]
fn ketama_agrees_with_nginx_on_ten_thousand_keys() {
    let weights = [1, 2, 1, 3, 1];
    let servers: Vec<Site> = (11_u8..)
        .zip(weights)
        .map(|(n, weight)| Site { address: ([127, 0, 0, n], 18_070 + u16::from(n)).into(), weight })
        .collect();
    let ring = Ring::new(&rules(PointHash::Ketama), &servers, &weights);
    let recorded = include_str!("nginx.txt").bytes().filter(u8::is_ascii_digit).map(|digit| usize::from(digit - b'0'));
    let mut keys = 0;
    for (number, expected) in recorded.enumerate() {
        let hash = ring.hash(format!("key-{number}").as_bytes());
        assert_eq!(ring.choose(hash, |_| true), Some(expected), "key-{number}");
        keys += 1;
    }
    assert_eq!(keys, 10_000);
}

/// Of so many keys, the parts that move when each of some endpoints leaves: its own, and those of others.
fn moved(hash: PointHash, count: u32, gone: impl Iterator<Item = usize>) -> Vec<(f64, f64)> {
    const KEYS: u32 = 10_000;
    let all = sites(count);
    let before = Ring::new(&rules(hash), &all, &vec![1; all.len()]);
    let places: Vec<u64> = (0..KEYS).map(|key| before.hash(format!("user-{key}").as_bytes())).collect();
    let part = |gone: usize| {
        let mut left = all.clone();
        left.remove(gone);
        let after = Ring::new(&rules(hash), &left, &vec![1; left.len()]);
        let (mut own, mut of_others) = (0, 0);
        for place in &places {
            let old = before.choose(*place, |_| true).expect("one");
            let new = after.choose(*place, |_| true).expect("one");
            own += u32::from(old == gone);
            of_others += u32::from(old != gone && new + usize::from(new >= gone) != old);
        }
        (f64::from(own) / f64::from(KEYS), f64::from(of_others) / f64::from(KEYS))
    };
    gone.map(part).collect()
}

#[test]
fn an_endpoint_that_leaves_moves_its_own_keys_and_no_others_by_default() {
    for count in [2, 3, 5, 10, 20, 50, 100] {
        let some = (0..count as usize).step_by((count as usize / 10).max(1));
        let moved = moved(Tuning::default().ring_hash.hash, count, some);
        assert!(moved.iter().all(|(_, of_others)| *of_others == 0.0), "{count}: {moved:?}");
        let share = 1.0 / f64::from(count);
        let mean = moved.iter().map(|(own, _)| own).sum::<f64>() / moved.len() as f64;
        let worst = moved.iter().fold(0.0, |worst: f64, (own, _)| worst.max(*own));
        println!("one of {count} leaves: {:.2} % of the keys move, at most {:.2} %", 100.0 * mean, 100.0 * worst);
        assert!(mean <= 1.2 * share, "{count}: {mean}");
        // 160 points each: what each has is its share within 8 % (one sigma).
        assert!(worst <= 1.4 * share, "{count}: {worst}");
    }
}

/// As many points in all, however few share them: those who stay get more when one leaves, and with them others' keys.
#[test]
fn envoy_s_ring_moves_keys_of_those_who_stay_as_well() {
    for hash in [PointHash::Xxh64, PointHash::Murmur2] {
        let moved = moved(hash, 10, 0..10);
        let all = moved.iter().map(|(own, of_others)| own + of_others).sum::<f64>() / 10.0;
        println!("{hash:?}: one of 10 leaves: {:.2} % of the keys move", 100.0 * all);
        assert!((0.13..0.2).contains(&all), "{hash:?}: {all}");
    }
}

#[test]
fn who_leaves_or_comes_slowly_moves_nobody_else_s_keys_whatever_the_weights() {
    let site = |(site, weight): (Site, u32)| Site { weight, ..site };
    for (configured, before, after) in [
        // Shares are in lowest terms: those who stay take the same all the same.
        (&[2, 4, 3][..], &[2, 4, 3][..], &[1, 2, 0][..]),
        (&[100, 100, 50], &[2, 2, 1], &[1, 1, 0]),
        (&[1, 1, 1], &[10, 10, 3], &[10, 10, 1]),
    ] {
        let all: Vec<Site> = sites(3).into_iter().zip(configured.iter().copied()).map(site).collect();
        let ring = |weights: &[u32]| {
            let taking: Vec<usize> = (0..3).filter(|index| weights[*index] > 0).collect();
            let those: Vec<Site> = taking.iter().map(|index| all[*index]).collect();
            let weights: Vec<u32> = taking.iter().map(|index| weights[*index]).collect();
            let ring = Ring::new(&rules(PointHash::Ketama), &those, &weights);
            let choose = |key: u32| ring.choose(ring.hash(format!("user-{key}").as_bytes()), |_| true).expect("one");
            (0..5_000).map(|key| taking[choose(key)]).collect::<Vec<usize>>()
        };
        let (was, is) = (ring(before), ring(after));
        let moved: Vec<_> = was.iter().zip(&is).filter(|(was, is)| was != is).collect();
        assert!(!moved.is_empty() && moved.iter().all(|(was, _)| **was == 2), "{configured:?} {after:?}");
    }
}
