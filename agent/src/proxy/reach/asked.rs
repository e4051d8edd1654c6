//! What of a request's head its endpoint is chosen by.

use super::Tried;
use crate::{
    balance::key,
    config::tuning::Cost,
    proxy::{Cluster, Hop, asker::Asker},
    route::Request,
};

impl Tried {
    /// None yet, for a request. Its head is looked at only where the service's policy goes by it.
    pub fn for_request<'r>(
        hop: &Hop,
        cluster: &'r Cluster,
        asker: Asker,
        request: impl FnOnce() -> Request<'r>,
    ) -> Self {
        let tuning = &cluster.service.config.policy.tuning;
        let by_source = Self { is_untold: asker.is_untold, ..Self::by(asker.source) };
        if tuning.hash_on.is_empty() && tuning.cost.is_none() {
            return by_source;
        }
        let request = request();
        let hash = |of| asker.hash(of, &cluster.balancer, Some(&request));
        // As Envoy: who has nothing to be known by goes anywhere.
        let key = (!tuning.hash_on.is_empty()).then(|| key::of(&tuning.hash_on, hash).unwrap_or_else(|| hop.chance()));
        let cost = tuning.cost.as_ref().map_or(1, |cost| cost_of(cost, &request));
        Self { key, cost, ..by_source }
    }

    /// The same for a connection of which nothing is read.
    pub fn for_connection(cluster: &Cluster, asker: Asker) -> Self {
        let rules = &cluster.service.config.policy.tuning.hash_on;
        Self { key: key::of(rules, |of| asker.hash(of, &cluster.balancer, None)), ..Self::by(asker.source) }
    }
}

/// What a request counts: as it says, if it says a number that it may.
fn cost_of<'r>(rules: &'r Cost, request: &Request<'r>) -> u32 {
    let said = rules.header.as_deref().and_then(|name| request.header(name));
    let said = said.and_then(|value| str::from_utf8(value).ok()?.parse::<u32>().ok());
    said.filter(|cost| *cost > 0).unwrap_or(rules.default).min(rules.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_cost_within_bounds() {
        let rules = Cost { header: Some("x-cost".to_owned()), default: 2, max: 50 };
        for (said, expected) in [("7", 7), ("51", 50), ("0", 2), ("-1", 2), ("a", 2), ("", 2), ("99999999999", 2)] {
            let head = format!("GET / HTTP/1.1\r\nX-Cost: {said}\r\n\r\n");
            assert_eq!(cost_of(&rules, &Request::of_http1(head.as_bytes(), false, 0)), expected, "{said}");
        }
        assert_eq!(cost_of(&rules, &Request::of_http1(b"GET / HTTP/1.1\r\n\r\n", false, 0)), 2);
    }
}
