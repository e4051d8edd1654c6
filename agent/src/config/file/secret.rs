//! What of a configuration, in the file's own shape, is nobody's to read: by where it stands, not by what it is called. What a request is
//! asked for is told, whatever its name: it proves nothing to anybody, and without it nobody can tell which way a request takes.

/// Where a value stands. Items of a list stand where their list does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'k> {
    /// The keys above it, the innermost last.
    keys: [&'k str; 2],
    is_secret: bool,
}

/// The innermost two keys of what is secret, with all that is below.
const SECRETS: [[&str; 2]; 5] =
    [["tokens", "sha256"], ["filters", "keys"], ["filters", "users"], ["certificates", "key"], ["certificate", "key"]];
/// The keys above the fields that the agent puts into what it sends.
const FIELDS: [[&str; 2]; 10] = [
    ["probe", "headers"],
    ["respond", "headers"],
    ["request", "set"],
    ["request", "add"],
    ["response", "set"],
    ["response", "add"],
    ["request_headers", "set"],
    ["request_headers", "add"],
    ["response_headers", "set"],
    ["response_headers", "add"],
];
/// Words of names of fields that say who somebody is. In doubt a field is not shown: it is only sent, nothing is decided by it.
const TELLING: [&str; 14] = [
    "auth",
    "authentication",
    "authorization",
    "cookie",
    "credential",
    "credentials",
    "token",
    "secret",
    "password",
    "passwd",
    "key",
    "apikey",
    "session",
    "signature",
];

impl<'k> Place<'k> {
    /// The place of what stands at this key here.
    pub fn below<'l>(self, key: &'l str) -> Place<'l>
    where
        'k: 'l,
    {
        let [outer, inner] = self.keys;
        let is_telling = |word: &str| TELLING.iter().any(|telling| telling.eq_ignore_ascii_case(word));
        let is_field = FIELDS.contains(&[outer, inner]) && key.split(['-', '_']).any(is_telling);
        let is_secret = self.is_secret || SECRETS.contains(&[inner, key]) || is_field;
        Place { keys: [inner, key], is_secret }
    }

    /// Whether nothing of what stands here may be shown but its names.
    pub fn is_secret(self) -> bool {
        self.is_secret
    }
}

/// Whether the value of a field is nothing but a piece of the request.
pub fn is_of_request(value: &str) -> bool {
    let name = value.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| !name.is_empty() && !name.contains(['{', '}']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_is_what_stands_where_secrets_do() {
        for (keys, is_secret) in [
            ("admin tokens sha256", true),
            ("services filters keys", true),
            ("filters users", true),
            ("filters keys ann", true),
            ("tls terminate certificates key", true),
            ("tls originate certificate key", true),
            ("services probe headers authorization", true),
            ("probe headers X-Api-Key", true),
            ("probe headers x-team", false),
            ("filters request set proxy-authorization", true),
            ("filters response add set-cookie", true),
            ("filters request remove", false),
            ("routes request_headers set x_auth_token", true),
            ("fallback respond headers cookie", true),
            ("routes match headers authorization", false),
            ("routes match query token", false),
            ("routes match cookies key", false),
            ("filters match headers keys", false),
            ("endpoints labels key", false),
            ("switches token", false),
            ("filters headers authorization", false),
        ] {
            let place = keys.split(' ').fold(Place::default(), Place::below);
            assert_eq!(place.is_secret(), is_secret, "{keys}");
        }
        for (value, is) in [("{id}", true), ("{}", false), ("Bearer x{id}", false), ("{a}b{c}", false), ("id", false)] {
            assert_eq!(is_of_request(value), is, "{value}");
        }
    }
}
