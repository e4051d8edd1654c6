//! Who has a name and a password may ask (RFC 7617). What bcrypt makes of a password takes a tenth of a second by design: that is worked out
//! beside the worker, and a password that was right once is known again by a digest.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderName, HeaderValue, header};

use super::{Filter, Given, Local, Verdict, Work, digest, sha1, value};
use crate::{
    cluster::Outcome,
    config::filter::identity::{self, Password},
    route::{Fields, Request},
};

/// How many passwords that were right are known again; more make each other be worked out anew.
const REMEMBERED: usize = 4096;
/// bcrypt looks at no more than 72 bytes, and htpasswd writes none longer; no name is longer than a head's field may be.
const PASSWORD_BYTES_MAX: usize = 72;

/// See the module.
#[derive(Debug)]
pub(super) struct Basic {
    config: identity::Basic,
    forward_as: Option<HeaderName>,
    challenge: HeaderValue,
    known: Arc<Remembered>,
}

/// Passwords that were right, by 64 bits of a digest in which what is kept of the password, salt included, is a part: nobody who does not know
/// that can look for another with the same.
struct Remembered(Box<[AtomicU64]>);

impl std::fmt::Debug for Remembered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Remembered")
    }
}

impl Remembered {
    fn new() -> Self {
        Self((0..REMEMBERED).map(|_| AtomicU64::new(0)).collect())
    }

    /// Where a digest would stand, and as what.
    fn place(&self, digest: &[u8; 32]) -> (&AtomicU64, u64) {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| digest[at + index]));
        (&self.0[word(8) as usize % REMEMBERED], word(0) | 1)
    }

    fn has(&self, digest: &[u8; 32]) -> bool {
        let (place, word) = self.place(digest);
        place.load(Relaxed) == word
    }

    fn keep(&self, digest: &[u8; 32]) {
        let (place, word) = self.place(digest);
        place.store(word, Relaxed);
    }
}

impl Basic {
    pub(super) fn new(config: identity::Basic) -> Self {
        let forward_as = config.known.forward_as.as_deref().and_then(|name| name.parse().ok());
        let challenge = value(&format!("Basic realm=\"{}\", charset=\"UTF-8\"", config.realm));
        Self { config, forward_as, challenge, known: Arc::new(Remembered::new()) }
    }

    fn accept(&self, name: &str) -> Verdict {
        let mut changes = Fields::default();
        if !self.config.known.forwards_secret {
            changes = changes.remove(header::AUTHORIZATION);
        }
        if let Some(field) = &self.forward_as {
            changes = changes.set(field.clone(), value(name));
        }
        Verdict { request: changes, ..Verdict::pass(Outcome::Accepted) }
    }

    fn refuse(&self, why: &str) -> Verdict {
        let fields = vec![(header::WWW_AUTHENTICATE, self.challenge.clone())];
        Verdict::answer(Outcome::Refused, Local { fields, ..Local::because(401, why) })
    }

    /// Judges a password that is kept by bcrypt.
    fn slow(&self, hash: &str, (name, password): (&str, &[u8]), is_known: bool) -> Verdict {
        let digest = digest(&[name.as_bytes(), b":", password, b":", hash.as_bytes()]);
        if is_known && self.known.has(&digest) {
            return self.accept(name);
        }
        let (accept, refuse) = (self.accept(name), self.refuse("name or password is wrong"));
        let (hash, password, known) = (hash.to_owned(), password.to_vec(), Arc::clone(&self.known));
        let work = move || {
            if bcrypt::verify(&password, &hash).unwrap_or(false) && is_known {
                known.keep(&digest);
                return accept;
            }
            refuse
        };
        Verdict { work: Some(Work::new(work)), ..Verdict::pass(Outcome::Passed) }
    }
}

impl Filter for Basic {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        let Some(said) = request.header("authorization").and_then(credentials) else {
            return self.refuse("a name and a password are needed");
        };
        let Some((name, password)) = split(&said).filter(|(_, password)| password.len() <= PASSWORD_BYTES_MAX) else {
            return self.refuse("name or password is wrong");
        };
        let users = &self.config.users.items;
        match users.iter().find(|(known, _)| known == name) {
            Some((_, Password::Sha1(kept))) if sha1(password) == *kept => self.accept(name),
            Some((_, Password::Sha1(_))) => self.refuse("name or password is wrong"),
            Some((_, Password::Bcrypt(hash))) => self.slow(hash, (name, password), true),
            // Who is not known takes as long as who is.
            None => match users.iter().find_map(|(_, password)| bcrypt_of(password)) {
                Some(hash) => self.slow(hash, (name, password), false),
                None => self.refuse("name or password is wrong"),
            },
        }
    }
}

fn bcrypt_of(password: &Password) -> Option<&str> {
    match password {
        Password::Bcrypt(hash) => Some(hash),
        Password::Sha1(_) => None,
    }
}

/// What stands behind `Basic`.
fn credentials(field: &[u8]) -> Option<Vec<u8>> {
    let (scheme, rest) = field.split_at_checked(6)?;
    let encoded = scheme.eq_ignore_ascii_case(b"basic ").then(|| rest.trim_ascii())?;
    STANDARD.decode(encoded).ok()
}

fn split(said: &[u8]) -> Option<(&str, &[u8])> {
    let colon = said.iter().position(|byte| *byte == b':')?;
    Some((std::str::from_utf8(&said[..colon]).ok()?, &said[colon + 1..]))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        config::filter::identity::{Known, Listed},
        filter::tests::{changed, judged},
    };

    /// As `htpasswd -nbB -C 4 ann one` and `htpasswd -nbs bob two` write them.
    fn filter() -> Basic {
        let hash = bcrypt::hash("one", 4).expect("a hash");
        let users = vec![("ann".to_owned(), Password::Bcrypt(hash)), ("bob".to_owned(), Password::Sha1(sha1(b"two")))];
        let known = Known { forward_as: Some("x-user".into()), forwards_secret: false };
        Basic::new(identity::Basic { realm: "R".into(), users: Listed { file: None, items: users }, known })
    }

    fn ask(filter: &Basic, said: &str) -> (Verdict, bool) {
        let head = format!("GET / HTTP/1.1\r\nAuthorization: basic {}", STANDARD.encode(said));
        let mut verdict = judged(filter, &head, 0, Duration::ZERO);
        let work = verdict.work.take();
        let is_worked_out = work.is_some();
        (work.map_or(verdict, Work::done), is_worked_out)
    }

    #[test]
    fn who_is_right_passes_and_bcrypt_is_worked_out_once() {
        let filter = filter();
        for (said, expected, is_worked_out) in [
            ("bob:two", Some("x-user: bob"), false),
            ("bob:one", None, false),
            ("ann:one", Some("x-user: ann"), true),
            ("ann:one", Some("x-user: ann"), false),
            ("ann:two", None, true),
            ("ann:two", None, true),
            ("eve:one", None, true),
            ("eve:one", None, true),
            ("ann", None, false),
        ] {
            let (verdict, worked) = ask(&filter, said);
            assert_eq!(worked, is_worked_out, "{said}");
            match expected {
                Some(lines) => assert_eq!(changed(&verdict.request, "Authorization: x\r\n"), lines, "{said}"),
                None => {
                    let Some(local) = verdict.end else { panic!("{said} passes") };
                    let challenge = local.fields[0].1.to_str().expect("a text");
                    assert_eq!((local.status, challenge), (401, "Basic realm=\"R\", charset=\"UTF-8\""));
                }
            }
        }
    }
}
