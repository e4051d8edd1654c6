//! Who may ask the agent and change it, and where that is written down: the keys `admin` and `audit`.

use std::{collections::HashSet, os::unix::ffi::OsStrExt as _, path::PathBuf};

use serde_json::{Value, json};

use super::section::{Field, Path, Problems, Section, shown};
use crate::config::admin::{AUDIT_BYTES_MAX, Admin, Audit, Token, digest, digits};

const TOKENS_MAX: usize = 64; // each is compared with what who asks shows
const NAME_CHARS_MAX: usize = 64;
const SOCKET_PATH_BYTES_MAX: usize = 100; // unix(7) has 108, with the NUL; a name beside it is used while it is made
const AUDIT_BYTES: std::ops::RangeInclusive<u32> = 4096..=(1 << 30);

pub(super) fn admin(field: &Field<'_>, problems: &mut Problems) -> Option<Admin> {
    let keys = ["address", "socket", "tokens", "token_file"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let default = Admin::default();
    let address = section.or("address", || default.address, |field, p| field.address(true, p), problems);
    let socket = section.or("socket", || None, |field, p| socket(field, p).map(Some), problems);
    let tokens = section.or("tokens", Vec::new, tokens, problems);
    let token_file = section.or("token_file", || None, |field, p| field.path(p).map(Some), problems);
    Some(Admin { address: address?, socket: socket?, tokens: tokens?, token_file: token_file? })
}

fn socket(field: &Field<'_>, problems: &mut Problems) -> Option<PathBuf> {
    let path = field.path(problems)?;
    if path.as_os_str().as_bytes().len() <= SOCKET_PATH_BYTES_MAX {
        return Some(path);
    }
    field.refuse(
        format!("is longer than the name of a Unix socket may be; write at most {SOCKET_PATH_BYTES_MAX} bytes"),
        problems,
    );
    None
}

fn tokens(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<Token>> {
    let items = field.list(problems)?;
    if items.len() > TOKENS_MAX {
        field.refuse(format!("has more than {TOKENS_MAX} tokens; write fewer"), problems);
        return None;
    }
    let mut names = HashSet::new();
    let token = |(index, node)| {
        let field = Field { node, path: Path::Item(&field.path, index) };
        let token = token(&field, problems)?;
        if !names.insert(token.name.clone()) {
            field.refuse(format!("another token is named {}; write a name for each", token.name), problems);
        }
        Some(token)
    };
    let tokens: Vec<Option<Token>> = items.iter().enumerate().map(token).collect();
    tokens.into_iter().collect()
}

fn token(field: &Field<'_>, problems: &mut Problems) -> Option<Token> {
    let section = Section::open(field.node, &field.path, &["name", "sha256"], problems)?;
    let remedy = "write what the audit log is to call who shows it";
    let name = section.require("name", remedy, problems).and_then(|field| name(&field, problems));
    let remedy = "write what `printf %s TOKEN | sha256sum` says";
    let sha256 = section.require("sha256", remedy, problems).and_then(|field| sha256(&field, problems));
    Some(Token { name: name?, sha256: sha256? })
}

fn name(field: &Field<'_>, problems: &mut Problems) -> Option<String> {
    let text = field.text(problems)?;
    let fits = (1..=NAME_CHARS_MAX).contains(&text.len());
    if fits && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Some(text.to_owned());
    }
    let what = format!("\"{}\" is no name; write 1 to {NAME_CHARS_MAX} letters, digits or signs", shown(text));
    field.refuse(what, problems);
    None
}

fn sha256(field: &Field<'_>, problems: &mut Problems) -> Option<[u8; 32]> {
    let digest = digest(field.text(problems)?);
    if digest.is_none() {
        let what = "is no SHA-256 of 64 hexadecimal digits; write what `printf %s TOKEN | sha256sum` says";
        field.refuse(what, problems);
    }
    digest
}

pub(super) fn audit(field: &Field<'_>, problems: &mut Problems) -> Option<Audit> {
    let section = Section::open(field.node, &field.path, &["path", "bytes_max"], problems)?;
    let path = section.or("path", || None, |field, p| field.path(p).map(Some), problems);
    let bytes_max = section.or("bytes_max", || AUDIT_BYTES_MAX, |field, p| field.integer(AUDIT_BYTES, p), problems);
    Some(Audit { path: path?, bytes_max: bytes_max? })
}

/// As it would be written.
pub(super) fn show(admin: &Admin) -> Value {
    let token = |token: &Token| json!({ "name": token.name, "sha256": digits(&token.sha256) });
    json!({
        "address": admin.address,
        "socket": admin.socket,
        "tokens": (!admin.tokens.is_empty()).then(|| admin.tokens.iter().map(token).collect::<Vec<Value>>()),
        "token_file": admin.token_file,
    })
}

pub(super) fn show_audit(audit: &Audit) -> Value {
    json!({ "path": audit.path, "bytes_max": audit.bytes_max })
}

#[cfg(test)]
mod tests {
    use crate::config::file;

    const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn who_may_change_something_is_read_and_shown_again() {
        let text = format!(
            "{{admin: {{address: '[::1]:7', socket: /a/b.sock, tokens: [{{name: ops, sha256: {DIGEST}}}], token_file: /t}}, \
             audit: {{path: /a/log, bytes_max: 4096}}}}"
        );
        let config = file::parse(&text, "F").expect("a good file");
        assert_eq!(config.admin.tokens[0].name, "ops");
        assert_eq!(config.admin.tokens[0].sha256[..2], [0x9f, 0x86]);
        assert_eq!(config.audit.path_of("x").to_str(), Some("/a/log"));
        assert_eq!(file::parse(&file::show(&config).to_string(), "F").expect("a good file"), config);
        let default = file::parse("", "F").expect("a good file");
        assert_eq!(default.audit.path_of("x").to_str(), Some("/var/lib/sockway/x/audit.jsonl"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let long = format!("/{}", "x".repeat(100));
        for (text, expected) in [
            ("admin: {tokens: [{sha256: 12}]}", "admin.tokens[0].name: is missing"),
            ("admin: {tokens: [{name: a}]}", "admin.tokens[0].sha256: is missing; write what `printf %s TOKEN"),
            ("admin: {tokens: [{name: a, sha256: abc}]}", "admin.tokens[0].sha256: is no SHA-256"),
            ("admin: {tokens: [{name: 'a b', sha256: abc}]}", "admin.tokens[0].name: \"a b\" is no name"),
            (&format!("admin: {{socket: {long}}}"), "admin.socket: is longer than the name of a Unix socket"),
            ("admin: {socket: a.sock}", "does not begin with /"),
            ("audit: {bytes_max: 1}", "audit.bytes_max: 1 is out of range"),
            ("audit: {pth: /a}", "audit.pth: unknown key; did you mean path?"),
        ] {
            let found = file::parse(text, "F").expect_err(text).to_string();
            assert!(found.contains("F:1:") && found.contains(expected), "{text}: {found}");
        }
        let twice = format!("admin: {{tokens: [{{name: a, sha256: {DIGEST}}}, {{name: a, sha256: {DIGEST}}}]}}");
        let found = file::parse(&twice, "F").expect_err("two of a name").to_string();
        assert!(found.contains("admin.tokens[1]: another token is named a"), "{found}");
    }
}
