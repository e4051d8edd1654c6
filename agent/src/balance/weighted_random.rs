//! At random, each with its share of the weight, in constant time: an alias table, for a worker as for the kernel half.

/// One column: with probability `threshold` / 2^32 the column's own index, otherwise `alias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Share of the column's own index; `u32::MAX` means always.
    pub threshold: u32,
    /// Index taken otherwise.
    pub alias: u32,
}

/// The alias table of `weights` (M. D. Vose, "A linear algorithm for generating random numbers with a given distribution", 1991), one
/// column for each. Zero weights count as one.
pub fn columns(weights: &[u32]) -> Vec<Column> {
    let count = weights.len();
    let total: f64 = weights.iter().map(|weight| f64::from((*weight).max(1))).sum();
    let mut share: Vec<f64> = weights.iter().map(|weight| f64::from((*weight).max(1)) * count as f64 / total).collect();
    let mut columns: Vec<Column> = (0..count)
        .map(|index| Column { threshold: u32::MAX, alias: u32::try_from(index).unwrap_or(u32::MAX) })
        .collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..count).partition(|index| share[*index] < 1.0);
    while let (Some(low), Some(high)) = (small.pop(), large.last().copied()) {
        columns[low] = Column {
            // Saturates: a share that rounds to one is always taken.
            threshold: (share[low] * 2_f64.powi(32)) as u32,
            alias: u32::try_from(high).unwrap_or(u32::MAX),
        };
        share[high] -= 1.0 - share[low];
        if share[high] < 1.0 {
            large.pop();
            small.push(high);
        }
    }
    columns
}

/// The same where weights are not equal; equal ones need no table.
pub fn columns_if_uneven(weights: &[u32]) -> Option<Vec<Column>> {
    let is_even = weights.windows(2).all(|pair| pair[0] == pair[1]);
    (!is_even).then(|| columns(weights))
}

/// The index that chance falls on: `chance` is 64 uniform random bits. `None` for no columns.
pub fn pick(columns: &[Column], chance: u64) -> Option<usize> {
    if columns.is_empty() {
        return None;
    }
    let (which, coin) = ((chance >> 32) as usize, chance as u32);
    let index = which % columns.len();
    let column = columns[index];
    Some(if coin <= column.threshold { index } else { column.alias as usize })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exact probability of each index, added up over the columns.
    fn shares(columns: &[Column]) -> Vec<f64> {
        let mut shares = vec![0.0; columns.len()];
        for (index, column) in columns.iter().enumerate() {
            let own = if column.threshold == u32::MAX { 1.0 } else { f64::from(column.threshold) / 2_f64.powi(32) };
            shares[index] += own / columns.len() as f64;
            shares[column.alias as usize] += (1.0 - own) / columns.len() as f64;
        }
        shares
    }

    #[test]
    fn every_index_has_its_share() {
        for weights in [&[1][..], &[1, 1, 1], &[1, 2, 3, 4], &[65_535, 1], &[7, 0, 3]] {
            let total: f64 = weights.iter().map(|weight| f64::from((*weight).max(1))).sum();
            for (share, weight) in shares(&columns(weights)).iter().zip(weights) {
                let expected = f64::from((*weight).max(1)) / total;
                assert!((share - expected).abs() < 1e-6, "{weights:?}: {share} for {expected}");
            }
        }
    }

    #[test]
    fn a_pick_is_an_index() {
        assert_eq!(pick(&[], 0), None);
        let columns = columns(&[1, 9]);
        for chance in [0, u64::MAX, 1 << 32, 0xffff_ffff] {
            assert!(pick(&columns, chance).is_some_and(|index| index < 2));
        }
    }
}
