//! In turn, weights honoured exactly over one cycle, spread as evenly as can be: the order of nginx's smooth weighted round robin,
//! computed once per snapshot, so that a pick is one counter and one index, for a worker as for the kernel half.

/// Longest cycle. Weights whose cycle is longer are scaled down to it: 4096 slots keep each share within 0.03 % of the whole.
pub const CYCLE_MAX: u32 = 4096;

/// The cycle of `weights`: indexes into it, each as often as its weight (reduced by their greatest common divisor) says.
///
/// Smooth weighted round robin: every index gains its weight each turn, the highest is taken and pays the sum of all
/// (<https://github.com/nginx/nginx/commit/52327e0627f49dbda1e8db695e63a4b0af4448b1>). Zero weights count as one.
pub fn cycle(weights: &[u32]) -> Vec<u32> {
    let weights = reduced(weights);
    let total: i64 = weights.iter().sum();
    let mut current = vec![0_i64; weights.len()];
    let mut cycle = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
    for _ in 0..total {
        let mut best = 0;
        for (index, weight) in weights.iter().enumerate() {
            current[index] += weight;
            if current[index] > current[best] {
                best = index;
            }
        }
        current[best] -= total;
        cycle.push(u32::try_from(best).unwrap_or(u32::MAX));
    }
    cycle
}

fn reduced(weights: &[u32]) -> Vec<i64> {
    let divisor = weights.iter().map(|weight| (*weight).max(1)).reduce(gcd).unwrap_or(1);
    let reduced: Vec<i64> = weights.iter().map(|weight| i64::from((*weight).max(1) / divisor)).collect();
    let total: i64 = reduced.iter().sum();
    let max = i64::from(CYCLE_MAX).max(weights.len() as i64);
    if total <= max { reduced } else { reduced.iter().map(|weight| (weight * max / total).max(1)).collect() }
}

const fn gcd(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_are_taken_one_after_another() {
        assert_eq!(cycle(&[7, 7, 7]), [0, 1, 2]);
        assert_eq!(cycle(&[1]), [0]);
        assert_eq!(cycle(&[]), [0; 0]);
    }

    #[test]
    fn nginx_s_own_example_comes_out_in_nginx_s_order() {
        assert_eq!(cycle(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn every_index_has_its_weight_in_a_cycle() {
        for weights in [&[1, 2, 3][..], &[10, 20, 30, 40], &[3, 1, 4, 1, 5, 9, 2, 6], &[100, 1]] {
            let cycle = cycle(weights);
            let divisor = weights.iter().copied().reduce(gcd).unwrap();
            for (index, weight) in weights.iter().enumerate() {
                let seen = cycle.iter().filter(|slot| **slot as usize == index).count();
                assert_eq!(seen as u32, weight / divisor, "{weights:?}");
            }
        }
    }

    #[test]
    fn a_long_cycle_is_scaled_and_nobody_is_left_out() {
        let cycle = cycle(&[65_535, 1, 65_534]);
        assert!(cycle.len() <= CYCLE_MAX as usize + 3);
        assert!(cycle.contains(&1));
    }
}
