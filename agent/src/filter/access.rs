//! Who may ask: by the address that the connection comes from, by network namespace and by cgroup. Who is denied may not; where somebody is
//! allowed, only they may. Of somebody unknown nothing is true: an unknown source is no allowed one.

use super::{Filter, Given, Verdict};
use crate::{
    cluster::{Dialler, Outcome},
    config::filter::{self, Callers},
    route::{Request, is_caller},
};

/// See the module.
#[derive(Debug)]
pub(super) struct Access {
    config: filter::Access,
}

impl Access {
    pub(super) fn new(config: filter::Access) -> Self {
        Self { config }
    }
}

impl Filter for Access {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        let dialler = request.dialler;
        let may =
            !has(&self.config.deny, dialler) && self.config.allow.as_ref().is_none_or(|allow| has(allow, dialler));
        if may { Verdict::pass(Outcome::Passed) } else { Verdict::refuse(403, "who asks may not") }
    }
}

fn has(callers: &Callers, dialler: Option<&Dialler>) -> bool {
    let address = dialler.and_then(|dialler| dialler.address);
    address.is_some_and(|address| callers.sources.iter().any(|block| block.contains(address)))
        || callers.callers.iter().any(|caller| is_caller(caller, dialler))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        capture::{Cidr, NamespaceName},
        pattern::Pattern,
        route::CallerMatch,
    };

    fn callers(source: Option<&str>, namespace: Option<&str>) -> Callers {
        let block = |text: &str| {
            let (ip, prefix) = text.split_once('/').expect("a block");
            Cidr::new(ip.parse().expect("an address"), prefix.parse().expect("a number")).expect("a block")
        };
        let name = |name: &str| NamespaceName::At(Pattern::new(name).expect("short"));
        let caller = |text| CallerMatch { namespace: Some(name(text)), cgroup: None };
        Callers {
            sources: source.map(block).into_iter().collect(),
            callers: namespace.map(caller).into_iter().collect(),
        }
    }

    #[test]
    fn deny_comes_first_and_an_allow_list_leaves_nobody_else() {
        let dialler = Dialler {
            address: Some("10.1.2.3".parse().expect("an address")),
            namespaces: vec!["/run/netns/web".into()],
            ..Dialler::default()
        };
        let none = || callers(None, None);
        for (allow, deny, known, unknown) in [
            (None, none(), true, true),
            (Some(none()), none(), false, false),
            (Some(callers(Some("10.0.0.0/8"), None)), none(), true, false),
            (Some(callers(Some("11.0.0.0/8"), None)), none(), false, false),
            (Some(callers(Some("11.0.0.0/8"), Some("/run/netns/web"))), none(), true, false),
            (None, callers(Some("10.1.0.0/16"), None), false, true),
            (None, callers(None, Some("/run/netns/w*")), false, true),
            (Some(callers(Some("10.0.0.0/8"), None)), callers(None, Some("/run/netns/web")), false, false),
        ] {
            let access = Access::new(filter::Access { allow, deny });
            let may = |dialler: Option<&Dialler>| {
                let request = Request::of_http1(b"GET / HTTP/1.1\r\n\r\n", false, 0).by(dialler);
                let given = Given { chance: &|| 0, now: &Default::default };
                access.judge(&request, &given).outcome == Outcome::Passed
            };
            assert_eq!((may(Some(&dialler)), may(None)), (known, unknown), "{access:?}");
        }
    }
}
