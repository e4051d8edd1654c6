//! Where TLS ends and begins: the section `tls` of a service or an inbound rule. The files that it names are read here, so that what is wrong with one is said
//! with the place where it is named.

use std::{
    io::{self, Read as _},
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::pki_types::ServerName;
use serde_json::{Value as Json, json};

use super::{
    filter::FILES,
    milliseconds, regular,
    section::{Field, Path, Problems, Section, shown},
    tree::{self, Node, Value},
};
use crate::config::{
    Protocol,
    tls::{self, KeyPair, Originate, Roots, Terminate, Tls},
};

const HANDSHAKE_TIMEOUT_MS: u32 = 10_000; // as for the head of a request, which is as little to wait for
const HANDSHAKE_TIMEOUT_MS_MAX: u32 = 600_000;
/// Bytes of one file: a host trusts some hundred and fifty roots in 220 KiB.
const BYTES_MAX: u64 = 4 << 20;

/// Reads the section if there is one.
pub(super) fn tls(section: &Section<'_>, protocol: Option<Protocol>, problems: &mut Problems) -> Option<Tls> {
    let read = |field: &Field<'_>, problems: &mut Problems| {
        if protocol == Some(Protocol::Udp) {
            field.refuse("is spoken over TCP, and this service has none; leave the key out", problems);
            return None;
        }
        // What is wrong with the protocol is noted already.
        read(field, protocol.unwrap_or(Protocol::Tcp), problems)
    };
    section.or("tls", Tls::default, read, problems)
}

/// Reads the section of an inbound rule, if there is one: TLS ends here, and the program is spoken to in plain.
pub(super) fn inbound(
    section: &Section<'_>,
    protocol: Option<Protocol>,
    problems: &mut Problems,
) -> Option<Option<Terminate>> {
    let read = |field: &Field<'_>, problems: &mut Problems| {
        let section = Section::open(field.node, &field.path, &["terminate", "originate"], problems)?;
        if let Some(field) = section.get("originate") {
            let what = "is of services: the program behind an inbound rule is on this host, and is spoken to in plain; \
                        leave the key out";
            field.refuse(what, problems);
            return None;
        }
        let field = section.require("terminate", "write terminate: {certificates: [...]}", problems)?;
        // What is wrong with the protocol is noted already.
        terminate(&field, protocol.unwrap_or(Protocol::Tcp), problems).map(Some)
    };
    section.or("tls", || None, read, problems)
}

fn read(field: &Field<'_>, protocol: Protocol, problems: &mut Problems) -> Option<Tls> {
    let section = Section::open(field.node, &field.path, &["terminate", "originate"], problems)?;
    let terminate = section.or("terminate", || None, |field, p| terminate(field, protocol, p).map(Some), problems);
    let originate = section.or("originate", || None, |field, p| originate(field, p).map(Some), problems);
    let tls = Tls { terminate: terminate?, originate: originate?.map(Arc::new) };
    if !tls.is_spoken() {
        field.refuse("says nothing; write terminate, originate or both, or leave the key out", problems);
    }
    Some(tls)
}

fn terminate(field: &Field<'_>, protocol: Protocol, problems: &mut Problems) -> Option<Terminate> {
    let section = Section::open(field.node, &field.path, &["certificates", "handshake_timeout_ms"], problems)?;
    let timeout = |field: &Field<'_>, p: &mut Problems| field.integer(1..=HANDSHAKE_TIMEOUT_MS_MAX, p);
    let timeout = section.or("handshake_timeout_ms", || HANDSHAKE_TIMEOUT_MS, timeout, problems);
    let listed = section.require("certificates", "list at least one {cert: FILE, key: FILE}", problems)?;
    let items = listed.list(problems)?;
    if items.is_empty() {
        listed.refuse("is empty; list at least one {cert: FILE, key: FILE}", problems);
    }
    let pairs: Vec<Option<KeyPair>> = items
        .iter()
        .enumerate()
        .map(|(index, node)| key_pair(&Field { node, path: Path::Item(&listed.path, index) }, problems))
        .collect();
    let pairs: Vec<KeyPair> = pairs.into_iter().collect::<Option<_>>()?;
    (!pairs.is_empty()).then_some(())?;
    Some(Terminate::new(pairs, milliseconds(timeout?), protocol))
}

fn originate(field: &Field<'_>, problems: &mut Problems) -> Option<Originate> {
    let section = Section::open(field.node, &field.path, &["roots", "server_name", "certificate"], problems)?;
    let server_name = section.or("server_name", || None, |field, p| server_name(field, p).map(Some), problems);
    let certificate = section.or("certificate", || None, |field, p| key_pair(field, p).map(Some), problems);
    let trusted = trusted(section.get("roots"), field, problems);
    Some(Originate::new(trusted?, server_name?, certificate?))
}

/// Whom a field names who vouch for others: `system`, as for one that is not there, or a file.
pub(super) fn trusted(given: Option<Field<'_>>, at: &Field<'_>, problems: &mut Problems) -> Option<Trusted> {
    match given {
        Some(field) if !matches!(&field.node.value, Value::Text(text) if text == "system") => {
            roots_of_file(&field, problems)
        }
        given => system_roots(given.as_ref().unwrap_or(at), problems),
    }
}

pub(super) type Trusted = (Roots, Arc<rustls::RootCertStore>, u64);

fn system_roots(field: &Field<'_>, problems: &mut Problems) -> Option<Trusted> {
    let trusted = tls::system_roots();
    if trusted.is_none() {
        field.refuse(
            "trusts whom this host trusts, and it trusts nobody; install ca-certificates, or write roots: FILE",
            problems,
        );
    }
    Some((Roots::System, trusted?, 0))
}

fn roots_of_file(field: &Field<'_>, problems: &mut Problems) -> Option<Trusted> {
    let (path, bytes) = file(field, problems)?;
    match tls::roots(&bytes) {
        Ok((trusted, digest)) => Some((Roots::File(path), trusted, digest)),
        Err(bad) => {
            field.refuse(format!("{} {bad}", path.display()), problems);
            None
        }
    }
}

fn server_name(field: &Field<'_>, problems: &mut Problems) -> Option<ServerName<'static>> {
    let text = field.text(problems)?;
    let name = ServerName::try_from(text.to_owned());
    if name.is_err() {
        let what = format!("\"{}\" is no name of a server; write a DNS name or an IP address", shown(text));
        field.refuse(what, problems);
    }
    name.ok()
}

fn key_pair(field: &Field<'_>, problems: &mut Problems) -> Option<KeyPair> {
    let section = Section::open(field.node, &field.path, &["cert", "key"], problems)?;
    let cert = section.require("cert", "write the path of a PEM file with the certificate", problems);
    let key = section.require("key", "write the path of a PEM file with the private key", problems);
    let read_cert = cert.as_ref().and_then(|field| file(field, problems));
    let read_key = key.as_ref().and_then(|field| file(field, problems));
    let (cert_path, cert_text) = read_cert?;
    let (key_path, key_text) = read_key?;
    let pair = KeyPair::new((cert_path.clone(), &cert_text), (key_path.clone(), &key_text), SystemTime::now());
    pair.map_err(|bad| {
        let (field, path) = if bad.is_of_key() { (key, key_path) } else { (cert, cert_path) };
        if let Some(field) = field {
            field.refuse(format!("{} {bad}", path.display()), problems);
        }
    })
    .ok()
}

/// The file that is named, and its bytes.
fn file(field: &Field<'_>, problems: &mut Problems) -> Option<(PathBuf, Vec<u8>)> {
    let path = field.path(problems)?;
    match bytes(&path) {
        Ok(bytes) => Some((path, bytes)),
        Err(error) => {
            let what = format!(
                "{} cannot be read: {error}; write the path of a PEM file that the agent can read",
                path.display()
            );
            field.refuse(what, problems);
            None
        }
    }
}

/// What a file holds, no more of it than one with certificates can.
pub fn bytes(path: &FilePath) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    regular(path)?.take(BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The files that a configuration names, whatever else is wrong with it.
pub fn files(text: &str) -> Vec<PathBuf> {
    // A file of ten thousand services is not read twice for nothing.
    if !text.contains("tls") && !FILES.iter().any(|key| text.contains(key)) {
        return Vec::new();
    }
    let Ok(root) = tree::grow(text) else { return Vec::new() };
    let listed = ["services", "inbound"].into_iter().filter_map(|key| match value(&root, key) {
        Some(Value::List(items)) => Some(items),
        _ => None,
    });
    let mut files = Vec::new();
    let items: Vec<&Node> = listed.flatten().collect();
    for filters in items.iter().filter_map(|item| value(item, "filters")) {
        let Value::List(filters) = filters else { continue };
        filters.iter().for_each(|filter| FILES.iter().for_each(|key| add(filter, key, &mut files)));
    }
    for tls in items.iter().filter_map(|item| node(item, "tls")) {
        if let Some(Value::List(pairs)) = node(tls, "terminate").and_then(|terminate| value(terminate, "certificates"))
        {
            pairs.iter().for_each(|pair| add_pair(pair, &mut files));
        }
        let Some(originate) = node(tls, "originate") else { continue };
        add(originate, "roots", &mut files);
        if let Some(pair) = node(originate, "certificate") {
            add_pair(pair, &mut files);
        }
    }
    files.sort();
    files.dedup();
    files
}

fn add_pair(pair: &Node, files: &mut Vec<PathBuf>) {
    add(pair, "cert", files);
    add(pair, "key", files);
}

fn add(of: &Node, key: &str, files: &mut Vec<PathBuf>) {
    if let Some(Value::Text(text)) = value(of, key)
        && text.starts_with('/')
    {
        files.push(PathBuf::from(text));
    }
}

fn value<'n>(of: &'n Node, key: &str) -> Option<&'n Value> {
    node(of, key).map(|node| &node.value)
}

fn node<'n>(of: &'n Node, key: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &of.value else { return None };
    entries.iter().find(|(found, _)| found.text == key).map(|(_, node)| node)
}

/// The section as the file would say it; no key is shown.
pub(super) fn show(tls: &Tls) -> Json {
    let mut shown = serde_json::Map::new();
    if let Some(terminate) = &tls.terminate {
        shown.insert("terminate".to_owned(), show_terminate(terminate));
    }
    if let Some(originate) = &tls.originate {
        let roots = match &originate.roots {
            Roots::System => json!("system"),
            Roots::File(path) => json!(path),
        };
        let name = originate.server_name.as_ref().map(|name| name.to_str());
        let certificate = originate.certificate.as_ref().map(show_pair);
        shown
            .insert("originate".to_owned(), json!({ "roots": roots, "server_name": name, "certificate": certificate }));
    }
    Json::Object(shown)
}

/// What an inbound rule has of the section.
pub(super) fn show_inbound(terminate: &Terminate) -> Json {
    json!({ "terminate": show_terminate(terminate) })
}

fn show_terminate(terminate: &Terminate) -> Json {
    let certificates: Vec<Json> = terminate.certificates.iter().map(show_pair).collect();
    json!({ "certificates": certificates, "handshake_timeout_ms": duration_ms(terminate.handshake_timeout) })
}

fn show_pair(pair: &KeyPair) -> Json {
    json!({ "cert": pair.cert, "key": pair.key })
}

fn duration_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{Config, ConfigError, Mode, file};

    /// A directory with a pair `c.pem`, `k.pem` of a certificate that is its own root.
    fn directory() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        fs::write(directory.path().join("c.pem"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("k.pem"), made.signing_key.serialize_pem()).unwrap();
        directory
    }

    fn service(directory: &FilePath, keys: &str) -> String {
        let keys = keys.replace("DIR", &directory.to_string_lossy());
        format!("services:\n  - {{name: a, address: 10.0.0.1:80, endpoints: [10.0.0.2:80], {keys}}}\n")
    }

    fn parsed(directory: &FilePath, keys: &str) -> Result<Config, String> {
        file::parse(&service(directory, keys), "F").map_err(|error| match error {
            ConfigError::Invalid { problems, .. } => {
                let found = problems.iter().map(|problem| format!("{}: {}", problem.path, problem.what));
                found.collect::<Vec<String>>().join("\n")
            }
            ConfigError::Unreadable { .. } => unreachable!(),
        })
    }

    const BOTH: &str = "protocol: tcp, tls: {terminate: {certificates: [{cert: DIR/c.pem, key: DIR/k.pem}], \
                        handshake_timeout_ms: 5}, originate: {roots: DIR/c.pem, server_name: b.example, \
                        certificate: {cert: DIR/c.pem, key: DIR/k.pem}}}";

    #[test]
    fn both_sides_are_read_with_their_files_and_shown_without_a_key() {
        let directory = directory();
        let config = parsed(directory.path(), BOTH).unwrap();
        let service = &config.services[0];
        assert_eq!(service.mode, Mode::Agent, "the kernel speaks no TLS");
        let terminate = service.tls.terminate.as_ref().unwrap();
        assert_eq!(terminate.handshake_timeout, Duration::from_millis(5));
        assert_eq!(terminate.certificates[0].names(), ["a.example"]);
        assert!(service.tls.originate.as_ref().unwrap().certificate.is_some());
        let shown = file::show(&config).to_string();
        assert!(!shown.contains("PRIVATE"), "{shown}");
        assert_eq!(file::parse(&shown, "F").expect("what is shown can be read"), config);
    }

    #[test]
    fn every_file_that_is_named_is_known() {
        let directory = directory();
        let [cert, key] = ["c.pem", "k.pem"].map(|name| directory.path().join(name));
        assert_eq!(files(&service(directory.path(), BOTH)), [cert.clone(), key]);
        let wrong = "protocol: nonsense, tls: {originate: {roots: DIR/c.pem}, terminate: 3}";
        assert_eq!(files(&service(directory.path(), wrong)), [cert]);
        assert!(files("services: {").is_empty());
        assert!(files(&service(directory.path(), "protocol: tcp, tls: {originate: {roots: system}}")).is_empty());
    }

    #[test]
    fn an_inbound_rule_ends_tls_and_begins_none() {
        let directory = directory();
        let rule = |tls: &str| {
            let tls = tls.replace("DIR", &directory.path().to_string_lossy());
            format!("inbound:\n  - {{name: a, ports: [80], protocol: auto, tls: {tls}}}\n")
        };
        let text = rule("{terminate: {certificates: [{cert: DIR/c.pem, key: DIR/k.pem}]}}");
        let config = file::parse(&text, "F").expect("a good file");
        let terminate = config.inbound[0].terminate.as_ref().unwrap();
        assert_eq!(terminate.certificates[0].names(), ["a.example"]);
        assert_eq!(files(&text), ["c.pem", "k.pem"].map(|name| directory.path().join(name)));
        let shown = file::show(&config).to_string();
        assert_eq!(file::parse(&shown, "F").expect("what is shown can be read"), config);
        for (tls, expected) in [
            ("{}", "inbound[0].tls.terminate: is missing"),
            ("{originate: {roots: system}}", "inbound[0].tls.originate: is of services"),
            ("{terminate: {}}", "inbound[0].tls.terminate.certificates: is missing"),
        ] {
            let Err(ConfigError::Invalid { problems, .. }) = file::parse(&rule(tls), "F") else { panic!("{tls}") };
            let found: Vec<String> = problems.iter().map(|found| format!("{}: {}", found.path, found.what)).collect();
            assert!(found.len() == 1 && found[0].starts_with(expected), "{tls}: {found:?}");
        }
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let directory = directory();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        fs::write(directory.path().join("other.pem"), other).unwrap();
        for (keys, place, what) in [
            ("tls: {}", "", "says nothing"),
            ("tls: {terminate: {}}", ".terminate.certificates", "is missing"),
            ("tls: {terminate: {certificates: []}}", ".terminate.certificates", "is empty"),
            ("tls: {terminate: {certificates: [{cert: DIR/c.pem}]}}", ".terminate.certificates[0].key", "is missing"),
            (
                "tls: {terminate: {certificates: [{cert: DIR/none.pem, key: DIR/k.pem}]}}",
                ".terminate.certificates[0].cert",
                "DIR/none.pem cannot be read: No such file",
            ),
            (
                "tls: {terminate: {certificates: [{cert: c.pem, key: DIR/k.pem}]}}",
                ".terminate.certificates[0].cert",
                "\"c.pem\" does not begin with /",
            ),
            (
                "tls: {terminate: {certificates: [{cert: DIR/c.pem, key: DIR/other.pem}]}}",
                ".terminate.certificates[0].key",
                "DIR/other.pem holds the key of another certificate",
            ),
            (
                "tls: {terminate: {certificates: [{cert: DIR/k.pem, key: DIR/k.pem}]}}",
                ".terminate.certificates[0].cert",
                "DIR/k.pem holds no certificate",
            ),
            ("tls: {originate: {roots: DIR/k.pem}}", ".originate.roots", "DIR/k.pem holds no certificate"),
            (
                "tls: {originate: {roots: DIR/c.pem, server_name: 'a b'}}",
                ".originate.server_name",
                "\"a b\" is no name of a server",
            ),
            ("mode: kernel, tls: {originate: {roots: DIR/c.pem}}", "", "is spoken by the agent"),
        ] {
            let found = parsed(directory.path(), &format!("protocol: tcp, {keys}")).expect_err(keys);
            let found = found.replace(&*directory.path().to_string_lossy(), "DIR");
            let expected = format!("services[0].tls{place}: {what}");
            assert!(found.starts_with(&expected) && !found.contains('\n'), "{keys}: {found}");
        }
        let found = parsed(directory.path(), "protocol: udp, tls: {originate: {roots: DIR/c.pem}}").unwrap_err();
        assert!(found.starts_with("services[0].tls: is spoken over TCP"), "{found}");
    }
}
