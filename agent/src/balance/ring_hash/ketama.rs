//! Points as nginx places them for `hash KEY consistent`, which follows Perl's `Cache::Memcached::Fast`: each is the CRC-32 of host, zero
//! byte, port and the point before it (`ngx_http_upstream_hash_module.c`, `ngx_http_upstream_update_chash`).

use crate::balance::Site;

/// Points for each unit of weight.
const POINTS_EACH: u128 = 160;

/// How many points each has, no more than about `most` in all: so many for each unit of its weight as configured, and fewer if it takes less
/// than its weight. What the others have does not depend on who else is there, so that their keys stay; where there would be too many
/// points, all have a half of them, or a quarter, and so on.
pub fn counts(sites: &[Site], weights: &[u32], most: u64) -> Vec<u64> {
    let of = |(site, weight): (&Site, &u32)| (u128::from((*weight).max(1)), u128::from(site.weight.max(1)));
    let fuller = |best: (u128, u128), next: (u128, u128)| if next.0 * best.1 > best.0 * next.1 { next } else { best };
    // Who takes most of its weight takes all of it.
    let Some((part, whole)) = sites.iter().zip(weights).map(of).reduce(fuller) else { return Vec::new() };
    let exact = |weight: &u32| ((u128::from((*weight).max(1)) * whole * POINTS_EACH + part / 2) / part).max(1);
    let exact: Vec<u128> = weights.iter().map(exact).collect();
    let sum: u128 = exact.iter().sum();
    let halved = (0..u128::BITS).find(|times| sum >> times <= u128::from(most)).unwrap_or_default();
    exact.iter().map(|count| ((count >> halved) as u64).max(1)).collect()
}

/// The points of these endpoints: so many of each.
pub fn points(keys: &[String], counts: &[u64]) -> Vec<(u64, u32)> {
    let mut points = Vec::new();
    for (index, (key, count)) in (0_u32..).zip(keys.iter().zip(counts)) {
        let (host, port) = key.rsplit_once(':').unwrap_or((key, ""));
        let base = crc32(crc32(crc32(0, host.as_bytes()), &[0]), port.as_bytes());
        let mut point = 0_u32;
        for _ in 0..*count {
            point = crc32(base, &point.to_le_bytes());
            points.push((u64::from(point), index));
        }
    }
    points
}

/// The CRC-32 of Ethernet and zip (IEEE 802.3) of what `before` is the CRC-32 of and `bytes` behind it.
pub fn crc32(before: u32, bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!before, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ crc >> 8)
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut crc, mut bit) = (index as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc_32_comes_out() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(crc32(0, b"12345"), b"6789"), 0xcbf4_3926);
    }

    #[test]
    fn each_unit_of_weight_has_160_points_until_there_are_too_many() {
        assert_eq!(counts(&sites(&[1, 2]), &[1, 2], 8_388_608), [160, 320]);
        assert_eq!(counts(&sites(&[1; 4]), &[1; 4], 640), [160; 4]);
        assert_eq!(counts(&sites(&[1; 4]), &[1; 4], 639), [80; 4]);
        assert!(counts(&sites(&[65_535, 65_535]), &[65_535, 65_535], 16_000).iter().sum::<u64>() <= 16_000);
        assert_eq!(counts(&[], &[], 1), [0; 0]);
    }

    #[test]
    fn shares_in_lowest_terms_are_told_from_the_weights_that_they_stand_for() {
        for (configured, taken, expected) in [
            (&[2, 4][..], &[1, 2][..], &[320, 640][..]),
            (&[100, 100], &[1, 1], &[16_000, 16_000]),
            // The last of three takes a tenth of its weight as yet, and then a quarter.
            (&[1, 1, 1], &[10, 10, 1], &[160, 160, 16]),
            (&[3, 2, 3], &[12, 8, 3], &[480, 320, 120]),
        ] {
            assert_eq!(counts(&sites(configured), taken, 8_388_608), expected, "{configured:?} {taken:?}");
        }
    }

    fn sites(weights: &[u32]) -> Vec<Site> {
        let site =
            |(index, weight): (u8, &u32)| Site { weight: *weight, ..Site::plain(([10, 0, 0, index], 80).into()) };
        (0..).zip(weights).map(site).collect()
    }
}
