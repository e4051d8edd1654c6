//! Whether a route is for who dialled.

use crate::{cluster::Dialler, config::route::CallerMatch};

/// Whether this is true of who dialled; of somebody unknown nothing is.
pub fn is(wanted: &CallerMatch, dialler: Option<&Dialler>) -> bool {
    let Some(dialler) = dialler else { return false };
    let is_there = wanted.namespace.as_ref().is_none_or(|name| name.names(&dialler.namespaces, dialler.is_host));
    is_there
        && wanted.cgroup.as_ref().is_none_or(|pattern| {
            // A path is meant with all that is below it, as where capture is ruled.
            let above = |path: &str| {
                let ends = path.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0).chain([path.len()]);
                pattern.matches("/") || ends.into_iter().any(|end| pattern.matches(&path[..end]))
            };
            dialler.cgroup.as_deref().is_some_and(above)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{capture::NamespaceName, pattern::Pattern};

    fn wanted(namespace: Option<&str>, cgroup: Option<&str>) -> CallerMatch {
        let pattern = |text: &str| Pattern::new(text).expect("short");
        let name = |name: &str| if name == "host" { NamespaceName::Host } else { NamespaceName::At(pattern(name)) };
        CallerMatch { namespace: namespace.map(name), cgroup: cgroup.map(pattern) }
    }

    #[test]
    fn a_caller_is_known_by_namespace_and_cgroup() {
        let pod = Dialler {
            namespaces: vec!["/run/netns/cni-1".into()],
            is_host: false,
            cgroup: Some("/kubepods/pod1/main".into()),
            address: None,
        };
        let host = Dialler { is_host: true, cgroup: Some("/".into()), ..Dialler::default() };
        for (namespace, cgroup, of_pod, of_host) in [
            (None, None, true, true),
            (Some("/run/netns/cni-*"), None, true, false),
            (Some("/run/netns/cni-2"), None, false, false),
            (Some("host"), None, false, true),
            (None, Some("/kubepods/pod1/main"), true, false),
            (None, Some("/kubepods/pod1"), true, false),
            (None, Some("/kubepods/*"), true, false),
            (None, Some("/kubepods/pod"), false, false),
            (None, Some("/kubepods/pod1/main/x"), false, false),
            (None, Some("/**/main"), true, false),
            (None, Some("/"), true, true),
            (Some("/run/netns/cni-1"), Some("/kubepods/pod1"), true, false),
            (Some("/run/netns/cni-2"), Some("/kubepods/pod1"), false, false),
        ] {
            let wanted = wanted(namespace, cgroup);
            assert_eq!((is(&wanted, Some(&pod)), is(&wanted, Some(&host))), (of_pod, of_host), "{wanted:?}");
            assert!(!is(&wanted, None), "{wanted:?}");
        }
    }
}
