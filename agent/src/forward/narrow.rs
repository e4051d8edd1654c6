//! A narrow line: what goes over it leaves in small pieces, each when its turn has come.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// So many pieces leave in a second, if the line takes more than a byte each.
const PIECES_PER_SECOND: usize = 20;
/// Longest piece: what is faster than 20 of these a second is not made slower by waiting between more, shorter ones.
const PIECE_BYTES_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Narrow {
    /// Bytes a second. At least 1.
    rate: u32,
    /// When more may leave.
    due: Cell<Instant>,
}

impl Narrow {
    /// One that takes so many bytes a second.
    pub fn new(rate: u32) -> Self {
        Self { rate: rate.max(1), due: Cell::new(Instant::now()) }
    }

    /// How much leaves at once at most, in bytes.
    pub fn piece_bytes_max(&self) -> usize {
        (self.rate as usize / PIECES_PER_SECOND).clamp(1, PIECE_BYTES_MAX)
    }

    /// Waits until a piece may leave, which then takes its time.
    pub async fn turn(&self) {
        tokio::time::sleep_until(self.due.get().into()).await;
    }

    /// A piece of so many bytes leaves.
    pub fn leaves(&self, bytes: usize) {
        // Who had nothing to send has saved no time for later.
        self.due.set(self.due.get().max(Instant::now()) + self.takes(bytes));
    }

    /// How long so many bytes take.
    pub fn takes(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / f64::from(self.rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_any_width_takes_as_long_as_its_bytes_are_worth() {
        for (rate, piece, bytes, took_ms) in
            [(0, 1, 2, 2_000), (1, 1, 2, 2_000), (50_000, 2_500, 50_000, 1_000), (u32::MAX, 64 << 10, 1 << 20, 0)]
        {
            let narrow = Narrow::new(rate);
            assert_eq!((narrow.piece_bytes_max(), narrow.takes(bytes).as_millis()), (piece, took_ms), "{rate}");
        }
    }

    #[test]
    fn who_was_quiet_has_saved_no_time() {
        let narrow = Narrow::new(1_000);
        let before = Instant::now();
        narrow.due.set(before.checked_sub(Duration::from_secs(10)).expect("a moment"));
        narrow.leaves(500);
        let due = narrow.due.get();
        assert!(due >= before + Duration::from_millis(500), "{due:?}");
        narrow.leaves(500);
        assert_eq!(narrow.due.get(), due + Duration::from_millis(500), "who is early waits for his turn");
    }
}
