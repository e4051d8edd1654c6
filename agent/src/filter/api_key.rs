//! Who has a key may ask. Keys are compared by their digests, all of them, in a time that tells nothing of how much was right.

use http::{HeaderName, header};

use super::{Filter, Given, Local, Verdict, digest, value};
use crate::{
    cluster::Outcome,
    config::filter::identity::{self, Digest, Place},
    route::{Fields, Request},
};

/// See the module.
#[derive(Debug)]
pub(super) struct ApiKey {
    config: identity::ApiKey,
    forward_as: Option<HeaderName>,
}

impl ApiKey {
    pub(super) fn new(config: identity::ApiKey) -> Self {
        let forward_as = config.known.forward_as.as_deref().and_then(|name| name.parse().ok());
        Self { config, forward_as }
    }

    /// Whose key it is.
    fn owner(&self, key: &[u8]) -> Option<&str> {
        let said = digest(&[key]);
        let same = |kept: &Digest| kept.iter().zip(&said).fold(0, |all, (one, other)| all | (one ^ other)) == 0;
        self.config
            .keys
            .items
            .iter()
            .fold(None, |found, (name, kept)| if same(kept) { Some(name.as_str()) } else { found })
    }
}

impl Filter for ApiKey {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        let key = match &self.config.place {
            Place::Header(name) => request.header(name),
            Place::Query(name) => request.parameter(name),
        };
        let Some(owner) = key.and_then(|key| self.owner(key)) else {
            let why = if key.is_some() { "the API key is not known" } else { "an API key is needed" };
            let asked = (header::WWW_AUTHENTICATE, value("ApiKey"));
            let local = Local { fields: vec![asked], ..Local::because(401, why) };
            return Verdict::answer(Outcome::Refused, local);
        };
        let mut changes = Fields::default();
        if let (Place::Header(name), false) = (&self.config.place, self.config.known.forwards_secret)
            && let Ok(name) = name.parse()
        {
            changes = changes.remove(name);
        }
        if let Some(name) = &self.forward_as {
            changes = changes.set(name.clone(), value(owner));
        }
        Verdict { request: changes, ..Verdict::pass(Outcome::Accepted) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::filter::identity::{Known, Listed},
        filter::tests::{changed, judged},
    };

    fn filter(place: Place, forwards_secret: bool) -> ApiKey {
        let items = [("ann", "one"), ("bob", "two")].map(|(name, key)| (name.to_owned(), digest(&[key.as_bytes()])));
        let known = Known { forward_as: Some("x-client".into()), forwards_secret };
        ApiKey::new(identity::ApiKey { place, keys: Listed { file: None, items: items.to_vec() }, known })
    }

    #[test]
    fn a_known_key_passes_and_its_owner_is_told() {
        let header = || Place::Header("x-api-key".into());
        for (place, forwards, head, expected) in [
            (header(), false, "GET / HTTP/1.1\r\nX-Api-Key: one", Some("x-client: ann")),
            (header(), true, "GET / HTTP/1.1\r\nX-Api-Key: two", Some("X-Api-Key: k|x-client: bob")),
            (header(), true, "GET / HTTP/1.1\r\nX-Api-Key: three", None),
            (header(), true, "GET /?x-api-key=one HTTP/1.1", None),
            (Place::Query("key".into()), false, "GET /?a&key=two HTTP/1.1", Some("X-Api-Key: k|x-client: bob")),
            (Place::Query("key".into()), false, "GET /?key=one2 HTTP/1.1", None),
        ] {
            let verdict = judged(&filter(place, forwards), head, 0, Duration::ZERO);
            match expected {
                Some(lines) => {
                    assert_eq!(changed(&verdict.request, "X-Api-Key: k\r\nX-Client: forged\r\n"), lines, "{head}");
                    assert_eq!(verdict.end, None);
                }
                None => assert!(matches!(&verdict.end, Some(local) if local.status == 401), "{head}"),
            }
        }
    }
}
