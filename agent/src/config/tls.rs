//! Where TLS ends and begins: the agent's own certificates towards clients, and whom it trusts, and as whom it appears, towards endpoints.
//!
//! What stands here was read, checked and made ready: a connection needs only to take it.

mod expiry;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime},
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::{CertifiedKey, SingleCertAndKey},
};
use xxhash_rust::xxh64::xxh64;

use super::{HttpVersion, Protocol, Service};

/// How HTTP/1.1 is called in ALPN (RFC 7301).
pub const HTTP1: &[u8] = b"http/1.1";
/// How HTTP/2 is called in ALPN.
pub const HTTP2: &[u8] = b"h2";

/// The one implementation of cryptography in this program.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(ring::default_provider()));

/// TLS of a service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    /// Clients speak TLS with the agent.
    pub terminate: Option<Terminate>,
    /// The agent speaks TLS with endpoints.
    pub originate: Option<Arc<Originate>>,
}

impl Tls {
    /// Whether either side speaks TLS.
    pub fn is_spoken(&self) -> bool {
        self.terminate.is_some() || self.originate.is_some()
    }
}

/// Why what a file holds cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFile {
    /// The first file has no certificate.
    #[error(
        "holds no certificate; write the path of a PEM file with the certificate first and those that vouch for it behind it"
    )]
    NoCertificate,
    /// It has one that cannot be understood.
    #[error("holds a certificate that cannot be used ({0}); write the path of another")]
    Certificate(String),
    /// It is too late for it.
    #[error("expired on {0}; renew it")]
    Expired(String),
    /// The second file has no private key.
    #[error("holds no private key; write the path of a PEM file with one that has no passphrase")]
    NoKey,
    /// It has one that cannot be understood.
    #[error("holds a private key that cannot be used ({0}); write the path of another")]
    Key(String),
    /// They are not of one pair.
    #[error("holds the key of another certificate; write the pair that belongs together")]
    OtherKey,
}

impl BadFile {
    /// Whether it is the key's file that is wrong.
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::NoKey | Self::Key(_) | Self::OtherKey)
    }
}

/// A certificate with those that vouch for it, and its key.
#[derive(Clone, Debug)]
pub struct KeyPair {
    /// Where the certificates were read.
    pub cert: PathBuf,
    /// Where the key was read.
    pub key: PathBuf,
    /// Of what stood in both.
    digest: u64,
    /// The DNS names that the certificate is for, in small letters; with `*.` in front, any one label.
    names: Vec<String>,
    certified: Arc<CertifiedKey>,
}

impl PartialEq for KeyPair {
    fn eq(&self, other: &Self) -> bool {
        (&self.cert, &self.key, self.digest) == (&other.cert, &other.key, other.digest)
    }
}

impl KeyPair {
    /// Of the texts of two files, as of `now`.
    pub fn new(
        (cert, cert_text): (PathBuf, &[u8]),
        (key, key_text): (PathBuf, &[u8]),
        now: SystemTime,
    ) -> Result<Self, BadFile> {
        let chain = certificates(cert_text)?;
        let first = chain.first().ok_or(BadFile::NoCertificate)?;
        let end_entity = webpki::EndEntityCert::try_from(first).map_err(|e| BadFile::Certificate(e.to_string()))?;
        let names = end_entity.valid_dns_names().map(str::to_ascii_lowercase).collect();
        if let Some(expiry) = expiry::of(first).filter(|expiry| expiry.is_before(now)) {
            return Err(BadFile::Expired(expiry.to_string()));
        }
        let private = PrivateKeyDer::from_pem_slice(key_text).map_err(|_| BadFile::NoKey)?;
        let certified = CertifiedKey::from_der(chain, private, &PROVIDER).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => BadFile::OtherKey,
            error => BadFile::Key(error.to_string()),
        })?;
        let digest = xxh64(cert_text, xxh64(key_text, 0));
        Ok(Self { cert, key, digest, names, certified: Arc::new(certified) })
    }

    /// The DNS names that it is for.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, BadFile> {
    CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| BadFile::Certificate(error.to_string()))
}

/// TLS that ends here.
#[derive(Clone, Debug)]
pub struct Terminate {
    /// At least one; of those that are for the name that a client asks for the first is shown whose signature it can check, and to whom asks
    /// for none or another the first of all.
    pub certificates: Vec<KeyPair>,
    /// From the connection to the end of the handshake.
    pub handshake_timeout: Duration,
    protocol: Protocol,
    server: Arc<ServerConfig>,
}

impl PartialEq for Terminate {
    fn eq(&self, other: &Self) -> bool {
        (&self.certificates, self.handshake_timeout, self.protocol)
            == (&other.certificates, other.handshake_timeout, other.protocol)
    }
}

impl Terminate {
    /// With at least one certificate, for clients that speak `protocol` within.
    pub fn new(certificates: Vec<KeyPair>, handshake_timeout: Duration, protocol: Protocol) -> Self {
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_safe_default_protocol_versions()
            .expect("the provider has what every version needs")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(ByName::new(&certificates)));
        server.alpn_protocols = spoken_within(protocol).iter().map(|name| name.to_vec()).collect();
        // What a client needs to go on another time is kept by the client: no memory here, and nothing that workers share but a key.
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        if let Ok(tickets) = ring::Ticketer::new() {
            server.ticketer = tickets;
        }
        Self { certificates, handshake_timeout, protocol, server: Arc::new(server) }
    }

    /// What a handshake with a client begins with.
    pub fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }
}

/// What the agent understands of what a client may want to speak, the best first.
fn spoken_within(protocol: Protocol) -> &'static [&'static [u8]] {
    match protocol {
        Protocol::Http => &[HTTP1],
        Protocol::Http2 => &[HTTP2],
        Protocol::Auto => &[HTTP2, HTTP1],
        Protocol::Tcp | Protocol::Udp => &[],
    }
}

/// Chooses a certificate by the name that a client asks for (SNI, RFC 6066), and by the signatures that it can check (RFC 8446 section 4.2.3):
/// of one name there may be an RSA and an ECDSA one.
#[derive(Debug)]
struct ByName {
    by_name: HashMap<String, Vec<Arc<CertifiedKey>>>,
    all: Vec<Arc<CertifiedKey>>,
}

impl ByName {
    fn new(certificates: &[KeyPair]) -> Self {
        let mut by_name = HashMap::<String, Vec<_>>::new();
        for pair in certificates {
            for name in &pair.names {
                by_name.entry(name.clone()).or_default().push(Arc::clone(&pair.certified));
            }
        }
        Self { by_name, all: certificates.iter().map(|pair| Arc::clone(&pair.certified)).collect() }
    }

    fn find(&self, name: &str) -> Option<&Vec<Arc<CertifiedKey>>> {
        let name = name.to_ascii_lowercase();
        let any = || Some(format!("*.{}", name.split_once('.')?.1));
        self.by_name.get(&name).or_else(|| self.by_name.get(&any()?))
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let fitting = hello.server_name().and_then(|name| self.find(name)).unwrap_or(&self.all);
        let is_verifiable = |pair: &&Arc<CertifiedKey>| pair.key.choose_scheme(hello.signature_schemes()).is_some();
        fitting.iter().find(is_verifiable).or_else(|| fitting.first()).cloned()
    }
}

/// Whom the agent trusts to vouch for endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Whom this host trusts.
    System,
    /// Whose certificates stand in this file.
    File(PathBuf),
}

/// TLS that begins here.
#[derive(Clone, Debug)]
pub struct Originate {
    /// Who vouches for endpoints.
    pub roots: Roots,
    /// Of what stood in their file.
    digest: u64,
    /// The name that endpoints must have, and that they are asked for; without one they must have their IP address.
    pub server_name: Option<ServerName<'static>>,
    /// As whom the agent appears.
    pub certificate: Option<KeyPair>,
    /// For each of [`Within`].
    clients: [Arc<ClientConfig>; 3],
}

impl PartialEq for Originate {
    fn eq(&self, other: &Self) -> bool {
        let own = |of: &Self| (of.roots.clone(), of.digest, of.server_name.clone());
        own(self) == own(other) && self.certificate == other.certificate
    }
}

/// What is spoken to an endpoint within TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// Whatever it is, it has no name here.
    Opaque,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Within {
    /// What a connection of its own to an endpoint of such a service is for.
    pub fn of(service: &Service) -> Self {
        match (service.upstream_protocol, service.protocol) {
            (Some(HttpVersion::Http1), _) | (None, Protocol::Http) => Self::Http1,
            (Some(HttpVersion::Http2), _) | (None, Protocol::Http2) => Self::Http2,
            (None, Protocol::Auto | Protocol::Tcp | Protocol::Udp) => Self::Opaque,
        }
    }
}

impl Originate {
    /// Trusts `trusted`, which was made of these `roots`.
    pub fn new(
        (roots, trusted, digest): (Roots, Arc<RootCertStore>, u64),
        server_name: Option<ServerName<'static>>,
        certificate: Option<KeyPair>,
    ) -> Self {
        let client = |within: &[&[u8]]| {
            let builder = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
                .with_safe_default_protocol_versions()
                .expect("the provider has what every version needs")
                .with_root_certificates(Arc::clone(&trusted));
            let mut client = match &certificate {
                Some(pair) => {
                    builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&pair.certified))))
                }
                None => builder.with_no_client_auth(),
            };
            client.alpn_protocols = within.iter().map(|name| name.to_vec()).collect();
            Arc::new(client)
        };
        let clients = [client(&[]), client(&[HTTP1]), client(&[HTTP2])];
        Self { roots, digest, server_name, certificate, clients }
    }

    /// The name that an endpoint at this address must have.
    pub fn name_of(&self, ip: IpAddr) -> ServerName<'static> {
        self.server_name.clone().unwrap_or_else(|| ServerName::from(ip))
    }

    /// What a handshake with an endpoint begins with.
    pub fn client(&self, within: Within) -> Arc<ClientConfig> {
        Arc::clone(&self.clients[within as usize])
    }
}

/// What a handshake begins with.
pub type Handshake = Arc<ClientConfig>;

/// A host as certificates name it.
pub fn name_of(host: &str) -> Option<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).ok()
}

/// What a handshake with a server of HTTP/1.1 begins with, whom these vouch for.
pub fn client_of(trusted: &Arc<RootCertStore>) -> Handshake {
    let mut client = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_safe_default_protocol_versions()
        .expect("the provider has what every version needs")
        .with_root_certificates(Arc::clone(trusted))
        .with_no_client_auth();
    client.alpn_protocols = vec![HTTP1.to_vec()];
    Arc::new(client)
}

/// Those whose certificates stand in a file, and what tells it from another.
pub fn roots(text: &[u8]) -> Result<(Arc<RootCertStore>, u64), BadFile> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(text)? {
        store.add(certificate).map_err(|error| BadFile::Certificate(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(BadFile::NoCertificate);
    }
    Ok((Arc::new(store), xxh64(text, 0)))
}

/// Those whom this host trusts, read once.
pub fn system_roots() -> Option<Arc<RootCertStore>> {
    static SYSTEM: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        Arc::new(store)
    });
    (!SYSTEM.is_empty()).then(|| Arc::clone(&SYSTEM))
}

#[cfg(test)]
mod tests;
