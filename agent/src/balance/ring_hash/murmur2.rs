//! MurmurHash2 of 64 bits for 64-bit hosts (A. Appleby, `MurmurHash64A`), with the seed of GNU's `std::hash`, which Envoy's ring takes.

const SEED: u64 = 0xc70f_6907;
const M: u64 = 0xc6a4_a793_5bd1_e995;
const R: u32 = 47;

/// The hash.
pub fn murmur2(bytes: &[u8]) -> u64 {
    let mut hash = SEED ^ (bytes.len() as u64).wrapping_mul(M);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word).wrapping_mul(M);
        let word = (word ^ word >> R).wrapping_mul(M);
        hash = (hash ^ word).wrapping_mul(M);
    }
    if !rest.is_empty() {
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(M);
    }
    hash = (hash ^ hash >> R).wrapping_mul(M);
    hash ^ hash >> R
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gnu_s_std_hash_says_comes_out() {
        // std::hash<std::string> of libstdc++ 12 on x86-64.
        for (text, expected) in [
            ("", 0x553e_9390_1e46_2a6e),
            ("a", 0x454d_dee4_88c1_ed6b),
            ("10.0.0.1:80_0", 0xbd8f_6461_ecff_b28c),
            ("10.0.0.1:80_1023", 0xdb1d_edbe_404c_83e6),
            ("abcdefgh", 0x783d_b3e3_8db8_98bb),
            ("hello world, twice over", 0x4ed1_878e_ccc3_d387),
        ] {
            assert_eq!(murmur2(text.as_bytes()), expected, "{text}");
        }
    }
}
