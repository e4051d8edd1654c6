//! Endpoints that are chosen before they are asked: by who asks several of them, or one after the other.

use std::collections::BTreeMap;

use smallvec::SmallVec;

use super::{Tried, Turn};
use crate::{
    config,
    proxy::{Cluster, Hop},
};

impl Tried {
    /// As for the same request, of which only this endpoint is to be tried.
    pub fn at(&self, endpoint: usize) -> Self {
        Self { indexes: SmallVec::new(), only: Some(endpoint), ..*self }
    }

    /// The same, as one of several attempts.
    pub fn in_turn(self, turn: Turn) -> Self {
        Self { turn, ..self }
    }

    /// As for the same request, for which none was tried.
    pub fn anew(&self) -> Self {
        Self { indexes: SmallVec::new(), ..*self }
    }
}

impl Hop {
    /// An endpoint that was not tried before, which it is from now on.
    pub fn pick(&self, cluster: &Cluster, tried: &mut Tried) -> Option<usize> {
        let picked = self.choose(cluster, tried)?;
        tried.indexes.push(picked);
        Some(picked)
    }
}

impl Cluster {
    /// The endpoints that are meant, and have these labels.
    pub fn having(&self, labels: &BTreeMap<String, String>) -> Vec<usize> {
        // Those that drain take no requests, and are not among the service's.
        let active = self.service.config.endpoints.iter().filter(|endpoint| !endpoint.is_draining).enumerate();
        let has = |said: &config::Endpoint| labels.iter().all(|(name, value)| said.labels.get(name) == Some(value));
        active.filter(|(index, said)| self.has(*index) && has(said)).map(|(index, _)| index).collect()
    }
}
