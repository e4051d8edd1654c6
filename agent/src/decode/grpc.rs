//! What gRPC adds to HTTP/2: deadlines as a field, and outcomes as a status of its own (the project's "gRPC over HTTP2").

use std::time::Duration;

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

/// The value of `grpc-timeout`: 1 to 8 digits and a unit.
pub fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let amount = digits.iter().fold(0_u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'n' => Duration::from_nanos(amount),
        b'u' => Duration::from_micros(amount),
        b'm' => Duration::from_millis(amount),
        b'S' => Duration::from_secs(amount),
        b'M' => Duration::from_secs(amount * 60),
        b'H' => Duration::from_secs(amount * 3600),
        _ => return None,
    })
}

/// The same as a field's value: in the finest unit whose number has 8 digits at most, rounded down, so that it is never more than was given.
pub fn timeout_value(left: Duration) -> String {
    const AMOUNT_MAX: u128 = 99_999_999;
    let units = [(left.as_nanos(), 'n'), (left.as_micros(), 'u'), (left.as_millis(), 'm')];
    let seconds = u128::from(left.as_secs());
    let coarse = [(seconds, 'S'), (seconds / 60, 'M'), (seconds / 3600, 'H')];
    let fits = units.into_iter().chain(coarse).find(|(amount, _)| *amount <= AMOUNT_MAX);
    let (amount, unit) = fits.unwrap_or((AMOUNT_MAX, 'H'));
    format!("{amount}{unit}")
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
    fn timeouts_are_read_as_they_are_defined() {
        let table = [
            ("1n", Some(Duration::from_nanos(1))),
            ("20u", Some(Duration::from_micros(20))),
            ("300m", Some(Duration::from_millis(300))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("2M", Some(Duration::from_secs(120))),
            ("3H", Some(Duration::from_secs(10_800))),
            ("0S", Some(Duration::ZERO)),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("+1S", None),
            ("1 S", None),
            ("123456789S", None),
        ];
        for (value, meant) in table {
            assert_eq!(timeout(value.as_bytes()), meant, "{value:?}");
        }
    }

    #[test]
    fn what_is_left_is_written_in_eight_digits_and_never_grows() {
        let table = [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_micros(100_000_999), "100000m"),
            (Duration::from_millis(100_000_999), "100000S"),
            (Duration::from_secs(100_000_059), "1666667M"),
            (Duration::from_secs(99_999_999 * 3600 * 2), "99999999H"),
        ];
        for (left, value) in table {
            assert_eq!(timeout_value(left), value);
            assert!(timeout(value.as_bytes()).unwrap() <= left, "{value}");
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
