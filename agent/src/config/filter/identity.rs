//! How filters know who asks: keys, passwords and signed tokens. No secret is kept as it is said, but for what signatures of the HS family need.

use std::{fmt, path::PathBuf, time::Duration};

use crate::config::tls::{Handshake, Roots};

/// SHA-256 of something.
pub type Digest = [u8; 32];

/// What a file or the configuration lists, and which file, if one does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed<T> {
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What was listed.
    pub items: Vec<T>,
}

/// What follows from knowing who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The field, in lower case, in which the endpoint is told the name.
    pub forward_as: Option<String>,
    /// Whether the endpoint gets the secret, too.
    pub forwards_secret: bool,
}

/// Who has a key may ask.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKey {
    /// Where it is said.
    pub place: Place,
    /// Names, and the digests of their keys.
    pub keys: Listed<(String, Digest)>,
    /// What follows.
    pub known: Known,
}

/// Where a request says something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this field, by its name in lower case.
    Header(String),
    /// In this parameter of its query.
    Query(String),
}

/// Who has a name and a password may ask (RFC 7617).
#[derive(Clone, Debug, PartialEq)]
pub struct Basic {
    /// What a client is told to have a password for.
    pub realm: String,
    /// Names, and how their passwords are kept.
    pub users: Listed<(String, Password)>,
    /// What follows.
    pub known: Known,
}

/// A password, as htpasswd writes it.
#[derive(Clone, PartialEq, Eq)]
pub enum Password {
    /// `$2y$…`: bcrypt.
    Bcrypt(String),
    /// `{SHA}…`: SHA-1.
    Sha1([u8; 20]),
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bcrypt(_) => "Bcrypt",
            Self::Sha1(_) => "Sha1",
        })
    }
}

/// Who has a token that somebody has signed may ask (RFC 7519).
#[derive(Clone, Debug, PartialEq)]
pub struct Jwt {
    /// The field that has it, in lower case; in `authorization` it stands behind `Bearer`.
    pub header: String,
    /// With what it may be signed (RFC 7517), unless that is fetched.
    pub keys: Listed<JwtKey>,
    /// Where that is fetched from.
    pub remote: Option<Remote>,
    /// Who must have made it, if that is asked.
    pub issuer: Option<String>,
    /// For one of whom it must be; none: that is not asked.
    pub audiences: Vec<String>,
    /// By how much clocks may differ.
    pub leeway: Duration,
    /// Claims of which the endpoint is told, each in a field whose name is in lower case.
    pub claims: Vec<(String, String)>,
    /// Whether the endpoint gets the token, too.
    pub forwards_secret: bool,
}

/// A key set that is fetched over HTTP/1.1.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where it is, as it is written.
    pub url: String,
    /// Host and port, as the field Host has them.
    pub authority: String,
    /// The host, to be looked up, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub target: String,
    /// Over TLS: whom it is believed, and what a handshake begins with.
    pub tls: Option<(Roots, Handshake)>,
    /// Of what stood in the file of roots.
    pub digest: u64,
    /// How long it is used before it is fetched again, unless its answer says less.
    pub refresh: Duration,
    /// How long fetching it may take.
    pub timeout: Duration,
}

impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        let own = |of: &Self| {
            (of.url.clone(), of.tls.as_ref().map(|(roots, _)| roots.clone()), of.digest, of.refresh, of.timeout)
        };
        own(self) == own(other)
    }
}

/// A key that tokens are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtKey {
    /// What it is called, if it is.
    pub id: Option<String>,
    /// What it may be used for (`alg`); `None`: for whatever its kind can.
    pub algorithm: Option<String>,
    /// The key itself.
    pub material: Material,
}

/// A key by its kind.
#[derive(Clone, PartialEq, Eq)]
pub enum Material {
    /// Modulus and exponent.
    Rsa(Vec<u8>, Vec<u8>),
    /// A point of P-256, uncompressed.
    P256(Vec<u8>),
    /// A point of P-384, uncompressed.
    P384(Vec<u8>),
    /// A point of Ed25519.
    Ed25519(Vec<u8>),
    /// A shared secret.
    Secret(Vec<u8>),
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtKey").field("id", &self.id).finish_non_exhaustive()
    }
}
