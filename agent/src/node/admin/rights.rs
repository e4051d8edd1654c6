//! Who may change something: whoever can open the Unix socket, and whoever shows a token that the configuration knows.

use axum::http::{HeaderMap, header};
use ring::digest;

use super::door::Peer;
use crate::config::{
    Admin,
    admin::{self, Token},
    file,
};

/// Bytes of a token file that are read: a thousand lines.
const TOKEN_FILE_BYTES_MAX: u64 = 128 << 10;

/// Why somebody may not change anything; what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// There is no token that anybody could show.
    #[error(
        "changes come by the Unix socket, or with a token: write admin.tokens (`printf %s TOKEN | sha256sum`) into the \
         configuration, or use the socket, as the command line does"
    )]
    NoTokens,
    /// There are tokens, and none was shown.
    #[error("changes need a token: send `Authorization: Bearer TOKEN`")]
    NotShown,
    /// Nobody knows this token.
    #[error("this token is not among admin.tokens, nor in admin.token_file")]
    Unknown,
    /// The tokens cannot be read.
    #[error("admin.token_file: {0}")]
    File(String),
}

/// What the audit log calls who asks. Reads the token file, where there is one.
///
/// # Errors
///
/// When they may only read.
pub fn who(peer: Peer, headers: &HeaderMap, admin: &Admin) -> Result<String, Forbidden> {
    if let Peer::Socket { uid } = peer {
        return Ok(uid.map_or_else(|| "socket".to_owned(), |uid| format!("socket, user {uid}")));
    }
    if !admin.has_tokens() {
        return Err(Forbidden::NoTokens);
    }
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    let shown = digest::digest(&digest::SHA256, shown.ok_or(Forbidden::NotShown)?.as_bytes());
    let listed = known(&admin.tokens, shown.as_ref());
    let found = match &admin.token_file {
        Some(path) if listed.is_none() => {
            let text = file::bytes(path).and_then(|bytes| match bytes.len() as u64 {
                0..=TOKEN_FILE_BYTES_MAX => String::from_utf8(bytes).map_err(std::io::Error::other),
                _ => Err(std::io::ErrorKind::FileTooLarge.into()),
            });
            let text = text.map_err(|error| Forbidden::File(error.to_string()))?;
            known(&admin::tokens(&text).map_err(Forbidden::File)?, shown.as_ref())
        }
        _ => listed,
    };
    found.map(|name| format!("token {name}")).ok_or(Forbidden::Unknown)
}

/// The token of `Bearer TOKEN` (RFC 6750 section 2.1; the scheme's case does not matter, RFC 9110 section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// The name of the token with this digest. Takes as long whatever is shown: each is compared whole.
fn known(tokens: &[Token], shown: &[u8]) -> Option<String> {
    let is_same = |token: &Token| token.sha256.iter().zip(shown).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0;
    tokens.iter().filter(|token| is_same(token)).fold(None, |_, token| Some(token.name.clone()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn token(name: &str, secret: &str) -> Token {
        let digest = digest::digest(&digest::SHA256, secret.as_bytes());
        Token { name: name.to_owned(), sha256: digest.as_ref().try_into().expect("32 bytes") }
    }

    #[test]
    fn the_socket_and_a_known_token_may_change_something_and_nobody_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tokens");
        let digits = admin::digits(&token("ci", "built").sha256);
        fs::write(&file, format!("# machines\nci {digits}\n")).expect("writable");
        let open = Admin::default();
        let listed = Admin { tokens: vec![token("ops", "hush"), token("dev", "psst")], ..Admin::default() };
        let both = Admin { token_file: Some(file.clone()), ..listed.clone() };
        let gone = Admin { token_file: Some(directory.path().join("none")), ..Admin::default() };
        let ask = |admin: &Admin, shown: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(shown) = shown {
                headers.insert(header::AUTHORIZATION, shown.parse().expect("a value"));
            }
            who(Peer::Tcp, &headers, admin)
        };
        for (admin, shown, expected) in [
            (&open, None, Err(Forbidden::NoTokens)),
            (&open, Some("Bearer hush"), Err(Forbidden::NoTokens)),
            (&listed, None, Err(Forbidden::NotShown)),
            (&listed, Some("hush"), Err(Forbidden::NotShown)),
            (&listed, Some("Basic hush"), Err(Forbidden::NotShown)),
            (&listed, Some("Bearer "), Err(Forbidden::NotShown)),
            (&listed, Some("Bearer hus"), Err(Forbidden::Unknown)),
            (&listed, Some("Bearer hush!"), Err(Forbidden::Unknown)),
            (&listed, Some("Bearer built"), Err(Forbidden::Unknown)),
            (&listed, Some("Bearer hush"), Ok("token ops".to_owned())),
            (&listed, Some("bearer psst"), Ok("token dev".to_owned())),
            (&both, Some("Bearer built"), Ok("token ci".to_owned())),
            (&both, Some("Bearer hush"), Ok("token ops".to_owned())),
        ] {
            assert_eq!(ask(admin, shown), expected, "{shown:?}");
        }
        assert!(matches!(ask(&gone, Some("Bearer hush")), Err(Forbidden::File(_))));
        let socket = who(Peer::Socket { uid: Some(0) }, &HeaderMap::new(), &open);
        assert_eq!(socket, Ok("socket, user 0".to_owned()));
        fs::write(&file, "ci\n").expect("writable");
        assert!(matches!(ask(&both, Some("Bearer built")), Err(Forbidden::File(_))));
    }
}
