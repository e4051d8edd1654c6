//! The least of a few drawn at random, or of all: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 2001.

use super::ASKS_MAX;
use crate::{chance::below, config::tuning::Among};

/// The number below `count` that costs least of those drawn, which `may` be taken. Of those that cost the same, any; of all that may,
/// where chance does not find one.
pub fn least(
    of: Among,
    count: usize,
    draw: impl Fn() -> usize,
    may: impl Fn(usize) -> bool,
    chance: impl Fn() -> u64,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let drawn = match of {
        Among::Some(draws) if (draws as usize) < count => drawn(draws as usize, draw, &may, &cost),
        Among::Some(_) | Among::All => None,
    };
    drawn.or_else(|| of_all(count, may, chance, cost))
}

/// The one that costs least of so many drawn, if so many are found. Who may not be taken is drawn again, and so is the best so far.
fn drawn(
    draws: usize,
    draw: impl Fn() -> usize,
    may: impl Fn(usize) -> bool,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    let mut found = 0;
    for _ in 0..ASKS_MAX.max(2 * draws) {
        let number = draw();
        if best.is_some_and(|(best, _)| best == number) || !may(number) {
            continue;
        }
        let cost = cost(number);
        if best.is_none_or(|(_, least)| cost < least) {
            best = Some((number, cost));
        }
        found += 1;
        if found == draws {
            return best.map(|(number, _)| number);
        }
    }
    None
}

fn of_all(
    count: usize,
    may: impl Fn(usize) -> bool,
    chance: impl Fn() -> u64,
    cost: impl Fn(usize) -> f64,
) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    let mut alike = 1;
    for number in (0..count).filter(|number| may(*number)) {
        let cost = cost(number);
        match best {
            Some((_, least)) if cost > least => continue,
            // Each of those that cost the same with the same chance, however many there will be.
            Some((_, least)) if cost == least => {
                alike += 1;
                if below(alike, chance()) > 0 {
                    continue;
                }
            }
            _ => alike = 1,
        }
        best = Some((number, cost));
    }
    best.map(|(number, _)| number)
}
