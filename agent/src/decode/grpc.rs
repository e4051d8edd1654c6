//! What gRPC adds to HTTP/2: outcomes as a status of its own (the project's "gRPC over HTTP2").

/// Codes of `grpc-status` that the agent gives itself.
pub mod code {
    /// The caller went away.
    pub const CANCELLED: u8 = 1;
    /// Nobody knows.
    pub const UNKNOWN: u8 = 2;
    /// The call's time was over.
    pub const DEADLINE_EXCEEDED: u8 = 4;
    /// Not allowed.
    pub const PERMISSION_DENIED: u8 = 7;
    /// Too much was asked.
    pub const RESOURCE_EXHAUSTED: u8 = 8;
    /// Not served here.
    pub const UNIMPLEMENTED: u8 = 12;
    /// Something broke a rule.
    pub const INTERNAL: u8 = 13;
    /// Try again later.
    pub const UNAVAILABLE: u8 = 14;
    /// Who is there?
    pub const UNAUTHENTICATED: u8 = 16;
}

/// Whether a message with this content type is gRPC's: `application/grpc`, a suffix (`+proto`), parameters; not `application/grpc-web`.
pub fn is_grpc(content_type: &[u8]) -> bool {
    const PREFIX: &[u8] = b"application/grpc";
    content_type.len() >= PREFIX.len()
        && content_type[..PREFIX.len()].eq_ignore_ascii_case(PREFIX)
        && matches!(content_type.get(PREFIX.len()), None | Some(b'+' | b';' | b' '))
}

/// A text as the value of `grpc-message`: what is not printable ASCII, and the percent sign, as `%` and two digits.
pub fn message(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
        encoded
    })
}

/// The code that tells a gRPC caller what this HTTP status would have told.
pub fn of_http(status: u16) -> u8 {
    match status {
        400 => code::INTERNAL,
        401 => code::UNAUTHENTICATED,
        403 => code::PERMISSION_DENIED,
        404 | 501 => code::UNIMPLEMENTED,
        429 | 502..=504 => code::UNAVAILABLE,
        _ => code::UNKNOWN,
    }
}

/// The code that tells a gRPC caller what this code of RST_STREAM would have told.
pub fn of_reset(reason: u32) -> u8 {
    match reason {
        0x7 => code::UNAVAILABLE,        // REFUSED_STREAM
        0x8 => code::CANCELLED,          // CANCEL
        0xb => code::RESOURCE_EXHAUSTED, // ENHANCE_YOUR_CALM
        0xc => code::PERMISSION_DENIED,  // INADEQUATE_SECURITY
        _ => code::INTERNAL,
    }
}

/// The code in a value of `grpc-status`; one that is none means that nobody knows.
pub fn status(value: &[u8]) -> u8 {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|code| *code <= 16)
        .unwrap_or(code::UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for yes in
            ["application/grpc", "application/grpc+proto", "Application/GRPC;charset=utf-8", "application/grpc ; a"]
        {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in ["", "application/grp", "application/grpc-web", "application/grpcx", "text/plain"] {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(message("no 100% of ü\n"), "no 100%25 of %C3%BC%0A");
    }

    #[test]
    fn every_outcome_has_its_code() {
        let of = |codes: &[u16]| codes.iter().map(|status| of_http(*status)).collect::<Vec<u8>>();
        assert_eq!(of(&[400, 401, 403, 404, 429, 502, 503, 504, 500, 302]), [13, 16, 7, 12, 14, 14, 14, 14, 2, 2]);
        assert_eq!([0, 1, 7, 8, 0xb, 0xc].map(of_reset), [13, 13, 14, 1, 8, 7]);
        assert_eq!([&b"0"[..], b"16", b"17", b"x", b""].map(status), [0, 16, 2, 2, 2]);
    }
}
