//! Puts another configuration in effect, whole or not at all, whoever asks for it: the file, or somebody at the admin endpoint.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::sync::oneshot;

use super::{
    Node, admin,
    bars::Bar,
    faults::{Faults, Ordered},
    history::{Entry, Record, What, diff::Difference},
    in_zone, jwks,
    reload::{self, Read},
    senses::Senses,
    share_out,
    warm::Warmer,
};
use crate::{
    cluster::Snapshot,
    config::{Capture, Config, Mode, Protocol, file, filter::Filter},
    kernel::{KernelError, memory},
};

/// Somebody wants something to change.
#[derive(Debug)]
pub struct Proposal {
    /// What is changed, in the words of the audit log.
    pub change: &'static str,
    /// Who wants it, in those words.
    pub by: String,
    /// What.
    pub wanted: Wanted,
    /// Who waits until it is written down.
    pub told: oneshot::Sender<Result<Entry, Trouble>>,
}

/// What is wanted.
#[derive(Debug)]
pub enum Wanted {
    /// Another configuration, which this text says.
    Config {
        /// What is to be in effect.
        config: Box<Config>,
        /// What says so; `None`: nobody has said all of it.
        text: Option<Arc<str>>,
        /// The generation that it was made from: it may be another by now. `None`: it does not matter.
        base: Option<u64>,
        /// How long it took to read and check.
        read_time: Duration,
    },
    /// Something that cannot be, for this reason.
    Bad(String),
    /// An endpoint is left out for as long as this, or no longer if there is no time.
    Bar {
        /// Its service's name.
        service: String,
        /// Where it listens.
        endpoint: SocketAddr,
        /// How long.
        period: Option<Duration>,
    },
    /// Something goes wrong with a service for as long as this, or nothing any more.
    Fault {
        /// The service's name.
        service: String,
        /// What, and how long unless it is renewed.
        fault: Option<(Box<Filter>, Duration)>,
    },
}

/// Why nothing is written down, either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The configuration changed meanwhile.
    #[error("the configuration changed meanwhile, it is generation {0} now; ask again")]
    Stale(u64),
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
}

impl Node {
    pub(super) fn reload(&mut self, read: Read, senses: &mut Senses) {
        let Some(reloader) = &mut senses.reloader else { return };
        let by = reloader.name();
        let what = match read {
            Read::Same => return reloader.unchanged(),
            Read::Bad(error) => {
                reloader.refused(&error);
                What::Refused(error.to_string())
            }
            Read::New(config, text) => {
                let old = Arc::clone(&self.config);
                match self.take_up(*config, true, senses) {
                    Ok(took) => {
                        if let Some(reloader) = &mut senses.reloader {
                            reloader.applied(&self.config, took);
                        }
                        (self.of_file, self.differs_from_file) = (Arc::clone(&self.config), false);
                        What::Configured { old: Some(old), new: Arc::clone(&self.config), text: Some(text) }
                    }
                    Err(error) => {
                        let error = error.told();
                        if let Some(reloader) = &mut senses.reloader {
                            reloader.refused(&error);
                        }
                        What::Refused(error)
                    }
                }
            }
        };
        self.record("reload", by, None, what, None);
    }

    /// Puts a configuration in effect, as a generation of its own if it is news; how long that took.
    fn take_up(&mut self, config: Config, is_news: bool, senses: &mut Senses) -> Result<Duration, KernelError> {
        let started = Instant::now();
        let config = in_zone(config, self.zone.as_deref());
        let snapshot = self.apply(config, is_news, &mut senses.warmer, &senses.faults)?;
        let took = started.elapsed();
        tracing::info!(generation = snapshot.generation, services = snapshot.services.len(), "configuration applied");
        self.kernel.tell_lacking(&self.config);
        senses.prober.follow(&snapshot);
        senses.gates.follow(&snapshot);
        if senses.outliers.follow(&snapshot, Instant::now()) {
            self.apply_current();
        }
        senses.canaries.follow(&snapshot, Instant::now());
        senses.processors.follow(&snapshot, self.kernel.flows().cgroup_mount(), Instant::now());
        senses.retirer.follow(&snapshot, Instant::now());
        memory::give_back();
        Ok(took)
    }

    pub(super) fn record(
        &mut self,
        change: &'static str,
        by: String,
        note: Option<String>,
        what: What,
        told: Option<oneshot::Sender<Entry>>,
    ) {
        let generation = self.snapshot.load().generation;
        self.history.add(Record { generation, change, by, note, what, told });
    }

    /// Does what somebody at the admin endpoint wants, and answers when it is written down.
    pub(super) fn propose(&mut self, proposal: Proposal, senses: &mut Senses) {
        let Proposal { change, by, wanted, told } = proposal;
        if self.renew(&wanted, senses) {
            let generation = self.snapshot.load().generation;
            let entry = Entry { generation, change: change.to_owned(), by, ..Entry::default() };
            let _ = told.send(Ok(Entry { note: Some("renewed".to_owned()), ..entry })); // who asked may have gone
            return;
        }
        let (note, what) = match self.do_wanted(wanted, senses) {
            Ok(done) => done,
            Err(trouble) => {
                let _ = told.send(Err(trouble)); // who asked may have gone
                return;
            }
        };
        match &what {
            What::Refused(error) => tracing::warn!(change, by, error, "a change is refused"),
            _ => tracing::info!(change, by, "changed"),
        }
        let (written, entry) = oneshot::channel();
        self.record(change, by, note, what, Some(written));
        tokio::spawn(async move {
            if let Ok(entry) = entry.await {
                let _ = told.send(Ok(entry));
            }
        });
    }

    fn do_wanted(&mut self, wanted: Wanted, senses: &mut Senses) -> Result<(Option<String>, What), Trouble> {
        match wanted {
            Wanted::Bad(error) => Ok((None, What::Refused(error))),
            Wanted::Config { config, text, base, read_time } => {
                self.configure(*config, text, (base, read_time), senses)
            }
            Wanted::Bar { service, endpoint, period } => {
                self.bar(&service, endpoint, period, senses).map(|what| (None, what))
            }
            Wanted::Fault { service, fault } => self.fault(&service, fault, senses).map(|what| (None, what)),
        }
    }

    fn configure(
        &mut self,
        config: Config,
        text: Option<Arc<str>>,
        (base, read_time): (Option<u64>, Duration),
        senses: &mut Senses,
    ) -> Result<(Option<String>, What), Trouble> {
        let now = self.snapshot.load().generation;
        if base.is_some_and(|base| base != now) {
            return Err(Trouble::Stale(now));
        }
        let old = Arc::clone(&self.config);
        let apply_time = match self.take_up(config, true, senses) {
            Ok(took) => took,
            Err(error) => return Ok((None, What::Refused(error.told()))),
        };
        let mut note = None;
        if let Some(reloader) = &mut senses.reloader {
            reloader.follow(&self.config, read_time, apply_time);
            let is_said = text.as_ref().is_some_and(|text| reloader.says(text)) || self.config == self.of_file;
            self.differs_from_file = !is_said;
            let name = reloader.name();
            note = self.differs_from_file.then(|| {
                format!("{name} says otherwise: this holds until that changes, or the agent is started again")
            });
        }
        Ok((note, What::Configured { old: Some(old), new: Arc::clone(&self.config), text }))
    }

    /// Has a fault that is ordered once more go on, if that is what is wanted: nothing changes then.
    fn renew(&self, wanted: &Wanted, senses: &mut Senses) -> bool {
        let Wanted::Fault { service, fault: Some((fault, period)) } = wanted else { return false };
        let ordered = Ordered { service: service.clone(), fault: (**fault).clone() };
        senses.faults.renew(&ordered, Instant::now() + *period)
    }

    /// Has something go wrong with a service for a while, or nothing any more.
    fn fault(
        &mut self,
        service: &str,
        fault: Option<(Box<Filter>, Duration)>,
        senses: &mut Senses,
    ) -> Result<What, Trouble> {
        let Some(found) = self.snapshot.load().by_name(service).cloned() else {
            return Err(Trouble::Unknown(admin::no_service(service)));
        };
        if found.config.mode == Mode::Kernel || matches!(found.config.protocol, Protocol::Tcp | Protocol::Udp) {
            let what =
                format!("the requests of service {service} are not seen by the agent: nothing can go wrong with them");
            return Ok(What::Refused(what));
        }
        let new = match fault {
            Some((fault, period)) => {
                let told = file::show_lease(&fault, period.as_millis() as u64);
                let ordered = Ordered { service: service.to_owned(), fault: *fault };
                senses.faults.begin(ordered, Instant::now() + period);
                Some(told)
            }
            None => {
                senses.faults.end(service);
                None
            }
        };
        Ok(match self.take_up(Config::clone(&self.config), false, senses) {
            Ok(_) => What::Beside(vec![Difference { path: format!("services[{service}] (fault)"), old: None, new }]),
            Err(error) => {
                senses.faults.end(service);
                What::Refused(error.told())
            }
        })
    }

    /// Takes faults back that nobody has renewed.
    pub(super) fn relieve(&mut self, faults: Vec<Ordered>, senses: &mut Senses) {
        if let Err(error) = self.take_up(Config::clone(&self.config), false, senses) {
            tracing::error!(%error, "a fault that was ordered goes on");
            return;
        }
        for Ordered { service, fault } in faults {
            tracing::info!(service, "a fault that was ordered is over: nobody has renewed it");
            let path = format!("services[{service}] (fault)");
            let old = Some(file::show_lease(&fault, 0));
            let what = What::Beside(vec![Difference { path, old, new: None }]);
            self.record("fault", "agent".to_owned(), Some("nobody has renewed it".to_owned()), what, None);
        }
    }

    /// Leaves an endpoint out for a while, or no longer.
    fn bar(
        &mut self,
        service: &str,
        address: SocketAddr,
        period: Option<Duration>,
        senses: &mut Senses,
    ) -> Result<What, Trouble> {
        let snapshot = self.snapshot.load_full();
        let unknown = |what: String| Err(Trouble::Unknown(what));
        let Some(found) = snapshot.by_name(service) else { return unknown(admin::no_service(service)) };
        let Some(endpoint) = found.endpoints.iter().find(|endpoint| endpoint.address == address) else {
            return unknown(admin::no_endpoint(service, &address.to_string()));
        };
        let was = endpoint.state.is_barred();
        let bar = Bar { service: service.to_owned(), address, state: Arc::clone(&endpoint.state) };
        match period {
            Some(period) => senses.bars.begin(bar, Instant::now() + period),
            None => senses.bars.end(&bar),
        }
        self.apply_current();
        let path = format!("services[{service}].endpoints[{address}] (ejected for ms)");
        let new = period.map(|period| json!(period.as_millis() as u64));
        Ok(What::Beside(vec![Difference { path, old: was.then(|| json!("ejected")), new }]))
    }

    /// The whole of a new configuration, or nothing of it.
    fn apply(
        &mut self,
        config: Config,
        is_news: bool,
        warmer: &mut Warmer,
        faults: &Faults,
    ) -> Result<Arc<Snapshot>, KernelError> {
        let (mut config, kept) = reload::keep_fixed(&self.config, config);
        for key in kept {
            tracing::warn!(key, "cannot change while the agent runs: the old value stays until a restart");
        }
        let old = self.snapshot.load_full();
        let laid = faults.lay_over(&config);
        let mut new = Snapshot::build(laid.as_ref().unwrap_or(&config), &old);
        if !is_news {
            new.generation = old.generation;
        }
        let new = Arc::new(new);
        for (said, service) in config.services.iter_mut().zip(&new.services) {
            if !Arc::ptr_eq(said, &service.config) && !faults.is_of(&said.name) {
                *said = Arc::clone(&service.config);
            }
        }
        self.inlets.follow(&config.inbound)?;
        if let Err(error) = self.capture(&config.capture) {
            self.steer_as_before();
            return Err(error);
        }
        warmer.follow(&old, &new, Instant::now());
        share_out(&new);
        jwks::follow(&new);
        // The workers first: what the kernel half hands over, they must know.
        self.snapshot.store(Arc::clone(&new));
        if let Err(error) = self.kernel.apply(&new) {
            self.snapshot.store(Arc::clone(&old));
            warmer.follow(&new, &old, Instant::now());
            self.capture_as_before();
            self.steer_as_before();
            self.apply_current();
            return Err(error);
        }
        self.kernel.measure_hooks(config.hook_stats);
        self.namespaces.follow_services(&new);
        let before = std::mem::replace(&mut self.config, Arc::new(config));
        if (&before.capture, &before.inbound) != (&self.config.capture, &self.config.inbound) {
            // Namespaces that are captured now are served, and others no longer.
            self.scan();
        }
        Ok(new)
    }

    fn steer_as_before(&mut self) {
        if let Err(error) = self.inlets.follow(&self.config.inbound) {
            tracing::error!(%error, "the inbound rules before are not whole again");
        }
    }

    /// Captures by other rules, or by those before if these cannot be.
    fn capture(&mut self, capture: &Capture) -> Result<(), KernelError> {
        if *capture == self.config.capture {
            return Ok(());
        }
        let captured = self.kernel.capture(capture, &mut self.namespaces);
        if captured.is_err() {
            self.capture_as_before();
        }
        captured
    }

    fn capture_as_before(&mut self) {
        let before = Arc::clone(&self.config);
        if let Err(error) = self.kernel.capture_as_before(&before.capture, &mut self.namespaces) {
            tracing::error!(%error, "the capture rules before are not whole again");
        }
    }
}
