//! Endpoints that somebody wants left out for a while: they come back by themselves.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use super::due::until;
use crate::cluster::EndpointState;

/// An endpoint that is left out.
#[derive(Debug)]
pub struct Bar {
    /// Its service's name.
    pub service: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What is known of it, which outlives a reload.
    pub state: Arc<EndpointState>,
}

impl Bar {
    fn is_of(&self, other: &Bar) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }
}

/// All of them, with the moments at which they come back. At most one for each endpoint.
#[derive(Debug, Default)]
pub struct Bars {
    barred: Vec<(Instant, Bar)>,
}

impl Bars {
    /// Leaves an endpoint out until then, whatever was said before.
    pub fn begin(&mut self, bar: Bar, until: Instant) {
        self.barred.retain(|(_, barred)| !barred.is_of(&bar));
        bar.state.set_barred(true);
        self.barred.push((until, bar));
    }

    /// Lets an endpoint be chosen again.
    pub fn end(&mut self, bar: &Bar) {
        self.barred.retain(|(_, barred)| !barred.is_of(bar));
        bar.state.set_barred(false);
    }

    /// Waits until the time of some is over. Dropping the future loses nothing.
    pub async fn changed(&mut self) -> Vec<(String, SocketAddr)> {
        until(self.barred.iter().map(|(until, _)| *until).min()).await;
        let now = Instant::now();
        let over = self.barred.extract_if(.., |(until, _)| *until <= now);
        over.map(|(_, bar)| {
            bar.state.set_barred(false);
            (bar.service, bar.address)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time;

    use super::*;

    fn bar(state: &Arc<EndpointState>) -> Bar {
        Bar { service: "a".to_owned(), address: SocketAddr::from(([10, 0, 0, 1], 80)), state: Arc::clone(state) }
    }

    #[tokio::test]
    async fn who_is_left_out_comes_back_when_the_time_is_over_and_not_before() {
        let (one, other) = (Arc::<EndpointState>::default(), Arc::<EndpointState>::default());
        let mut bars = Bars::default();
        let now = Instant::now();
        bars.begin(bar(&one), now + Duration::from_millis(20));
        bars.begin(bar(&other), now + Duration::from_secs(3_600));
        other.set_down(true);
        assert!(!one.usable() && one.is_barred() && !one.is_ejected() && !one.is_down());
        let over = time::timeout(Duration::from_secs(5), bars.changed()).await.expect("the time is over");
        assert_eq!(over, [("a".to_owned(), bar(&one).address)]);
        assert!(one.usable() && other.is_barred());
        bars.begin(bar(&other), Instant::now() + Duration::from_secs(3_600));
        bars.end(&bar(&other));
        assert!(!other.is_barred() && other.is_down(), "another's verdict stays");
        assert!(bars.barred.is_empty());
    }
}
