//! Where a key set is fetched from: `jwks_url`, and what belongs to it.

use std::time::Duration;

use http::{Uri, uri::Scheme};

use super::super::{
    milliseconds,
    section::{Problems, Section, shown},
    tls::trusted,
};
use crate::config::{filter::identity::Remote, tls};

const REFRESH_S: u32 = 300; // Envoy's cache_duration is 600, Spring's 300
const REFRESH_S_MAX: u32 = 86_400;
const TIMEOUT_MS: u32 = 5_000;
const TIMEOUT_MS_MAX: u32 = 60_000;

/// Reads it, if it is there; the outer nothing: something is wrong with it.
pub(super) fn remote(section: &Section<'_>, problems: &mut Problems) -> Option<Option<Remote>> {
    let refresh = section.or("jwks_refresh_s", || REFRESH_S, |field, p| field.integer(1..=REFRESH_S_MAX, p), problems);
    let timeout =
        section.or("jwks_timeout_ms", || TIMEOUT_MS, |field, p| field.integer(1..=TIMEOUT_MS_MAX, p), problems);
    let Some(field) = section.get("jwks_url") else {
        for key in ["jwks_roots", "jwks_refresh_s", "jwks_timeout_ms"] {
            if let Some(field) = section.get(key) {
                field.refuse("is about jwks_url, and there is none; write that, or remove this", problems);
            }
        }
        return Some(None);
    };
    if let Some(other) = section.get("jwks_file") {
        other.refuse("keys come from one place; leave jwks_file or jwks_url out", problems);
    }
    let url = field.text(problems)?;
    let Some(place) = place(url) else {
        let what = format!("\"{}\" is no address of a key set; write https://HOST/PATH", shown(url));
        field.refuse(what, problems);
        return None;
    };
    let roots = section.get("jwks_roots");
    let trusted = match (place.is_secure, roots) {
        (true, roots) => Some(trusted(roots, &field, problems)?),
        (false, None) => None,
        (false, Some(roots)) => {
            roots.refuse("is about https, and the keys are fetched over http; remove it", problems);
            None
        }
    };
    let digest = trusted.as_ref().map_or(0, |(_, _, digest)| *digest);
    Some(Some(Remote {
        url: url.to_owned(),
        authority: place.authority,
        host: place.host,
        port: place.port,
        target: place.target,
        tls: trusted.map(|(roots, store, _)| (roots, tls::client_of(&store))),
        digest,
        refresh: Duration::from_secs(refresh?.into()),
        timeout: milliseconds(timeout?),
    }))
}

struct Place {
    is_secure: bool,
    authority: String,
    host: String,
    port: u16,
    target: String,
}

fn place(url: &str) -> Option<Place> {
    let uri: Uri = url.parse().ok()?;
    let is_secure = match uri.scheme()? {
        scheme if *scheme == Scheme::HTTPS => true,
        scheme if *scheme == Scheme::HTTP => false,
        _ => return None,
    };
    let authority = uri.authority().filter(|authority| !authority.as_str().contains('@'))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    // What stands behind the host is a port, or nothing.
    let is_port = authority.as_str().len() == authority.host().len() || authority.port_u16().is_some();
    let port = authority.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
    let target = uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    (is_port && !host.is_empty()).then(|| Place { is_secure, authority: authority.to_string(), host, port, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_taken_apart() {
        for (url, expected) in [
            ("https://a.example/keys?x=1", Some((true, "a.example", 443, "/keys?x=1"))),
            ("http://a.example:8080", Some((false, "a.example", 8080, "/"))),
            ("http://[::1]:81/x", Some((false, "::1", 81, "/x"))),
            ("http://u:p@a/x", None),
            ("a.example/x", None),
            ("/x", None),
            ("http:///x", None),
        ] {
            let place = place(url);
            let place = place.as_ref().map(|it| (it.is_secure, it.host.as_str(), it.port, it.target.as_str()));
            assert_eq!(place, expected, "{url}");
        }
    }
}
