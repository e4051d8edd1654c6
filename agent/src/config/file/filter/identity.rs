//! How a file says who may ask: keys, passwords, and keys of signatures. What other files list is read here, so that what is wrong with one is
//! said with the place where it is named.

use std::{path::PathBuf, time::Duration};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use http::HeaderValue;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value as Json, json};

use super::{
    super::{
        SWITCHES,
        capture::each,
        milliseconds,
        route::{entries, own_field_name},
        section::{Field, Path, Problems, Section, shown},
        service::service_name,
        show::{milliseconds as shown_ms, texts, word},
        tls::bytes,
        tree::{Key, Node},
    },
    Named, remote,
};
use crate::config::{
    filter::{
        External,
        identity::{ApiKey, Basic, Digest, Jwt, JwtKey, Known, Listed, Material, Password, Place},
    },
    tls::Roots,
};

const REALM: &str = "restricted";
const LEEWAY_S: u32 = 30;
const LEEWAY_S_MAX: u32 = 3_600;
const TIMEOUT_MS: u32 = 200; // Envoy's
const TIMEOUT_MS_MAX: u32 = 60_000;
const FAILS: [(&str, bool); 2] = [("closed", false), ("open", true)];
/// How a key is written that is not to be seen.
const HASHED: &str = "sha256:";

pub(super) const API_KEY: &[&str] = &["header", "query", "keys", "keys_file", "forward_as", "forward"];
pub(super) const BASIC: &[&str] = &["realm", "users", "users_file", "forward_as", "forward"];
pub(super) const JWT: &[&str] = &[
    "header",
    "jwks_file",
    "jwks_url",
    "jwks_roots",
    "jwks_refresh_s",
    "jwks_timeout_ms",
    "issuer",
    "audiences",
    "leeway_s",
    "claims",
    "forward",
];
pub(super) const EXTERNAL: &[&str] = &["to", "path_prefix", "headers", "copy", "timeout_ms", "fail"];
/// The keys that name files.
pub(in super::super) const FILES: [&str; 4] = ["keys_file", "users_file", "jwks_file", "jwks_roots"];

pub(super) fn api_key(section: &Section<'_>, problems: &mut Problems) -> Option<ApiKey> {
    let place = match (section.get("header"), section.get("query")) {
        (Some(_), Some(field)) => {
            field.refuse("a key is said in one place; leave header or query out", problems);
            None
        }
        (None, Some(field)) => field.text(problems).map(|name| Place::Query(name.to_owned())),
        (Some(field), None) => own_name(&field, problems).map(Place::Header),
        (None, None) => Some(Place::Header("x-api-key".to_owned())),
    };
    let keys = listed(section, ("keys", "keys_file"), "NAME: KEY", key, problems);
    let known = known(section, problems);
    Some(ApiKey { place: place?, keys: keys?, known: known? })
}

pub(super) fn basic(section: &Section<'_>, problems: &mut Problems) -> Option<Basic> {
    let realm = |field: &Field<'_>, problems: &mut Problems| {
        let text = field.text(problems)?;
        if text.contains(['"', '\\']) || HeaderValue::from_str(text).is_err() {
            field.refuse("holds what cannot stand in quotes in a field; write letters, digits and blanks", problems);
        }
        Some(text.to_owned())
    };
    let realm = section.or("realm", || REALM.to_owned(), realm, problems);
    let users = listed(section, ("users", "users_file"), "NAME: HASH", password, problems);
    let known = known(section, problems);
    Some(Basic { realm: realm?, users: users?, known: known? })
}

fn known(section: &Section<'_>, problems: &mut Problems) -> Option<Known> {
    let forward_as = section.or("forward_as", || None, |field, p| own_name(field, p).map(Some), problems);
    let forwards = section.or("forward", || false, |field, p| field.choice(&SWITCHES, p), problems);
    Some(Known { forward_as: forward_as?, forwards_secret: forwards? })
}

/// The name of a field that may be changed.
fn own_name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    own_field_name(field.text(problems)?, field, problems)
}

/// Names and what each has: of the mapping, or of the lines of the file that the other key names.
fn listed<T>(
    section: &Section<'_>,
    (key, file_key): (&'static str, &'static str),
    form: &str,
    read: impl Fn(&str) -> Result<T, &'static str>,
    problems: &mut Problems,
) -> Option<Listed<(String, T)>> {
    let Some(field) = section.get(file_key) else {
        let field = section.require(key, &format!("write {{{form}}}, or {file_key}: /PATH"), problems)?;
        let entries = entries(&field, form, problems)?;
        let item = |(name, node): &(Key, Node)| {
            let field = Field { node, path: Path::Key(&field.path, &name.text) };
            let read = read(field.text(problems)?).map_err(|why| field.refuse(why, problems)).ok()?;
            Some((name.text.clone(), read))
        };
        let items: Vec<_> = entries.iter().map(item).collect::<Vec<_>>().into_iter().collect::<Option<_>>()?;
        return Some(Listed { file: None, items });
    };
    if let Some(other) = section.get(key) {
        other.refuse(format!("stands in the file as well; leave {key} or {file_key} out"), problems);
    }
    let (file, text) = text_of(&field, problems)?;
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let item = |(at, line): (usize, &str)| {
        let said = line.split_once(':').map(|(name, said)| (name.trim(), said.trim()));
        let (name, said) = said.ok_or((at, "is no NAME: and what it has"))?;
        Ok((name.to_owned(), read(said).map_err(|why| (at, why))?))
    };
    match lines.map(item).collect::<Result<Vec<_>, (usize, &str)>>() {
        Ok(items) => Some(Listed { file: Some(file), items }),
        Err((at, why)) => {
            field.refuse(format!("{} line {at}: {why}", file.display()), problems);
            None
        }
    }
}

fn text_of(field: &Field<'_>, problems: &mut Problems) -> Option<(PathBuf, String)> {
    let path = field.path(problems)?;
    let read = bytes(&path).map_err(|error| error.to_string());
    match read.and_then(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())) {
        Ok(text) => Some((path, text)),
        Err(why) => {
            field.refuse(format!("{} cannot be read: {why}; write the path of a text", path.display()), problems);
            None
        }
    }
}

/// A key as it is said, or its digest.
fn key(text: &str) -> Result<Digest, &'static str> {
    let hex = text.strip_prefix(HASHED).or_else(|| Some(text).filter(|text| text.len() == 64 && is_hex(text)));
    match hex {
        Some(hex) => of_hex(hex).ok_or("is no digest; write sha256: and 64 hexadecimal digits, as of sha256sum"),
        None if text.is_empty() => Err("is empty, and so is the key of who has none; write one"),
        None => Ok(digest(&SHA256, text.as_bytes()).as_ref().try_into().unwrap_or_default()),
    }
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn of_hex(text: &str) -> Option<Digest> {
    if text.len() != 64 || !is_hex(text) {
        return None;
    }
    let mut digest = Digest::default();
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(digest)
}

fn password(text: &str) -> Result<Password, &'static str> {
    const REMEDY: &str = "is no hash that is known; write what htpasswd -nB NAME prints behind the colon";
    if let Some(sha1) = text.strip_prefix("{SHA}") {
        let bytes = STANDARD.decode(sha1).ok().and_then(|bytes| bytes.try_into().ok());
        return bytes.map(Password::Sha1).ok_or(REMEDY);
    }
    let is_bcrypt = ["$2y$", "$2a$", "$2b$"].iter().any(|start| text.starts_with(start)) && text.len() == 60;
    if is_bcrypt { Ok(Password::Bcrypt(text.to_owned())) } else { Err(REMEDY) }
}

pub(super) fn jwt(section: &Section<'_>, problems: &mut Problems) -> Option<Jwt> {
    let header = section.or("header", || "authorization".to_owned(), own_name, problems);
    let remote = remote::remote(section, problems);
    let keys = match &remote {
        Some(Some(_)) => Some(Listed { file: None, items: Vec::new() }),
        None => None,
        _ => {
            let what = "write the path of a JSON Web Key Set, or jwks_url: https://…";
            let file = section.require("jwks_file", what, problems);
            file.and_then(|field| jwks(&field, problems))
        }
    };
    let owned = |field: &Field<'_>, p: &mut Problems| field.text(p).map(str::to_owned);
    let issuer = section.or("issuer", || None, |field, p| owned(field, p).map(Some), problems);
    let audiences = section.or("audiences", Vec::new, |field, p| each(field, p, owned), problems);
    let leeway = section.or("leeway_s", || LEEWAY_S, |field, p| field.integer(0..=LEEWAY_S_MAX, p), problems);
    let claims = section.or("claims", Vec::new, claims, problems);
    let forwards = section.or("forward", || false, |field, p| field.choice(&SWITCHES, p), problems);
    Some(Jwt {
        header: header?,
        keys: keys?,
        remote: remote?,
        issuer: issuer?,
        audiences: audiences?,
        leeway: Duration::from_secs(leeway?.into()),
        claims: claims?,
        forwards_secret: forwards?,
    })
}

fn claims(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<(String, String)>> {
    let entries = entries(field, "CLAIM: HEADER", problems)?;
    let claim = |(key, node): &(Key, Node)| {
        let field = Field { node, path: Path::Key(&field.path, &key.text) };
        Some((key.text.clone(), own_name(&field, problems)?))
    };
    entries.iter().map(claim).collect::<Vec<_>>().into_iter().collect()
}

fn jwks(field: &Field<'_>, problems: &mut Problems) -> Option<Listed<JwtKey>> {
    let (file, text) = text_of(field, problems)?;
    match keys_of(&text) {
        Ok(items) => Some(Listed { file: Some(file), items }),
        Err(why) => {
            field.refuse(format!("{} {why}", file.display()), problems);
            None
        }
    }
}

/// The keys of a JSON Web Key Set (RFC 7517 section 5): those of a kind that is not known are left out, as it says.
pub fn keys_of(text: &str) -> Result<Vec<JwtKey>, &'static str> {
    let set: Json = serde_json::from_str(text).map_err(|_| "is no JSON, as a JSON Web Key Set is")?;
    let listed = set.get("keys").and_then(Json::as_array).ok_or("has no list \"keys\", as a JSON Web Key Set has")?;
    let keys: Vec<JwtKey> = listed.iter().filter_map(jwk).collect();
    if keys.is_empty() {
        return Err("has no key that signs; keys of kty RSA, EC (P-256, P-384), OKP (Ed25519) and oct do");
    }
    Ok(keys)
}

fn jwk(key: &Json) -> Option<JwtKey> {
    let text = |name: &str| key.get(name).and_then(Json::as_str);
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?.trim_end_matches('=')).ok();
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let point = || Some([vec![4], bytes("x")?, bytes("y")?].concat());
    let material = match (text("kty")?, text("crv")) {
        ("RSA", _) => Material::Rsa(bytes("n")?, bytes("e")?),
        ("EC", Some("P-256")) => Material::P256(point()?),
        ("EC", Some("P-384")) => Material::P384(point()?),
        ("OKP", Some("Ed25519")) => Material::Ed25519(bytes("x")?),
        ("oct", _) => Material::Secret(bytes("k").filter(|secret| !secret.is_empty())?),
        _ => return None,
    };
    Some(JwtKey { id: text("kid").map(str::to_owned), algorithm: text("alg").map(str::to_owned), material })
}

pub(super) fn external(section: &Section<'_>, named: &mut Named, problems: &mut Problems) -> Option<External> {
    let to = section.require("to", "write the name of the service that is asked", problems);
    let to = to.and_then(|field| {
        let name = service_name(&field, problems)?;
        named.push((field.node.at, field.path.to_string(), name.clone()));
        Some(name)
    });
    let prefix = |field: &Field<'_>, problems: &mut Problems| {
        let text = field.text(problems)?.trim_end_matches('/');
        let is_written = |byte: u8| (b'!'..=b'~').contains(&byte) && !b"?#".contains(&byte);
        let is_path = text.is_empty() || (text.starts_with('/') && text.bytes().all(is_written));
        if !is_path {
            field.refuse(format!("\"{}\" is no path; begin it with /, without ? and #", shown(text)), problems);
        }
        Some(text.to_owned())
    };
    let path_prefix = section.or("path_prefix", String::new, prefix, problems);
    let usual = || ["authorization", "cookie"].map(str::to_owned).to_vec();
    let forwarded = section.or("headers", usual, |field, p| each(field, p, own_name), problems);
    let copied = section.or("copy", Vec::new, |field, p| each(field, p, own_name), problems);
    let timeout = |field: &Field<'_>, p: &mut Problems| field.integer(1..=TIMEOUT_MS_MAX, p);
    let timeout = section.or("timeout_ms", || TIMEOUT_MS, timeout, problems);
    let fails_open = section.or("fail", || false, |field, p| field.choice(&FAILS, p), problems);
    Some(External {
        to: to?,
        path_prefix: path_prefix?,
        forwarded: forwarded?,
        copied: copied?,
        timeout: milliseconds(timeout?),
        fails_open: fails_open?,
    })
}

pub(super) fn show_external(config: &External) -> Json {
    json!({
        "to": config.to,
        "path_prefix": config.path_prefix,
        "headers": config.forwarded,
        "copy": config.copied,
        "timeout_ms": config.timeout.as_millis() as u64,
        "fail": word(&FAILS, config.fails_open),
    })
}

pub(super) fn show_api_key(config: &ApiKey) -> Json {
    let (header, query) = match &config.place {
        Place::Header(name) => (Some(name), None),
        Place::Query(name) => (None, Some(name)),
    };
    let hex = |digest: &Digest| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let keys = items(&config.keys, |digest| format!("{HASHED}{}", hex(digest)));
    let mut shown = json!({ "header": header, "query": query, "keys": keys, "keys_file": config.keys.file });
    show_known(&mut shown, &config.known);
    shown
}

pub(super) fn show_basic(config: &Basic) -> Json {
    let hash = |password: &Password| match password {
        Password::Bcrypt(hash) => hash.clone(),
        Password::Sha1(sha1) => format!("{{SHA}}{}", STANDARD.encode(sha1)),
    };
    let users = items(&config.users, hash);
    let mut shown = json!({ "realm": config.realm, "users": users, "users_file": config.users.file });
    show_known(&mut shown, &config.known);
    shown
}

/// What stands in the configuration itself.
fn items<T>(listed: &Listed<(String, T)>, show: impl Fn(&T) -> String) -> Option<Json> {
    let item = |(name, it): &(String, T)| (name.clone(), json!(show(it)));
    listed.file.is_none().then(|| Json::Object(listed.items.iter().map(item).collect()))
}

fn show_known(shown: &mut Json, known: &Known) {
    shown["forward_as"] = json!(known.forward_as);
    shown["forward"] = json!(word(&SWITCHES, known.forwards_secret));
}

pub(super) fn show_jwt(config: &Jwt) -> Json {
    let claims: Map<String, Json> =
        config.claims.iter().map(|(claim, header)| (claim.clone(), json!(header))).collect();
    let remote = config.remote.as_ref();
    let roots = remote.and_then(|remote| remote.tls.as_ref()).map(|(roots, _)| match roots {
        Roots::System => json!("system"),
        Roots::File(path) => json!(path),
    });
    json!({
        "header": config.header,
        "jwks_file": config.keys.file,
        "jwks_url": remote.map(|remote| &remote.url),
        "jwks_roots": roots,
        "jwks_refresh_s": remote.map(|remote| remote.refresh.as_secs()),
        "jwks_timeout_ms": remote.map(|remote| shown_ms(remote.timeout)),
        "issuer": config.issuer,
        "audiences": texts(&config.audiences),
        "leeway_s": config.leeway.as_secs(),
        "claims": claims,
        "forward": word(&SWITCHES, config.forwards_secret),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_as_its_digest_however_it_is_written() {
        let hex = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
        let kept = digest(&SHA256, b"key");
        for said in ["key", hex, &format!("sha256:{hex}")] {
            assert_eq!(key(said).expect("a key").as_slice(), kept.as_ref(), "{said}");
        }
        assert!(key("sha256:12").is_err() && key("").is_err());
    }

    #[test]
    fn hashes_that_htpasswd_writes_are_known() {
        let bcrypt = format!("$2y$05${}", "x".repeat(53));
        assert!(matches!(password(&bcrypt), Ok(Password::Bcrypt(_))));
        assert!(matches!(password("{SHA}2jmj7l5rSw0yVb/vlWAYkK/YBwk="), Ok(Password::Sha1(_))));
        for bad in ["plain", "$apr1$x", "{SHA}x", "$2y$05$short"] {
            assert!(password(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_set_gives_the_keys_that_sign() {
        let text = r#"{"keys": [{"kty": "oct", "k": "AQI", "kid": "a", "alg": "HS256"}, {"kty": "RSA", "use": "enc", "n": "AQ", "e": "AQ"},
            {"kty": "new"}, {"kty": "EC", "crv": "P-256", "x": "AQ", "y": "Ag"}]}"#;
        let keys = keys_of(text).expect("a key set");
        let material: Vec<&Material> = keys.iter().map(|key| &key.material).collect();
        assert!(
            matches!(material.as_slice(), [Material::Secret(k), Material::P256(p)] if k == &[1, 2] && p == &[4, 1, 2])
        );
        assert!(keys_of("{\"keys\": []}").is_err() && keys_of("[]").is_err() && keys_of("x").is_err());
    }
}
