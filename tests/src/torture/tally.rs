//! What came of a torture on one field: figures, and everything that went wrong in the words of the program that saw it.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::Order;
use crate::{metrics::Metrics, process::Process, wait};

/// The figures of one field.
#[derive(Clone, Debug)]
pub struct Tally {
    /// The field's name.
    pub field: &'static str,
    /// What was to be done.
    pub order: Order,
    /// Transfers that have ended, well or not.
    pub transfers: u64,
    /// Bytes read and found right, on both sides.
    pub bytes: u64,
    /// Transfers in which another byte came than was sent, or not all of them, or more.
    pub wrong_bytes: u64,
    /// Transfers whose end, or beginning, was not the one that was planned: an error, or nothing after the last byte.
    pub lost_ends: u64,
    /// Transfers that stood still.
    pub hangs: u64,
    /// Messages that the shortcut moved.
    pub redirected_messages: u64,
    /// Bytes that the shortcut moved.
    pub redirected_bytes: u64,
    /// Of them, bytes that went past the agent.
    pub joined_bytes: u64,
    /// Directions that went back to TCP because the peer did not read.
    pub fallbacks: u64,
    /// How often the agent was killed and started again.
    pub agent_kills: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What each side counted besides: how often each manner was met, and each deviation.
    pub counts: BTreeMap<String, u64>,
    /// What went wrong, told in full.
    pub trouble: Vec<String>,
}

impl Tally {
    pub(super) fn begin(field: &'static str, order: &Order) -> Self {
        Self {
            field,
            order: *order,
            transfers: 0,
            bytes: 0,
            wrong_bytes: 0,
            lost_ends: 0,
            hangs: 0,
            redirected_messages: 0,
            redirected_bytes: 0,
            joined_bytes: 0,
            fallbacks: 0,
            agent_kills: 0,
            elapsed: Duration::ZERO,
            counts: BTreeMap::new(),
            trouble: Vec::new(),
        }
    }

    /// Whether nothing at all went wrong, and all that was asked for was done.
    pub fn is_clean(&self) -> bool {
        let others_end_it =
            self.order.seconds_max.is_some() || self.order.kills.is_some_and(|kills| self.agent_kills >= kills);
        let all = others_end_it || self.transfers == self.order.transfers;
        all && self.ended_well() && (self.wrong_bytes, self.lost_ends, self.hangs) == (0, 0, 0)
    }

    /// Whether both programs did what they should.
    pub(super) fn ended_well(&self) -> bool {
        self.trouble.is_empty()
    }

    /// Reads what one of the two programs found out; it has ended, or is given `patience` to do so.
    pub(super) fn read(&mut self, side: &str, process: &mut Process, patience: Duration) {
        wait::whether(patience, || process.ended().is_some());
        let told = process.stdout();
        for (count, what) in told.lines().filter_map(line) {
            match what {
                "transfers" if side == "client" => self.transfers += count,
                "bytes" => self.bytes += count,
                "wrong bytes" => self.wrong_bytes += count,
                "lost ends" => self.lost_ends += count,
                "hangs" => self.hangs += count,
                _ => *self.counts.entry(format!("{side}: {what}")).or_default() += count,
            }
        }
        let complaints = process.stderr();
        match process.ended() {
            Some(status) if status.success() && complaints.is_empty() => {}
            Some(status) => self.trouble.push(format!("{side}, {status}:\n{complaints}")),
            None => self.trouble.push(format!("{side} has not ended:\n{complaints}")),
        }
    }

    pub(super) fn metrics(&mut self, metrics: &Metrics) {
        let kernel = |name: &str| metrics.get(&format!("sockway_kernel_{name}"), &[]) as u64;
        self.redirected_messages = kernel("shortcut_messages_total");
        self.redirected_bytes = kernel("shortcut_bytes_total");
        self.joined_bytes = kernel("joined_bytes_total");
        self.fallbacks = kernel("shortcut_fallbacks_total");
    }

    /// One JSON object.
    pub fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "field": self.field, "seed": self.order.seed, "first": self.order.first, "asked": self.order.transfers,
            "transfers": self.transfers, "bytes": self.bytes, "wrong_bytes": self.wrong_bytes, "lost_ends": self.lost_ends,
            "hangs": self.hangs, "redirected_messages": self.redirected_messages, "redirected_bytes": self.redirected_bytes, "joined_bytes": self.joined_bytes,
            "fallbacks": self.fallbacks, "agent_kills": self.agent_kills, "seconds": self.elapsed.as_secs_f64(),
            "clean": self.is_clean(), "counts": self.counts, "trouble": self.trouble,
        })
    }
}

/// `     12  what` of a program's report.
fn line(text: &str) -> Option<(u64, &str)> {
    let (count, what) = text.trim_start().split_once("  ")?;
    Some((count.parse().ok()?, what))
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<9} {:>8} transfers, {:>9.1} MB, wrong bytes {}, lost ends {}, hangs {}; {} messages redirected, {} fallbacks",
            self.field,
            self.transfers,
            self.bytes as f64 / 1e6,
            self.wrong_bytes,
            self.lost_ends,
            self.hangs,
            self.redirected_messages,
            self.fallbacks
        )?;
        if self.agent_kills > 0 {
            write!(f, ", agent killed {} times", self.agent_kills)?;
        }
        write!(f, "; {:.1} s", self.elapsed.as_secs_f64())?;
        if !self.is_clean() {
            let (field, seed) = (self.field, self.order.seed);
            write!(f, "\nFAILED: field {field}, seed {seed}")?;
            self.trouble.iter().try_for_each(|trouble| write!(f, "\n{trouble}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seconds_max: Option<u64>) -> Order {
        Order { seed: 7, first: 0, transfers: 10, seconds_max, kills: None, interrupted: || false }
    }

    #[test]
    fn what_was_not_done_is_no_success_unless_the_time_was_over() {
        let done = |transfers, seconds| Tally { transfers, ..Tally::begin("off", &order(seconds)) };
        assert!(done(10, None).is_clean() && done(9, Some(1)).is_clean());
        assert!(!done(9, None).is_clean());
        let killed = |agent_kills| {
            let order = Order { kills: Some(100), ..order(None) };
            Tally { transfers: 9, agent_kills, ..Tally::begin("killed", &order) }
        };
        assert!(killed(100).is_clean() && !killed(99).is_clean());
    }

    #[test]
    fn each_kind_of_failure_is_one_and_names_field_and_seed() {
        let clean = Tally { transfers: 10, ..Tally::begin("off", &order(None)) };
        for failed in [
            Tally { wrong_bytes: 1, ..clean.clone() },
            Tally { lost_ends: 1, ..clean.clone() },
            Tally { hangs: 1, ..clean.clone() },
            Tally { trouble: vec!["killed".into()], ..clean.clone() },
        ] {
            assert!(!failed.is_clean());
            assert!(failed.to_string().contains("FAILED: field off, seed 7"), "{failed}");
        }
    }

    #[test]
    fn lines_of_a_report_are_read_and_others_are_not() {
        assert_eq!(line("       12  writer Plain"), Some((12, "writer Plain")));
        assert_eq!(line("ready"), None);
    }
}
