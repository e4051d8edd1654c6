//! Certificates made by rcgen, found by name, compared and refused.

use super::*;

struct Made {
    cert: String,
    key: String,
}

fn made(names: &[&str], until: i32) -> Made {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut wanted = rcgen::CertificateParams::new(names).unwrap();
    wanted.not_after = rcgen::date_time_ymd(until, 1, 1);
    let key = rcgen::KeyPair::generate().unwrap();
    Made { cert: wanted.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn pair(cert: &str, key: &str) -> Result<KeyPair, BadFile> {
    // 2026-01-01.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
    KeyPair::new(("c".into(), cert.as_bytes()), ("k".into(), key.as_bytes()), now)
}

#[test]
fn a_certificate_is_found_by_its_names_and_by_one_label_where_it_says_so() {
    let first = made(&["first.example"], 2040);
    let many = made(&["Many.example", "*.many.example", "first.example"], 2040);
    let pairs = [pair(&first.cert, &first.key).unwrap(), pair(&many.cert, &many.key).unwrap()];
    let by_name = ByName::new(&pairs);
    let at = |found: &Arc<CertifiedKey>| pairs.iter().position(|pair| Arc::ptr_eq(&pair.certified, found)).unwrap();
    let found = |name: &str| {
        let found = by_name.find(name)?;
        Some(found.iter().map(at).collect::<Vec<_>>())
    };
    assert_eq!(found("first.example"), Some(vec![0, 1]));
    assert_eq!((found("many.example"), found("A.MANY.example")), (Some(vec![1]), Some(vec![1])));
    assert_eq!((found("a.b.many.example"), found("example"), found("other.example")), (None, None, None));
    assert_eq!(by_name.all.iter().map(at).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn what_does_not_belong_together_or_is_over_is_refused() {
    let (good, other, old) = (made(&["a"], 2040), made(&["a"], 2040), made(&["a"], 2025));
    assert_eq!(pair(&good.cert, &other.key).unwrap_err(), BadFile::OtherKey);
    assert_eq!(pair(&old.cert, &old.key).unwrap_err(), BadFile::Expired("2025-01-01 00:00:00 UTC".to_owned()));
    assert_eq!(pair("", &good.key).unwrap_err(), BadFile::NoCertificate);
    assert_eq!(pair(&good.key, &good.key).unwrap_err(), BadFile::NoCertificate);
    assert_eq!(pair(&good.cert, &good.cert).unwrap_err(), BadFile::NoKey);
    let torn = good.cert.replace("-----END", "");
    assert!(matches!(pair(&torn, &good.key).unwrap_err(), BadFile::Certificate(_) | BadFile::NoCertificate));
    assert_eq!(roots(good.key.as_bytes()).unwrap_err(), BadFile::NoCertificate);
}

#[test]
fn the_same_paths_with_other_contents_are_another_configuration() {
    let (one, two) = (made(&["a"], 2040), made(&["a"], 2040));
    let terminate = |made: &Made| {
        Terminate::new(vec![pair(&made.cert, &made.key).unwrap()], Duration::from_secs(1), Protocol::Http)
    };
    assert_eq!(terminate(&one), terminate(&one));
    assert_ne!(terminate(&one), terminate(&two));
    let originate = |made: &Made| {
        let (trusted, digest) = roots(made.cert.as_bytes()).unwrap();
        Originate::new((Roots::File("r".into()), trusted, digest), None, None)
    };
    assert_eq!(originate(&one), originate(&one));
    assert_ne!(originate(&one), originate(&two));
}

#[test]
fn a_client_is_offered_what_the_service_speaks() {
    let made = made(&["a"], 2040);
    let offered = |protocol| {
        let pairs = vec![pair(&made.cert, &made.key).unwrap()];
        Terminate::new(pairs, Duration::from_secs(1), protocol).server().alpn_protocols.clone()
    };
    assert_eq!(offered(Protocol::Http), [HTTP1]);
    assert_eq!(offered(Protocol::Http2), [HTTP2]);
    assert_eq!(offered(Protocol::Auto), [HTTP2, HTTP1]);
    assert!(offered(Protocol::Tcp).is_empty());
}
