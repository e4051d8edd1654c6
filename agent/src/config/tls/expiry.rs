//! Until when a certificate is valid: the one field that rustls does not tell (RFC 5280 section 4.1.2.5).

use std::{
    fmt,
    time::{Duration, SystemTime},
};

const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;

/// A moment, to the second, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Expiry {
    /// Whether it is over.
    pub fn is_before(self, now: SystemTime) -> bool {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.unix_seconds()) < now
    }

    fn unix_seconds(self) -> u64 {
        // Days since 1970-01-01 of the proleptic Gregorian calendar, with years that begin in March.
        let (year, month) = if self.month > 2 { (self.year, self.month - 3) } else { (self.year - 1, self.month + 9) };
        let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + self.day - 1;
        days.saturating_sub(719_468) * 86_400 + self.hour * 3_600 + self.minute * 60 + self.second
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// The last moment at which a certificate is valid; `None` when that cannot be read.
pub fn of(certificate: &[u8]) -> Option<Expiry> {
    let (certificate, _) = inside(certificate, SEQUENCE)?;
    let (mut rest, _) = inside(certificate, SEQUENCE)?;
    if let Some((_, behind)) = inside(rest, VERSION) {
        rest = behind;
    }
    // Serial number, signature algorithm, issuer.
    for tag in [INTEGER, SEQUENCE, SEQUENCE] {
        rest = inside(rest, tag)?.1;
    }
    let (validity, _) = inside(rest, SEQUENCE)?;
    let (_, not_before, behind) = element(validity)?;
    let _ = not_before;
    let (tag, not_after, _) = element(behind)?;
    time(tag, not_after)
}

/// What an element with this tag holds, and what stands behind it.
fn inside(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, inside, behind) = element(bytes)?;
    (found == tag).then_some((inside, behind))
}

/// Tag, content and what stands behind them, by the distinguished encoding rules.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // The length of the length; none for 0x80, which is of another encoding.
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    let (inside, behind) = rest.split_at_checked(length)?;
    Some((tag, inside, behind))
}

/// `YYMMDDHHMMSSZ` of 1950 to 2049, or `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, text: &[u8]) -> Option<Expiry> {
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?, rest)
        }
        _ => return None,
    };
    let digits = rest.strip_suffix(b"Z").filter(|digits| digits.len() == 10)?;
    let mut pairs = digits.chunks(2).map(number);
    let mut next = |range: std::ops::RangeInclusive<u64>| pairs.next()?.filter(|number| range.contains(number));
    let (month, day) = (next(1..=12)?, next(1..=31)?);
    Some(Expiry { year, month, day, hour: next(0..=23)?, minute: next(0..=59)?, second: next(0..=60)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_both_forms() {
        for (tag, text, shown, seconds) in [
            (UTC_TIME, "700101000000Z", "1970-01-01 00:00:00 UTC", 0),
            (UTC_TIME, "260229235959Z", "2026-02-29 23:59:59 UTC", 1_772_409_599),
            (UTC_TIME, "491231235959Z", "2049-12-31 23:59:59 UTC", 2_524_607_999),
            (GENERALIZED_TIME, "20500101000000Z", "2050-01-01 00:00:00 UTC", 2_524_608_000),
            (GENERALIZED_TIME, "99991231235959Z", "9999-12-31 23:59:59 UTC", 253_402_300_799),
        ] {
            let expiry = time(tag, text.as_bytes()).unwrap();
            assert_eq!((expiry.to_string().as_str(), expiry.unix_seconds()), (shown, seconds));
        }
        for (tag, text) in
            [(UTC_TIME, ""), (UTC_TIME, "7001010000Z"), (UTC_TIME, "701301000000Z"), (INTEGER, "700101000000Z")]
        {
            assert_eq!(time(tag, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_cut_off_has_no_expiry() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut wanted = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
        wanted.not_after = rcgen::date_time_ymd(2031, 2, 3);
        let whole = wanted.self_signed(&key).unwrap().der().to_vec();
        assert_eq!(of(&whole).unwrap().to_string(), "2031-02-03 00:00:00 UTC");
        for length in 0..whole.len() {
            assert_eq!(of(&whole[..length]), None);
        }
    }
}
