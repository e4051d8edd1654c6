//! Who has a signed token may ask: JSON Web Tokens (RFC 7519), signed as RFC 7515 and RFC 8037 say, by keys of RFC 7517.
//!
//! The signature is checked by `ring`, whose implementation of cryptography the whole agent uses: the crates for tokens bring a second one.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderName, HeaderValue, header};
use ring::{
    hmac,
    signature::{
        self, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RsaParameters, RsaPublicKeyComponents,
        UnparsedPublicKey, VerificationAlgorithm,
    },
};
use serde_json::Value as Json;

use super::{Filter, Given, Local, Verdict, value};
use crate::{
    cluster::{Outcome, jwks::Fetched},
    config::filter::identity::{self, JwtKey, Material},
    route::{Fields, Request},
};

/// Longest token that is looked at: no head is longer.
const BYTES_MAX: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Jwt {
    config: identity::Jwt,
    header: HeaderName,
    claims: Vec<(String, HeaderName)>,
    /// The keys, if they are fetched.
    fetched: Option<Arc<Fetched>>,
}

/// Why a token does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("a token is needed")]
    Missing,
    #[error("the token is none")]
    Malformed,
    #[error("no key is known for the token")]
    NoKey,
    #[error("the keys of tokens could not be fetched yet")]
    NotFetched,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    Early,
    #[error("the token is of another issuer")]
    Issuer,
    #[error("the token is for somebody else")]
    Audience,
}

impl Jwt {
    pub(super) fn new(config: identity::Jwt, fetched: Option<Arc<Fetched>>) -> Self {
        let header = config.header.parse().unwrap_or(header::AUTHORIZATION);
        let claim = |(claim, name): &(String, String)| Some((claim.clone(), name.parse().ok()?));
        Self { header, claims: config.claims.iter().filter_map(claim).collect(), config, fetched }
    }

    /// What a token claims, if it is right.
    fn claims(&self, token: &[u8], now: Duration) -> Result<Json, Wrong> {
        let token = std::str::from_utf8(token).ok().filter(|token| token.len() <= BYTES_MAX).ok_or(Wrong::Malformed)?;
        let (signed, signature) = token.rsplit_once('.').ok_or(Wrong::Malformed)?;
        let (head, payload) = signed.split_once('.').ok_or(Wrong::Malformed)?;
        let head = json(head)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Wrong::Malformed)?;
        let algorithm = head.get("alg").and_then(Json::as_str).ok_or(Wrong::Malformed)?;
        // What must be understood, and nothing of which is (RFC 7515 section 4.1.11).
        if head.get("crit").is_some() {
            return Err(Wrong::Malformed);
        }
        let id = head.get("kid").and_then(Json::as_str);
        let fits = |key: &&JwtKey| {
            let is_named = id.is_none() || key.id.is_none() || key.id.as_deref() == id;
            is_named && key.algorithm.as_deref().is_none_or(|only| only == algorithm) && can(&key.material, algorithm)
        };
        let fetched = match &self.fetched {
            Some(fetched) => Some(fetched.keys().ok_or(Wrong::NotFetched)?),
            None => None,
        };
        let known = fetched.as_deref().unwrap_or(&self.config.keys.items);
        let mut keys = known.iter().filter(fits).peekable();
        if keys.peek().is_none() {
            // It may be of a key that is newer than they are.
            self.fetched.iter().for_each(|fetched| fetched.misses());
            return Err(Wrong::NoKey);
        }
        if !keys.any(|key| verify(&key.material, algorithm, signed.as_bytes(), &signature)) {
            return Err(Wrong::Signature);
        }
        let claims = json(payload)?;
        self.check(&claims, now)?;
        Ok(claims)
    }

    /// What is claimed of time, maker and receiver (RFC 7519 section 4.1).
    fn check(&self, claims: &Json, now: Duration) -> Result<(), Wrong> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Wrong::Malformed),
        };
        let (now, leeway) = (now.as_secs_f64(), self.config.leeway.as_secs_f64());
        if time("exp")?.is_some_and(|expires| now >= expires + leeway) {
            return Err(Wrong::Expired);
        }
        if time("nbf")?.is_some_and(|begins| now + leeway < begins) {
            return Err(Wrong::Early);
        }
        let issuer = claims.get("iss").and_then(Json::as_str);
        if self.config.issuer.is_some() && self.config.issuer.as_deref() != issuer {
            return Err(Wrong::Issuer);
        }
        let is_meant =
            |name: &Json| name.as_str().is_some_and(|name| self.config.audiences.iter().any(|it| it == name));
        let is_for = match claims.get("aud") {
            _ if self.config.audiences.is_empty() => true,
            Some(Json::Array(names)) => names.iter().any(is_meant),
            Some(name) => is_meant(name),
            None => false,
        };
        if is_for { Ok(()) } else { Err(Wrong::Audience) }
    }

    fn token<'r>(&'r self, request: &Request<'r>) -> Option<&'r [u8]> {
        let said = request.header(self.header.as_str())?;
        if self.header != header::AUTHORIZATION {
            return Some(said);
        }
        let (scheme, token) = said.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    }
}

impl Filter for Jwt {
    fn judge(&self, request: &Request<'_>, given: &Given<'_>) -> Verdict {
        let token = self.token(request).ok_or(Wrong::Missing);
        let claims = match token.and_then(|token| self.claims(token, (given.now)())) {
            Ok(claims) => claims,
            Err(Wrong::NotFetched) => {
                let local = Local::because(503, &Wrong::NotFetched.to_string());
                return Verdict::answer(Outcome::Failed, local);
            }
            Err(wrong) => {
                // RFC 6750 section 3: who has said nothing is told nothing of an error.
                let asked = if wrong == Wrong::Missing { "Bearer" } else { "Bearer error=\"invalid_token\"" };
                let fields = vec![(header::WWW_AUTHENTICATE, HeaderValue::from_static(asked))];
                let local = Local { fields, ..Local::because(401, &wrong.to_string()) };
                return Verdict::answer(Outcome::Refused, local);
            }
        };
        let mut changes = Fields::default();
        if !self.config.forwards_secret {
            changes = changes.remove(self.header.clone());
        }
        for (claim, name) in &self.claims {
            // What the client itself has said there is not heard.
            changes = match claims.get(claim) {
                Some(Json::String(text)) => changes.set(name.clone(), value(text)),
                Some(other) => changes.set(name.clone(), value(&other.to_string())),
                None => changes.remove(name.clone()),
            };
        }
        Verdict { request: changes, ..Verdict::pass(Outcome::Accepted) }
    }
}

/// An object of JSON in base64url.
fn json(part: &str) -> Result<Json, Wrong> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Wrong::Malformed)?;
    serde_json::from_slice(&bytes).ok().filter(Json::is_object).ok_or(Wrong::Malformed)
}

/// Whether a key of this kind signs by this algorithm.
fn can(material: &Material, algorithm: &str) -> bool {
    match material {
        Material::Rsa(..) => rsa(algorithm).is_some(),
        Material::P256(_) => algorithm == "ES256",
        Material::P384(_) => algorithm == "ES384",
        Material::Ed25519(_) => matches!(algorithm, "EdDSA" | "Ed25519"),
        Material::Secret(_) => shared(algorithm).is_some(),
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

fn shared(algorithm: &str) -> Option<hmac::Algorithm> {
    Some(match algorithm {
        "HS256" => hmac::HMAC_SHA256,
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => return None,
    })
}

fn verify(material: &Material, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
    let public = |by: &'static dyn VerificationAlgorithm, key: &[u8]| {
        UnparsedPublicKey::new(by, key).verify(message, signature).is_ok()
    };
    match material {
        Material::Rsa(n, e) => {
            rsa(algorithm).is_some_and(|by| RsaPublicKeyComponents { n, e }.verify(by, message, signature).is_ok())
        }
        Material::P256(point) => public(&ECDSA_P256_SHA256_FIXED, point),
        Material::P384(point) => public(&ECDSA_P384_SHA384_FIXED, point),
        Material::Ed25519(point) => public(&ED25519, point),
        Material::Secret(secret) => {
            let Some(by) = shared(algorithm) else { return false };
            hmac::verify(&hmac::Key::new(by, secret), message, signature).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use ring::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _},
    };

    use super::*;
    use crate::{
        config::filter::identity::Listed,
        filter::tests::{changed, judged},
    };

    /// A modulus, and a token that `openssl dgst -sha256 -sign` has signed with its key.
    const MODULUS: &str = "nWpzyhoeSog8h08e1OnuG705YGZvNt6b2uxXE6JaldYEmCCOq03rZHzRoTJBNCV-m-ZZkCBaewTDYYt42dC9NYuLjimK8NM664tG\
        FuV3L8axNnB4bzW1uocr3L1wrZkBddqqMIY0-DNedFMU_HPMqG3iBmeqUHZXMzxSkp5Zk94EfiQnayHl5SKct3KBJHpADQ7r3SKj\
        KGmBIA9aWG4ipS6OmiJ1oZW8a65--d9Z2oSMhh_rq-r0NH7U-WbnQUczFXBRw2ZSVNbgCD3vSXorIEfT8JxvBwZx_RieRaQ0ajMT\
        ecSIYZH6vQhTkN8r5EI5jUB8O_zM5eT0G7tWwEsRww";
    const RSA: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InIifQ.eyJzdWIiOiJhbm4ifQ.GrIgKY5IVdtLgWC6mb0zRZ1lA93DAfkMmesFJxWttKmkyi\
        hcMpaafAV1kL1pNXkNP7gwMHvVpVBgmGvi58D_MQ6KSeVoHjm7kmfrfaJggwISGMZMDpZr8zXwMzJaSi4YC-2vjzVNnWC3bFOXsl\
        edjv4JqNo-R6E01OOXYXYXuMofAMq1FgV48kBnTwIAnsbafbymrAL6N217tSq6YTwwA1bIjMWHsaNmg-tgs3e7ljYIwsV9hoPYoQ\
        AaTEHJM54vkfmGMzC0vUMsGrkmIscP-wIES7ayzkHzOFTIKMs8_baHcryz6AH4i6hGmSMoMxZ8bivodOrIvxXShssq9ppXHQ";
    /// RFC 7515, appendix A.1: it expired in 2011.
    const HMAC: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
        eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
        dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    const SECRET: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";

    fn bytes(text: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(text).expect("base64url")
    }

    fn key(id: Option<&str>, material: Material) -> JwtKey {
        JwtKey { id: id.map(str::to_owned), algorithm: None, material }
    }

    fn filter(keys: Vec<JwtKey>) -> identity::Jwt {
        identity::Jwt {
            header: "authorization".into(),
            keys: Listed { file: None, items: keys },
            remote: None,
            issuer: None,
            audiences: Vec::new(),
            leeway: Duration::from_secs(5),
            claims: vec![("sub".into(), "x-user".into()), ("n".into(), "x-n".into())],
            forwards_secret: false,
        }
    }

    fn secret() -> Material {
        Material::Secret(b"a secret".to_vec())
    }

    fn signed_by(head: &str, claims: &str, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
        let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    fn signed(claims: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"a secret");
        signed_by(r#"{"alg":"HS256"}"#, claims, |message| hmac::sign(&key, message).as_ref().to_vec())
    }

    #[test]
    fn signatures_of_each_kind_are_checked() {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).expect("a key");
        let ed = Ed25519KeyPair::from_pkcs8(ed.as_ref()).expect("a key");
        let by = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let ec = EcdsaKeyPair::generate_pkcs8(by, &random).expect("a key");
        let ec = EcdsaKeyPair::from_pkcs8(by, ec.as_ref(), &random).expect("a key");
        let ed_token = signed_by(r#"{"alg":"EdDSA"}"#, "{}", |message| ed.sign(message).as_ref().to_vec());
        let ec_token = signed_by(r#"{"alg":"ES256"}"#, "{}", |message| {
            ec.sign(&random, message).expect("a signature").as_ref().to_vec()
        });
        let ed_key = Material::Ed25519(ed.public_key().as_ref().to_vec());
        let ec_key = Material::P256(ec.public_key().as_ref().to_vec());
        let rsa_key = Material::Rsa(bytes(MODULUS), vec![1, 0, 1]);
        let now = Duration::from_secs(1_300_819_379);
        for (token, material) in [
            (HMAC.to_owned(), Material::Secret(bytes(SECRET))),
            (RSA.to_owned(), rsa_key),
            (ed_token, ed_key),
            (ec_token, ec_key),
        ] {
            let jwt = Jwt::new(filter(vec![key(None, secret()), key(None, material)]), None);
            assert!(jwt.claims(token.as_bytes(), now).is_ok(), "{token}");
            let (signed, signature) = token.rsplit_once('.').expect("a signature");
            let mut other = bytes(signature);
            other[5] ^= 1;
            let forged = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(other));
            assert_eq!(jwt.claims(forged.as_bytes(), now), Err(Wrong::Signature), "{token}");
        }
    }

    #[test]
    fn a_key_signs_by_its_own_algorithms_and_under_its_own_name() {
        // A public key is no shared secret, and nothing is signed by nobody.
        let public = Material::Rsa(b"a secret".to_vec(), vec![1, 0, 1]);
        let token = signed("{}");
        let claims =
            |keys: Vec<JwtKey>, token: &str| Jwt::new(filter(keys), None).claims(token.as_bytes(), Duration::ZERO);
        assert_eq!(claims(vec![key(None, public)], &token), Err(Wrong::NoKey));
        let none = signed_by(r#"{"alg":"none"}"#, "{}", |_| Vec::new());
        assert_eq!(claims(vec![key(None, secret())], &none), Err(Wrong::NoKey));
        let only = JwtKey { algorithm: Some("HS512".into()), ..key(None, secret()) };
        assert_eq!(claims(vec![only], &token), Err(Wrong::NoKey));
        let named = Material::Rsa(bytes(MODULUS), vec![1, 0, 1]);
        assert_eq!(claims(vec![key(Some("other"), named.clone())], RSA), Err(Wrong::NoKey));
        assert!(claims(vec![key(Some("r"), named)], RSA).is_ok());
        for bad in ["", "a", "a.b", "a.b.c", "e30.e30.e30", &format!("{token}.x")] {
            assert_eq!(claims(vec![key(None, secret())], bad), Err(Wrong::Malformed), "{bad}");
        }
        let critical = signed_by(r#"{"alg":"HS256","crit":["b64"]}"#, "{}", |_| Vec::new());
        assert_eq!(claims(vec![key(None, secret())], &critical), Err(Wrong::Malformed));
    }

    #[test]
    fn claims_are_checked_each_by_its_rule() {
        let mut config = filter(vec![key(None, secret())]);
        (config.issuer, config.audiences) = (Some("me".into()), vec!["you".into(), "they".into()]);
        let jwt = Jwt::new(config, None);
        for (claims, expected) in [
            (r#""iss":"me","aud":"you""#, Ok(())),
            (r#""iss":"me","aud":["x","they"],"exp":96,"nbf":105"#, Ok(())),
            (r#""iss":"me","aud":"you","exp":95"#, Err(Wrong::Expired)),
            (r#""iss":"me","aud":"you","exp":"96""#, Err(Wrong::Malformed)),
            (r#""iss":"me","aud":"you","nbf":106"#, Err(Wrong::Early)),
            (r#""iss":"you","aud":"you""#, Err(Wrong::Issuer)),
            (r#""aud":"you""#, Err(Wrong::Issuer)),
            (r#""iss":"me","aud":["x"]"#, Err(Wrong::Audience)),
            (r#""iss":"me""#, Err(Wrong::Audience)),
        ] {
            let token = signed(&format!("{{{claims}}}"));
            assert_eq!(jwt.claims(token.as_bytes(), Duration::from_secs(100)).map(drop), expected, "{claims}");
        }
    }

    #[test]
    fn an_endpoint_is_told_what_is_claimed_and_not_what_a_client_says() {
        let jwt = Jwt::new(filter(vec![key(None, secret())]), None);
        let ask = |said: &str| judged(&jwt, &format!("GET / HTTP/1.1\r\n{said}"), 0, Duration::ZERO);
        let token = signed(r#"{"sub":"ann","n":7}"#);
        let verdict = ask(&format!("Authorization: bearer {token}"));
        let told = changed(&verdict.request, "Authorization: x\r\nX-User: forged\r\n");
        assert_eq!((told.as_str(), verdict.end), ("x-user: ann|x-n: 7", None));
        let verdict = ask(&format!("Authorization: Bearer {}", signed("{}")));
        assert_eq!(changed(&verdict.request, "X-User: forged\r\nX-N: 1\r\n"), "");
        for (said, challenge) in [
            ("X-A: b", "Bearer"),
            ("Authorization: Basic x", "Bearer"),
            ("Authorization: Bearer x", "Bearer error=\"invalid_token\""),
        ] {
            let Some(local) = ask(said).end else { panic!("{said} passes") };
            assert_eq!((local.status, local.fields[0].1.to_str().ok()), (401, Some(challenge)), "{said}");
        }
    }

    #[test]
    fn keys_that_are_fetched_are_asked_for_until_they_are_there_and_again_when_one_is_missing() {
        let remote = identity::Remote {
            url: "http://a/".into(),
            authority: "a".into(),
            host: "a".into(),
            port: 80,
            target: "/".into(),
            tls: None,
            digest: 0,
            refresh: Duration::ZERO,
            timeout: Duration::ZERO,
        };
        let fetched = Arc::new(Fetched::new(&remote));
        let jwt = Jwt::new(filter(Vec::new()), Some(Arc::clone(&fetched)));
        let ask = || {
            let head = format!("GET / HTTP/1.1\r\nAuthorization: Bearer {}", signed("{}"));
            let verdict = judged(&jwt, &head, 0, Duration::ZERO);
            match verdict.end {
                Some(local) => (verdict.outcome, local.status),
                _ => (verdict.outcome, 200),
            }
        };
        assert_eq!(ask(), (Outcome::Failed, 503));
        fetched.bring(vec![key(None, Material::Ed25519(Vec::new()))], Duration::ZERO);
        assert_eq!(ask(), (Outcome::Refused, 401));
        fetched.bring(vec![key(None, secret())], Duration::ZERO);
        assert_eq!(ask(), (Outcome::Accepted, 200));
    }
}
