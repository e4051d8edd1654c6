//! Certificates, and one side of a TLS connection, by the library that the agent uses too; real programs are [`crate::peers`].

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SignatureAlgorithm};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;

use crate::origin::Origin;

/// A client's side.
pub type Client = StreamOwned<ClientConnection, TcpStream>;
/// A server's side.
pub type Server = StreamOwned<ServerConnection, TcpStream>;

/// Who vouches for certificates, in a directory of its own.
pub struct Authority {
    directory: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The certificate.
    pub cert: PathBuf,
    /// The key.
    pub key: PathBuf,
}

impl Pair {
    /// As a configuration says it.
    pub fn yaml(&self) -> String {
        format!("{{ cert: {}, key: {} }}", self.cert.display(), self.key.display())
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let key = KeyPair::generate().expect("a key");
        let mut wanted = CertificateParams::new(Vec::new()).expect("no names");
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Authorities are told apart by their names.
        let own = directory.path().display().to_string();
        wanted.distinguished_name.push(DnType::CommonName, own);
        let root = wanted.self_signed(&key).expect("a root");
        fs::write(directory.path().join("root.pem"), root.pem()).expect("a file");
        Self { directory, issuer: Issuer::new(wanted, key) }
    }

    /// The file of its own certificate.
    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    /// Where a pair of this name stands, or will.
    pub fn pair(&self, name: &str) -> Pair {
        let file = |kind| self.directory.path().join(format!("{name}.{kind}"));
        Pair { cert: file("pem"), key: file("key") }
    }

    /// Puts a pair of this name there, for these host names and addresses, in the place of one that may be there.
    pub fn issue(&self, name: &str, hosts: &[&str]) -> Pair {
        self.issue_until(name, hosts, 2100)
    }

    /// The same, whose key is of this kind.
    pub fn issue_for(&self, name: &str, hosts: &[&str], kind: &'static SignatureAlgorithm) -> Pair {
        self.put(name, hosts, 2100, &KeyPair::generate_for(kind).expect("a key"))
    }

    /// The same, for a certificate that expires when a year begins.
    pub fn issue_until(&self, name: &str, hosts: &[&str], year: i32) -> Pair {
        self.put(name, hosts, year, &KeyPair::generate().expect("a key"))
    }

    fn put(&self, name: &str, hosts: &[&str], year: i32, key: &KeyPair) -> Pair {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut wanted = CertificateParams::new(hosts).expect("good names");
        wanted.not_after = rcgen::date_time_ymd(year, 1, 1);
        wanted.distinguished_name.push(DnType::CommonName, name);
        let made = wanted.signed_by(key, &self.issuer).expect("a certificate");
        let pair = self.pair(name);
        fs::write(&pair.cert, made.pem()).expect("a file");
        fs::write(&pair.key, key.serialize_pem()).expect("a file");
        pair
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn trusting(root: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).expect("a certificate")).expect("a good one");
    Arc::new(roots)
}

fn chain(pair: &Pair) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let cert = CertificateDer::from_pem_file(&pair.cert).expect("a certificate");
    (vec![cert], PrivateKeyDer::from_pem_file(&pair.key).expect("a key"))
}

/// A client that asks for `name`, and trusts only who is vouched for by `root`. The handshake comes with the first byte.
pub fn client(stream: TcpStream, root: &Path, name: &str) -> Client {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(trusting(root))
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).expect("a client"), stream)
}

/// An origin that speaks TLS; `serve` gets each connection after its handshake, and its number.
pub fn origin(
    listener: TcpListener,
    pair: &Pair,
    clients_by: Option<&Path>,
    serve: impl Fn(&mut Server, usize) -> io::Result<()> + Send + Sync + 'static,
) -> Origin {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("versions");
    let builder = match clients_by {
        Some(root) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(trusting(root), provider());
            builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
        }
        None => builder.with_no_client_auth(),
    };
    let (chain, key) = chain(pair);
    let config = Arc::new(builder.with_single_cert(chain, key).expect("a good pair"));
    Origin::start(listener, move |stream, number| {
        let connection = ServerConnection::new(Arc::clone(&config)).map_err(io::Error::other)?;
        let mut server = StreamOwned::new(connection, stream.try_clone()?);
        while server.conn.is_handshaking() {
            server.conn.complete_io(&mut server.sock)?;
        }
        serve(&mut server, number)
    })
}

/// Says that this is all, and not one byte more.
pub fn say_end(server: &mut Server) -> io::Result<()> {
    server.conn.send_close_notify();
    while server.conn.wants_write() {
        server.conn.write_tls(&mut server.sock)?;
    }
    Ok(())
}
