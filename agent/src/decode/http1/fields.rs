//! The fields that decide how a message is framed, and those that concern one connection only.

use std::mem;

use httparse::Header;
use smallvec::SmallVec;

use super::Edits;

/// What the fields of one head say.
#[derive(Debug)]
pub(super) struct Fields<'b> {
    /// How many Transfer-Encoding fields there are.
    pub codings: usize,
    /// The last of them is exactly `chunked`.
    pub chunked: bool,
    pub length: Option<u64>,
    pub host: Option<(&'b [u8], Line)>,
    /// Connection says so.
    pub close: bool,
    pub keep_alive: bool,
    pub upgrade: bool,
    /// Upgrade names WebSocket and nothing else.
    pub websocket: bool,
    upgrades: usize,
    pub expects_continue: bool,
    /// Hop by hop, always cut.
    hop: SmallVec<[Line; 2]>,
    /// Cut unless the connection is being upgraded.
    upgrading: SmallVec<[Line; 1]>,
    /// Cut when the message has no body.
    framing: SmallVec<[Line; 1]>,
    /// Trailer: cut where no trailer fields can come.
    announcing: SmallVec<[Line; 1]>,
    pub expect: Option<Line>,
    /// TE says that trailer fields are understood, and something else.
    takes_trailers: bool,
    /// The same, or nothing else; and Connection names it, as it must (RFC 9110 section 10.1.4).
    names_te: bool,
    /// Connection says more than close, keep-alive and upgrade, or says upgrade along with something else.
    connection_is_plain_upgrade: bool,
}

/// A field's line in the head, CRLF included.
pub(super) type Line = (usize, usize);

/// Where `part`, a slice of `whole`, begins.
pub(super) fn offset(whole: &[u8], part: &[u8]) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// Checks that every line of the head ends in CRLF; returns the length of the start line.
pub(super) fn check_lines(head: &[u8], headers: &[Header<'_>]) -> Result<usize, &'static str> {
    const BARE: &str = "a line does not end in CRLF";
    let ends_well = |end: usize| end >= 2 && head.get(end - 2..end) == Some(b"\r\n");
    let last = head.len().saturating_sub(2);
    let start_line = headers.first().map_or(last, |header| offset(head, header.name.as_bytes()));
    let all = ends_well(head.len())
        && ends_well(last)
        && headers.iter().all(|header| ends_well(offset(head, header.name.as_bytes())));
    if all { Ok(start_line) } else { Err(BARE) }
}

impl<'b> Fields<'b> {
    /// Reads them. `headers` point into `head`.
    pub(super) fn read(head: &[u8], headers: &[Header<'b>], is_request: bool) -> Result<Self, &'static str> {
        let mut fields = Self {
            codings: 0,
            chunked: false,
            length: None,
            host: None,
            close: false,
            keep_alive: false,
            upgrade: false,
            websocket: false,
            upgrades: 0,
            expects_continue: false,
            hop: SmallVec::new(),
            upgrading: SmallVec::new(),
            framing: SmallVec::new(),
            announcing: SmallVec::new(),
            expect: None,
            takes_trailers: false,
            names_te: false,
            connection_is_plain_upgrade: false,
        };
        let mut names_others = false;
        for (index, header) in headers.iter().enumerate() {
            let start = offset(head, header.name.as_bytes());
            let end = headers.get(index + 1).map_or(head.len() - 2, |next| offset(head, next.name.as_bytes()));
            if !is_request && head.get(start + header.name.len()) != Some(&b':') {
                fields.cut_space_before_colon(head, header, start);
            }
            names_others |= fields.read_one(header, (start, end), is_request)?;
        }
        if names_others {
            fields.cut_named(head, headers, is_request);
        }
        let announcing = mem::take(&mut fields.announcing);
        match fields.chunked {
            true => fields.framing.extend(announcing),
            false => fields.hop.extend(announcing),
        }
        Ok(fields)
    }

    /// Reads one field; returns whether it is a Connection that names other fields.
    fn read_one(&mut self, header: &Header<'b>, line: Line, is_request: bool) -> Result<bool, &'static str> {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        // The lengths first: most fields are none of these.
        match header.name.len() {
            2 if is("te") && !is_trailers(header.value) => {
                self.takes_trailers |= is_request && options(header.value).any(is_trailers);
                self.hop.push(line);
            }
            4 if is_request && is("host") => self.read_host(header.value, line)?,
            6 if is("expect") => {
                self.expects_continue |= header.value.eq_ignore_ascii_case(b"100-continue");
                self.expect = Some(line);
            }
            7 if is("upgrade") => {
                self.websocket = self.upgrades == 0 && header.value.eq_ignore_ascii_case(b"websocket");
                self.upgrades += 1;
                self.upgrading.push(line);
            }
            7 if is("trailer") => self.announcing.push(line),
            10 if is("keep-alive") => self.hop.push(line),
            10 if is("connection") => return Ok(self.read_connection(header.value, line)),
            14 if is("content-length") => self.read_length(header.value, line)?,
            // Concerns an upgrade to h2c, which is declined (RFC 9113 section 3.1): passed on, it would smuggle one.
            14 if is("http2-settings") => self.hop.push(line),
            17 if is("transfer-encoding") => {
                self.codings += 1;
                self.chunked = header.value.eq_ignore_ascii_case(b"chunked");
                self.framing.push(line);
            }
            6.. if header.name.as_bytes()[..6].eq_ignore_ascii_case(b"proxy-") => self.hop.push(line),
            _ => {}
        }
        Ok(false)
    }

    fn read_host(&mut self, value: &'b [u8], line: Line) -> Result<(), &'static str> {
        match self.host.replace((value, line)) {
            None => Ok(()),
            Some(_) => Err("more than one Host"),
        }
    }

    fn read_connection(&mut self, value: &[u8], line: Line) -> bool {
        let mut names_others = false;
        for option in options(value) {
            match option {
                _ if option.eq_ignore_ascii_case(b"close") => self.close = true,
                _ if option.eq_ignore_ascii_case(b"keep-alive") => self.keep_alive = true,
                _ if option.eq_ignore_ascii_case(b"upgrade") => self.upgrade = true,
                _ => names_others = true,
            }
        }
        if value.eq_ignore_ascii_case(b"upgrade") && !self.connection_is_plain_upgrade {
            self.connection_is_plain_upgrade = true;
            self.upgrading.push(line);
        } else {
            self.hop.push(line);
        }
        names_others
    }

    fn read_length(&mut self, value: &[u8], line: Line) -> Result<(), &'static str> {
        let length = decimal(value).ok_or("invalid Content-Length")?;
        match self.length.replace(length) {
            None => self.framing.push(line),
            // Said again: once is enough.
            Some(before) if before == length => self.hop.push(line),
            Some(_) => return Err("Content-Length fields that differ"),
        }
        Ok(())
    }

    fn cut_space_before_colon(&mut self, head: &[u8], header: &Header<'_>, start: usize) {
        let name_end = start + header.name.len();
        let spaces = head[name_end..].iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.hop.push((name_end, name_end + spaces));
    }

    /// Cuts what Connection names, except what concerns the whole way, and Upgrade, which stays while the connection is being upgraded.
    fn cut_named(&mut self, head: &[u8], headers: &[Header<'_>], is_request: bool) {
        let connections = || headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
        for (index, header) in headers.iter().enumerate() {
            let name = header.name.as_bytes();
            let is_named = connections().any(|one| options(one.value).any(|option| option.eq_ignore_ascii_case(name)));
            let is_te = is_request && header.name.eq_ignore_ascii_case("te");
            if is_named && is_te && options(header.value).any(is_trailers) {
                self.names_te = true;
            } else if is_named && !is_end_to_end(header.name) && !header.name.eq_ignore_ascii_case("upgrade") {
                let end = headers.get(index + 1).map_or(head.len() - 2, |next| offset(head, next.name.as_bytes()));
                self.hop.push((offset(head, name), end));
            }
        }
    }

    /// Whether whoever wrote them goes on with the connection afterwards (RFC 9112 section 9.3).
    pub(super) fn wants_more(&self, is_http10: bool) -> bool {
        !self.close && (self.keep_alive || !is_http10)
    }

    /// What must be cut before the head is passed on.
    pub(super) fn cuts(&self, is_upgrade: bool, is_http10: bool, edits: &mut Edits) {
        edits.cuts.extend_from_slice(&self.hop);
        if !is_upgrade {
            edits.cuts.extend_from_slice(&self.upgrading);
        } else if !self.connection_is_plain_upgrade {
            edits.insert.extend_from_slice(b"Connection: Upgrade\r\n");
        }
        if self.takes_trailers {
            edits.insert.extend_from_slice(b"TE: trailers\r\n");
        }
        if self.names_te {
            edits.insert.extend_from_slice(b"Connection: TE\r\n");
        }
        if is_http10 {
            // Means nothing in HTTP/1.0 (RFC 9110 section 10.1.1), and something in the version we speak.
            edits.cuts.extend(self.expect);
        }
    }

    /// Cuts what tells the length of a body.
    pub(super) fn cut_framing(&self, edits: &mut Edits) {
        edits.cuts.extend_from_slice(&self.framing);
    }
}

/// Whether this is all that TE says of the whole way to the endpoint.
fn is_trailers(value: &[u8]) -> bool {
    value.eq_ignore_ascii_case(b"trailers")
}

/// Sorts cuts and joins those that touch or overlap.
pub(super) fn sort_cuts(cuts: &mut SmallVec<[Line; 2]>) {
    if cuts.len() < 2 {
        return;
    }
    cuts.sort_unstable();
    cuts.dedup_by(|next, before| {
        let joins = next.0 <= before.1;
        if joins {
            before.1 = before.1.max(next.1);
        }
        joins
    });
}

fn options(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|option| !option.is_empty())
}

/// Fields that Connection may not name (RFC 9110 section 7.6.1): they frame the message, or somebody's safety hangs on them.
fn is_end_to_end(name: &str) -> bool {
    const NAMES: [&str; 18] = [
        "host",
        "content-length",
        "transfer-encoding",
        "content-type",
        "content-encoding",
        "content-range",
        "authorization",
        "www-authenticate",
        "cookie",
        "set-cookie",
        "cache-control",
        "origin",
        "range",
        "expect",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-real-ip",
    ];
    NAMES.iter().any(|end_to_end| name.eq_ignore_ascii_case(end_to_end))
}

/// `1*DIGIT`, not above 2^63-1.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse::<u64>().ok().filter(|length| i64::try_from(*length).is_ok())
}

/// Whether it can be the host and port of an http address (RFC 3986 section 3.2), without user information. Empty can be: it is how
/// Host says that there is none.
pub(in crate::decode) fn is_authority(value: &[u8]) -> bool {
    let (host, port) = match value.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !value[colon..].contains(&b']') => (&value[..colon], &value[colon + 1..]),
        _ => (value, &[][..]),
    };
    let is_host = match host {
        [b'[', inner @ .., b']'] => {
            !inner.is_empty() && inner.iter().all(|byte| byte.is_ascii_alphanumeric() || b":.%-_~".contains(byte))
        }
        _ => host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte)),
    };
    is_host && port.iter().all(u8::is_ascii_digit) && (port.is_empty() || !host.is_empty())
}
