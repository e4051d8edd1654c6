//! Points as nginx places them for `hash KEY consistent`, which follows Perl's `Cache::Memcached::Fast`: each is the CRC-32 of host, zero
//! byte, port and the point before it (`ngx_http_upstream_hash_module.c`, `ngx_http_upstream_update_chash`).

/// Points for each unit of weight.
const POINTS_EACH: u64 = 160;

/// The points of these endpoints, no more than about `most` in all: weights that would need more are scaled down.
pub fn points(keys: &[String], weights: &[u32], most: usize) -> Vec<(u64, u32)> {
    let sum: u64 = weights.iter().map(|weight| u64::from((*weight).max(1))).sum();
    let units_max = (most as u64 / POINTS_EACH).max(1);
    let mut points = Vec::new();
    for (index, (key, weight)) in (0_u32..).zip(keys.iter().zip(weights)) {
        let weight = u64::from((*weight).max(1));
        let weight = if sum > units_max { (weight * units_max / sum).max(1) } else { weight };
        let (host, port) = key.rsplit_once(':').unwrap_or((key, ""));
        let base = crc32(crc32(crc32(0, host.as_bytes()), &[0]), port.as_bytes());
        let mut point = 0_u32;
        for _ in 0..weight * POINTS_EACH {
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
        let keys = ["10.0.0.1:80".to_owned(), "10.0.0.2:80".to_owned()];
        assert_eq!(points(&keys, &[1, 2], 8_388_608).len(), 480);
        assert!(points(&keys, &[65_535, 65_535], 16_000).len() <= 16_000);
    }
}
