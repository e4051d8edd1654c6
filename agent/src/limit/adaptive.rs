//! May one more request pass now, by what was measured of those before? One front for the limits that find their own number.

use super::{admission::Admission, bbr::Bbr, gradient::Gradient, request::Verdict};
use crate::{
    cluster::{Adaptive, Measured},
    config::request_limit::Kind,
};

/// A limit that follows what it measures, made ready to be asked.
#[derive(Clone, Copy, Debug)]
pub enum Judge {
    /// By how much longer answers take than they could.
    Gradient(Gradient),
    /// By what passes, once the processor is busy.
    Bbr(Bbr),
    /// By how many succeed.
    Admission(Admission),
}

/// What is known of an attempt when its answer has begun, or none will.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Now, in nanoseconds.
    pub now_ns: u64,
    /// When it was sent, and when its answer began or was waited for no more; `None`: that says nothing, as how soon somebody fails.
    pub asked_and_answered_ns: Option<(u64, u64)>,
    /// Whether it was one, and said that all is well.
    pub has_succeeded: bool,
}

impl Judge {
    /// Of a limit of this kind, if it measures anything.
    pub fn of(kind: &Kind) -> Option<Self> {
        let gradient = || Gradient::of(kind).map(Self::Gradient);
        let bbr = || Bbr::of(kind).map(Self::Bbr);
        gradient().or_else(bbr).or_else(|| Admission::of(kind).map(Self::Admission))
    }

    /// Asks for one request, by 64 random bits. If it passes it is counted as open, where that matters.
    pub fn ask(&self, known: &Adaptive, now_ns: u64, chance: u64) -> Verdict {
        match (self, &known.measured) {
            (Self::Gradient(judge), Measured::Gradient(measured)) => judge.ask(&known.open, measured, now_ns),
            (Self::Bbr(judge), Measured::Bbr(measured)) => judge.ask(&known.open, measured, now_ns),
            (Self::Admission(judge), Measured::Admission(measured)) => judge.ask(measured, now_ns, chance),
            // Whoever made the one made the other of the same kind.
            _ => Verdict::After(0),
        }
    }

    /// Whether a request that passed is to be given back.
    pub fn counts_open(&self) -> bool {
        !matches!(self, Self::Admission(_))
    }

    /// Takes up what became of an attempt.
    pub fn seen(&self, known: &Adaptive, sample: Sample, chance: u64) {
        match (self, &known.measured, sample.asked_and_answered_ns) {
            (Self::Gradient(judge), Measured::Gradient(measured), Some((asked_ns, answered_ns))) => {
                judge.answered(measured, asked_ns, answered_ns, chance);
            }
            (Self::Bbr(judge), Measured::Bbr(measured), Some((asked_ns, answered_ns))) => {
                judge.answered(measured, asked_ns, answered_ns);
            }
            (Self::Admission(judge), Measured::Admission(measured), _) => {
                judge.answered(measured, sample.now_ns, sample.has_succeeded);
            }
            _ => {}
        }
    }
}
