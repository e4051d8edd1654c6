//! Faults that somebody has ordered for a while: laid over the configuration, no part of it, and taken back when nobody renews them.

use std::{sync::Arc, time::Instant};

use super::due::until;
use crate::config::{Config, Service, filter::Filter};

/// What goes wrong with a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Ordered {
    /// Its name.
    pub service: String,
    /// What.
    pub fault: Filter,
}

/// All that is ordered, with the moments at which it ends. At most one for each service.
#[derive(Debug, Default)]
pub struct Faults {
    leases: Vec<(Instant, Ordered)>,
}

impl Faults {
    /// Has this go wrong until then; what was ordered for the service before ends.
    pub fn begin(&mut self, ordered: Ordered, until: Instant) {
        self.end(&ordered.service);
        self.leases.push((until, ordered));
    }

    /// Has it go wrong until then, if it does already. Whether it does.
    pub fn renew(&mut self, ordered: &Ordered, until: Instant) -> bool {
        let lease = self.leases.iter_mut().find(|(_, known)| known == ordered);
        lease.map(|lease| lease.0 = until).is_some()
    }

    /// Nothing goes wrong with this service any more. What did.
    pub fn end(&mut self, service: &str) -> Option<Ordered> {
        let place = self.leases.iter().position(|(_, ordered)| ordered.service == service)?;
        Some(self.leases.swap_remove(place).1)
    }

    /// Whether something goes wrong with this service.
    pub fn is_of(&self, service: &str) -> bool {
        self.leases.iter().any(|(_, ordered)| ordered.service == service)
    }

    /// The configuration with what goes wrong; `None`: nothing does.
    pub fn lay_over(&self, config: &Config) -> Option<Config> {
        if self.leases.is_empty() {
            return None;
        }
        let mut config = config.clone();
        for (_, ordered) in &self.leases {
            for service in config.services.iter_mut().filter(|service| service.name == ordered.service) {
                let mut filters = service.filters.clone();
                filters.push(ordered.fault.clone());
                *service = Arc::new(Service { filters, ..Service::clone(service) });
            }
        }
        Some(config)
    }

    /// Waits until some have run out, which then are no more. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Vec<Ordered> {
        until(self.leases.iter().map(|(until, _)| *until).min()).await;
        let now = Instant::now();
        self.leases.extract_if(.., |(until, _)| *until <= now).map(|(_, ordered)| ordered).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time;

    use super::*;
    use crate::config::file;

    fn ordered(service: &str, delay_ms: u32) -> Ordered {
        let (fault, _) = file::lease(&format!("{{delay_ms: {delay_ms}, for_ms: 1}}"), "F").expect("a good order");
        Ordered { service: service.to_owned(), fault }
    }

    #[tokio::test]
    async fn a_fault_that_nobody_renews_ends_by_itself() {
        let mut faults = Faults::default();
        let now = Instant::now();
        let (soon, late) = (now + Duration::from_millis(20), now + Duration::from_secs(3_600));
        assert!(!faults.renew(&ordered("a", 1), soon), "there is none yet");
        faults.begin(ordered("a", 1), late);
        assert!(faults.renew(&ordered("a", 1), soon));
        faults.begin(ordered("b", 1), late);
        assert_eq!(time::timeout(Duration::from_secs(5), faults.changed()).await, Ok(vec![ordered("a", 1)]));
        assert!(!faults.is_of("a") && faults.is_of("b"));
        assert!(!faults.renew(&ordered("b", 2), late), "another fault");
        faults.begin(ordered("b", 2), late);
        assert_eq!((faults.end("b"), faults.end("b")), (Some(ordered("b", 2)), None));
    }

    #[test]
    fn a_fault_is_laid_over_its_service_and_no_other() {
        let service = |last: u8| {
            format!("{{name: s{last}, address: '10.0.0.{last}:80', protocol: http, endpoints: ['10.1.0.1:80']}}")
        };
        let text = format!("services: [{}, {}]", service(1), service(2));
        let config = file::parse(&text, "F").expect("a good file");
        let mut faults = Faults::default();
        assert_eq!(faults.lay_over(&config), None);
        faults.begin(ordered("s2", 1), Instant::now());
        let laid = faults.lay_over(&config).expect("a fault");
        assert!(Arc::ptr_eq(&laid.services[0], &config.services[0]));
        assert_eq!(laid.services[1].filters, [ordered("s2", 1).fault]);
        assert_eq!(laid.services[1].endpoints, config.services[1].endpoints);
    }
}
