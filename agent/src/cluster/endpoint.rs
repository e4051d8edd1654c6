//! One endpoint: its address, and what is known of it node-wide, which outlives a reload.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
};

use super::{Changes, outlier::Marks};
use crate::config;

/// One address of a cluster, with the state that every worker and the kernel half share.
#[derive(Debug)]
pub struct Endpoint {
    /// Stable while the service has this address; also its id in the kernel half.
    pub id: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// At least 1.
    pub weight: u32,
    /// Endpoints of the lowest level come first: by their priorities, and where the own zone is preferred, it before others.
    pub level: u32,
    /// Outlives a reload.
    pub state: Arc<EndpointState>,
}

impl Endpoint {
    /// As configured: 0 takes connections first.
    pub fn priority(&self) -> u32 {
        self.level / LEVELS_EACH
    }
}

/// What is known of one endpoint, node-wide.
#[derive(Debug, Default)]
pub struct EndpointState {
    /// [`DOWN`], [`EJECTED`] and [`BARRED`]: verdicts of three judges, none of whom undoes another's.
    verdicts: AtomicU8,
    /// Requests (HTTP) or connections (TCP) in flight through the agent.
    pub active: AtomicU32,
    /// What those count in its load beyond one each: see [`config::tuning::Cost`].
    pub surplus: AtomicU32,
    /// How fast it answers, where somebody goes by that.
    pub latency: Latency,
    /// Requests or connections sent to it by the agent.
    pub total: AtomicU64,
    /// Connects by the agent that failed.
    pub connect_failures: AtomicU64,
    /// A [`Stage`], as a number.
    stage: AtomicU8,
    /// The service's.
    changes: Changes,
    /// What it does not take of its weight yet, in percent.
    withheld_percent: AtomicU8,
    /// Only where somebody judges by them: most endpoints have none.
    marks: OnceLock<Box<Marks>>,
}

/// Set when it failed; cleared by a probe that it accepts.
const DOWN: u8 = 1;
/// Set when it did worse than it should; cleared when its time is over.
const EJECTED: u8 = 2;
/// Set when somebody wants it left out; cleared when the time is over, or somebody wants it back.
const BARRED: u8 = 4;

/// How fast an endpoint answers, as [`config::Balance::PeakEwma`] knows it.
#[derive(Debug, Default)]
pub struct Latency {
    /// What it takes, and when that was said, as the policy keeps them; 0: nothing is known.
    pub estimate: AtomicU64,
    /// Requests that have no answer yet.
    pub unanswered: AtomicU32,
    /// Since when all of those have been waiting at least, in nanoseconds of the monotonic clock: the first since there was none, or the last
    /// answer.
    pub since: AtomicU64,
}

/// How far an endpoint is on its way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// Takes new connections.
    #[default]
    Active,
    /// Takes none; those it has may go on for a while.
    Draining,
    /// Those it still has are being ended.
    Dead,
    /// It has none any more.
    Gone,
}

impl Stage {
    /// The field's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Dead | Self::Gone => "dead",
        }
    }

    fn of(number: u8) -> Self {
        [Self::Active, Self::Draining, Self::Dead, Self::Gone][usize::from(number)]
    }

    /// Whether the time of its connections is over: the hooks are to know.
    fn is_over(self) -> bool {
        self >= Self::Dead
    }
}

impl EndpointState {
    /// Of an endpoint that nothing is known of.
    pub(super) fn of(changes: &Changes) -> Arc<Self> {
        Arc::new(Self { changes: Changes::clone(changes), ..Self::default() })
    }

    /// How much it has to do.
    pub fn load(&self) -> u64 {
        u64::from(self.active.load(Ordering::Relaxed)) + u64::from(self.surplus.load(Ordering::Relaxed))
    }

    /// Whether it may be chosen.
    pub fn usable(&self) -> bool {
        self.verdicts.load(Ordering::Relaxed) == 0
    }

    /// Whether it failed.
    pub fn is_down(&self) -> bool {
        self.verdicts.load(Ordering::Relaxed) & DOWN != 0
    }

    /// Whether it is left out for what became of its requests.
    pub fn is_ejected(&self) -> bool {
        self.verdicts.load(Ordering::Relaxed) & EJECTED != 0
    }

    /// Whether somebody wants it left out.
    pub fn is_barred(&self) -> bool {
        self.verdicts.load(Ordering::Relaxed) & BARRED != 0
    }

    /// Sets whether somebody wants it left out. Whether that is news.
    pub fn set_barred(&self, barred: bool) -> bool {
        self.set_verdict(BARRED, barred)
    }

    /// Sets whether it failed. Whether that is news.
    pub fn set_down(&self, down: bool) -> bool {
        self.set_verdict(DOWN, down)
    }

    /// Sets whether it is left out for what became of its requests. Whether that is news.
    pub fn set_ejected(&self, ejected: bool) -> bool {
        self.set_verdict(EJECTED, ejected)
    }

    fn set_verdict(&self, verdict: u8, is_so: bool) -> bool {
        let before = match is_so {
            true => self.verdicts.fetch_or(verdict, Ordering::AcqRel),
            false => self.verdicts.fetch_and(!verdict, Ordering::AcqRel),
        };
        let is_news = (before & verdict != 0) != is_so;
        if is_news {
            self.changes.count();
        }
        is_news
    }

    /// From now on its requests are counted.
    pub(super) fn begin_marks(&self) {
        self.marks.get_or_init(Box::default);
    }

    /// What is counted of its requests, if anything is.
    pub fn marks(&self) -> Option<&Marks> {
        self.marks.get().map(Box::as_ref)
    }

    /// What it takes of its weight, from 1 to 100: less than all while it warms up.
    pub fn warm_percent(&self) -> u32 {
        100 - u32::from(self.withheld_percent.load(Ordering::Relaxed).min(99))
    }

    /// Sets what it takes of its weight; whether that is news.
    pub fn set_warm_percent(&self, percent: u32) -> bool {
        let withheld = 100 - percent.clamp(1, 100) as u8;
        let is_news = self.withheld_percent.swap(withheld, Ordering::Relaxed) != withheld;
        if is_news {
            self.changes.count();
        }
        is_news
    }

    /// How far it is on its way out.
    pub fn stage(&self) -> Stage {
        Stage::of(self.stage.load(Ordering::Relaxed))
    }

    /// Sets how far it is on its way out. That it begins to drain is no news: the snapshot that says so is another.
    pub fn set_stage(&self, stage: Stage) {
        let before = Stage::of(self.stage.swap(stage as u8, Ordering::Relaxed));
        if before.is_over() != stage.is_over() {
            self.changes.count();
        }
    }
}

/// Every priority is two levels: the own zone, if it is preferred, and elsewhere.
const LEVELS_EACH: u32 = 2;

/// The level of an endpoint as configured, seen from a zone of our own if that is preferred.
pub(super) fn level(endpoint: &config::Endpoint, own_zone: Option<&str>) -> u32 {
    let elsewhere = own_zone.is_some() && endpoint.zone.as_deref() != own_zone;
    LEVELS_EACH * u32::from(endpoint.priority) + u32::from(elsewhere)
}
