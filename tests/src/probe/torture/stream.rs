//! The bytes of one direction: a function of seed and offset, so that a reader checks each byte without having seen the others.

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014): one step of it is a hash of a counter.
pub fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// One direction's bytes.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    seed: u64,
}

impl Stream {
    /// The bytes that belong to this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Fills `bytes` with what stands at `offset`.
    pub fn fill(self, offset: u64, bytes: &mut [u8]) {
        let mut at = offset;
        let mut rest = bytes;
        while !rest.is_empty() {
            let word = self.word(at).to_le_bytes();
            let start = (at % 8) as usize;
            let length = rest.len().min(8 - start);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&word[start..start + length]);
            (rest, at) = (later, at + length as u64);
        }
    }

    /// Offset of the first byte that is not what stands there.
    pub fn first_wrong(self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut right = vec![0; bytes.len()];
        self.fill(offset, &mut right);
        if right == bytes {
            return None;
        }
        right.iter().zip(bytes).position(|(right, found)| right != found).map(|index| offset + index as u64)
    }

    /// Where else in the first `length` bytes of the stream eight of the wrong ones stand: tells lost bytes from swapped ones.
    pub fn find(self, bytes: &[u8], length: u64) -> Option<u64> {
        let sample = bytes.get(..16)?;
        let mut whole = vec![0; length as usize];
        self.fill(0, &mut whole);
        whole.windows(16).position(|window| window == sample).map(|offset| offset as u64)
    }

    fn word(self, offset: u64) -> u64 {
        mix(self.seed ^ (offset / 8).wrapping_mul(0x0005_deec_e66d))
    }
}

#[cfg(test)]
mod tests {
    use super::Stream;

    #[test]
    fn pieces_are_the_same_as_the_whole() {
        let stream = Stream::new(7);
        let mut whole = [0; 100];
        stream.fill(0, &mut whole);
        for start in 0..90 {
            let mut piece = [0; 10];
            stream.fill(start as u64, &mut piece);
            assert_eq!(piece, whole[start..start + 10]);
        }
        assert_eq!(stream.first_wrong(3, &whole[3..]), None);
        whole[50] ^= 1;
        assert_eq!(stream.first_wrong(3, &whole[3..]), Some(50));
    }
}
