//! The ring against Envoy's sizes, nginx's choices, and what may move.

use sockway_common::service::spread;

use super::*;
use crate::config::tuning::Tuning;

fn rules(hash: PointHash) -> RingHash {
    RingHash { hash, ..Tuning::default().ring_hash }
}

fn keys(count: u32) -> Vec<String> {
    (0..count).map(|n| format!("10.0.{}.{}:80", n / 256, n % 256)).collect()
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
            let ring = Ring::new(&RingHash { size_min, size_max, hash }, &keys(weights.len() as u32), weights);
            assert_eq!(shares(&ring, weights.len()), expected, "{size_min} {weights:?}");
        }
    }
}

#[test]
fn points_stand_where_their_texts_say_and_a_key_goes_to_the_next() {
    let ring = Ring::new(&rules(PointHash::Xxh64), &keys(2), &[1, 1]);
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
    let ring = Ring::new(&rules(PointHash::Xxh64), &keys(10), &[1; 10]);
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
    let servers = [11, 12, 13, 14, 15].map(|n| format!("127.0.0.{n}:180{}", 70 + n));
    let ring = Ring::new(&rules(PointHash::Ketama), &servers, &[1, 2, 1, 3, 1]);
    let recorded = include_str!("nginx.txt").bytes().filter(u8::is_ascii_digit).map(|digit| usize::from(digit - b'0'));
    let mut keys = 0;
    for (number, expected) in recorded.enumerate() {
        let hash = ring.hash(format!("key-{number}").as_bytes());
        assert_eq!(ring.choose(hash, |_| true), Some(expected), "key-{number}");
        keys += 1;
    }
    assert_eq!(keys, 10_000);
}

#[test]
fn an_endpoint_that_leaves_moves_its_own_keys_and_no_others() {
    let all = keys(10);
    for hash in [PointHash::Xxh64, PointHash::Murmur2, PointHash::Ketama] {
        let before = Ring::new(&rules(hash), &all, &[1; 10]);
        for gone in [0_usize, 4, 9] {
            let mut left = all.clone();
            left.remove(gone);
            // As many points each as before, so that all that is measured is who left.
            let rules = RingHash { size_min: 9 * 103, ..rules(hash) };
            let after = Ring::new(&rules, &left, &[1; 9]);
            let (mut moved, count) = (0, 20_000);
            for key in 0..count {
                let place = before.hash(format!("user-{key}").as_bytes());
                let old = before.choose(place, |_| true).expect("one");
                let new = after.choose(place, |_| true).expect("one");
                let new = if new >= gone { new + 1 } else { new };
                assert!(old == gone || old == new, "{hash:?}: {key} moved from {old} to {new}");
                moved += u32::from(old != new);
            }
            let share = f64::from(moved) / f64::from(count);
            println!("{hash:?}, endpoint {gone} of 10 gone: {:.2} % of the keys moved", 100.0 * share);
            // A tenth, and what a ring of 1030 points spreads unevenly.
            assert!(share <= 0.12, "{hash:?} {gone}: {share}");
        }
    }
}
