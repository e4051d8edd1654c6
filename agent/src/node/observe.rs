//! What the agent tells of itself to whoever asks the admin endpoint.

use std::sync::Arc;

use sockway_common::counter::Counter;

use super::{
    Node,
    admin::{Answer, See},
    reload::Reloader,
    senses::Senses,
    worker::Worker,
};
use crate::{
    kernel::{self, Capability},
    record::observed::{self, Observed, Total},
};

impl Node {
    pub(super) fn answer(&self, question: See, senses: &Senses) {
        let answer: Answer = (self.observe(question.counts, senses), Arc::clone(&self.config));
        let _ = question.reply.send(answer); // who asked may have gone
    }

    fn observe(&self, counts: bool, senses: &Senses) -> Observed {
        let mut observed = Observed {
            not_ready: self.not_ready.clone().or_else(|| self.kernel.lost().map(str::to_owned)),
            workers: self.workers.len(),
            connections: self.connections(),
            namespaces: self.namespaces.len(),
            snapshot: self.snapshot.load_full(),
            reloads: senses.reloader.as_ref().map(Reloader::counts).unwrap_or_default(),
            probes: senses.prober.results(),
            changes: self.history.counts(),
            audit_unwritten: self.history.unwritten(),
            differs_from_file: self.differs_from_file,
            ..Observed::default()
        };
        if counts {
            let capability = |found: &Capability| (found.name.to_owned(), found.passed);
            observed.rights = kernel::rights::held().into_iter().map(|(right, held)| (right.name, held)).collect();
            observed.capabilities = self.kernel.capabilities().iter().map(capability).collect();
            observed.kernel_totals = self.kernel.counters().into_iter().map(kernel_total).collect();
            observed.kernel_stats = self.kernel.endpoint_stats();
            observed.latencies = self.kernel.latencies();
            observed.tables = self.kernel.fill();
            observed.hook_times = self.kernel.hook_times();
            observed.shortcut_stats = self.kernel.shortcut_stats();
            observed.limits_open = self.kernel.limits_open(&observed.snapshot);
            (observed.workers_totals, observed.histograms) = observed::add_up(&self.slabs);
        }
        observed
    }

    pub(super) fn connections(&self) -> usize {
        self.workers.iter().map(Worker::connections).sum()
    }
}

fn kernel_total((counter, value): (Counter, u64)) -> Total {
    Total { name: counter.name(), labels: counter.labels(), help: counter.help(), value }
}
