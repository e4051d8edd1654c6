//! Who may ask the agent, who may change it, and where changes are written down.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// A SHA-256 digest.
pub type Sha256 = [u8; 32];

/// Bytes of the audit log before it begins anew, unless the file says otherwise.
pub const AUDIT_BYTES_MAX: u32 = 10 << 20;

/// Where the admin endpoint answers, and whom it lets change something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Port 0 takes any free one.
    pub address: SocketAddr,
    /// Who can open this Unix socket may change what it likes; `None`: `/run/sockway/<instance>.sock`.
    pub socket: Option<PathBuf>,
    /// Who shows one of these may change what it likes, by TCP too.
    pub tokens: Vec<Token>,
    /// More of them, a line each: a name and a digest. Read at each change.
    pub token_file: Option<PathBuf>,
}

/// What somebody shows who may change something. Only its digest is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What the audit log calls who shows it.
    pub name: String,
    /// SHA-256 of the token.
    pub sha256: Sha256,
}

impl Default for Admin {
    fn default() -> Self {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
        Self { address, socket: None, tokens: Vec::new(), token_file: None }
    }
}

impl Admin {
    /// Whether a token is known of at all.
    pub fn has_tokens(&self) -> bool {
        !self.tokens.is_empty() || self.token_file.is_some()
    }
}

/// Where changes of the configuration are written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The log, a line of JSON each; `None`: `/var/lib/sockway/<instance>/audit.jsonl`. What was in effect is kept beside it.
    pub path: Option<PathBuf>,
    /// Bytes of it before it is set aside and begun anew.
    pub bytes_max: u32,
}

impl Default for Audit {
    fn default() -> Self {
        Self { path: None, bytes_max: AUDIT_BYTES_MAX }
    }
}

impl Audit {
    /// Where the log of this instance is.
    pub fn path_of(&self, instance: &str) -> PathBuf {
        self.path.clone().unwrap_or_else(|| Path::new("/var/lib/sockway").join(instance).join("audit.jsonl"))
    }
}

/// A digest of 64 hexadecimal digits.
pub fn digest(text: &str) -> Option<Sha256> {
    let mut digest = [0; 32];
    let digits = text.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
    }
    Some(digest)
}

/// The digits of a digest.
pub fn digits(digest: &Sha256) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The tokens of a token file, or what is wrong with it: lines of a name and a digest; what follows `#` says nothing.
pub fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.split('#').next().unwrap_or_default()));
    let token = |(number, line): (usize, &str)| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, said] = words[..] else {
            return Err(format!("line {number}: expected a name and a SHA-256 of 64 hexadecimal digits"));
        };
        let sha256 = digest(said).ok_or_else(|| format!("line {number}: no SHA-256 of 64 hexadecimal digits"))?;
        Ok(Token { name: name.to_owned(), sha256 })
    };
    lines.filter(|(_, line)| !line.trim().is_empty()).map(token).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_is_names_with_digests() {
        let digits_of = "0123456789abcdefABCDEF0123456789".repeat(2);
        let read = tokens(&format!("# who\n\nops {digits_of} # night shift\n  ci\t{digits_of}")).expect("a good file");
        assert_eq!(read.iter().map(|token| token.name.as_str()).collect::<Vec<_>>(), ["ops", "ci"]);
        assert_eq!(digits(&read[0].sha256), digits_of.to_lowercase());
        for (text, line) in [("ops", 1), ("\nops 12", 2), (&format!("ops {digits_of} more"), 1), ("ops xé", 1)] {
            assert!(tokens(text).is_err_and(|wrong| wrong.starts_with(&format!("line {line}: "))), "{text}");
        }
    }
}
