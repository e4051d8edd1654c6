//! Fields are set, added and removed, of requests and of responses, as a route does.

use super::{Filter, Given, Verdict};
use crate::{
    cluster::Outcome,
    config::filter,
    route::{Fields, Request},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Headers {
    request: Fields,
    response: Fields,
}

impl Headers {
    pub(super) fn new(config: &filter::Headers) -> Self {
        Self { request: Fields::fixed(&config.request), response: Fields::fixed(&config.response) }
    }
}

impl Filter for Headers {
    fn judge(&self, _: &Request<'_>, _: &Given<'_>) -> Verdict {
        Verdict { request: self.request.clone(), response: self.response.clone(), ..Verdict::pass(Outcome::Changed) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::route::{HeaderChanges, Template},
        filter::tests::{changed, judged},
    };

    #[test]
    fn both_heads_are_changed_each_by_its_own() {
        let text = |text: &str| Template::parse(text).expect("a template");
        let config = filter::Headers {
            request: HeaderChanges { set: vec![("a".into(), text("1"))], add: Vec::new(), remove: vec!["b".into()] },
            response: HeaderChanges { set: Vec::new(), add: vec![("c".into(), text("{{2}}"))], remove: Vec::new() },
        };
        let verdict = judged(&Headers::new(&config), "GET / HTTP/1.1", 0, Duration::ZERO);
        assert_eq!(changed(&verdict.request, "A: 0\r\nB: 0\r\nD: 0\r\n"), "D: 0|a: 1");
        assert_eq!(changed(&verdict.response, "C: 0\r\n"), "C: 0|c: {2}");
        assert_eq!(verdict.end, None);
    }
}
