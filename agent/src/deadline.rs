//! How long a request has left: what its service or route allows, and what its caller says, in whichever of the known fields it says it.
//!
//! Comes in: the rules, and the fields as they stand. Goes out: how long the request may take from when it came, and the fields in which the
//! endpoint is told what is left of that. Only durations are believed: nobody's clock but our own is looked at.

pub mod auto;

use std::time::Duration;

use crate::config::deadline::{Carrier, Carriers, Timing};

/// How long a request may take, and who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// From when it came.
    pub time: Duration,
    /// Whether that is what the caller says, and less than what its service or route allows.
    pub is_callers: bool,
    /// The fields in which what is left of it is told.
    pub told: Carriers,
    /// The caller's fields that are not passed on as they stand.
    pub replaced: Carriers,
}

/// The values of a request's fields, by [`Carrier::ALL`].
pub type Said<'v> = [Option<&'v [u8]>; Carrier::ALL.len()];

/// What is said of a request's time; `None`: nothing.
///
/// The smallest time holds. What is left is told in the fields that it came in, and in gRPC's own to who is called by gRPC; where it came in
/// none, in Envoy's.
pub fn budget(timing: Timing, is_grpc: bool, said: &Said<'_>) -> Option<Budget> {
    let Some(rules) = timing.deadline else {
        let told = Carriers::default().and(Carrier::Grpc);
        let caller = said[Carrier::Grpc as usize].filter(|_| is_grpc).and_then(|value| read(Carrier::Grpc, value));
        let told = if caller.is_some() { told } else { Carriers::default() };
        let time = least(timing.timeout, caller)?;
        let is_callers = is_callers(timing.timeout, caller);
        return Some(Budget { time, is_callers, told, replaced: told });
    };
    let minded = if is_grpc { rules.accept.and(Carrier::Grpc) } else { rules.accept };
    let (mut caller, mut came) = (None, Carriers::default());
    for carrier in Carrier::ALL.into_iter().filter(|carrier| rules.reset || minded.has(*carrier)) {
        let Some(value) = said[carrier as usize] else { continue };
        if rules.reset {
            came = came.and(carrier);
        } else if let Some(time) = read(carrier, value) {
            came = came.and(carrier);
            caller = least(caller, Some(time));
        }
    }
    let time = match least(timing.timeout, caller) {
        Some(time) => time,
        None if came.is_empty() => return None,
        // What was taken away is replaced by nothing.
        None => {
            return Some(Budget { time: Duration::MAX, is_callers: false, told: Carriers::default(), replaced: came });
        }
    };
    let kept = if rules.reset { Carriers::default() } else { came };
    let told = match (is_grpc, kept.is_empty()) {
        (true, _) => kept.and(Carrier::Grpc),
        (false, false) => kept,
        (false, true) => kept.and(Carrier::EnvoyExpected),
    };
    let told = if rules.forward { told } else { Carriers::default() };
    Some(Budget { time, is_callers: is_callers(timing.timeout, caller), told, replaced: came })
}

/// Whether the caller's time is the one that holds.
fn is_callers(own: Option<Duration>, caller: Option<Duration>) -> bool {
    caller.is_some_and(|caller| own.is_none_or(|own| caller < own))
}

fn least(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

/// How long a caller waits by the value of a field; `None`: it does not say.
///
/// A time of no milliseconds is none (Envoy: "a value of 0 disables the route's timeout"); one of gRPC or go-micro is over.
pub fn read(carrier: Carrier, value: &[u8]) -> Option<Duration> {
    let value = value.trim_ascii();
    match carrier {
        Carrier::Grpc => grpc(value),
        Carrier::EnvoyExpected | Carrier::EnvoyUpstream | Carrier::Mosn => {
            number(value).filter(|millis| *millis > 0).map(Duration::from_millis)
        }
        Carrier::GoMicro => number(value).map(Duration::from_nanos),
    }
}

/// The same for what is left of it, put behind what is there: rounded down, and never to what would mean that there is no end.
pub fn write(carrier: Carrier, left: Duration, to: &mut Vec<u8>) {
    let whole = |amount: u128| u64::try_from(amount).unwrap_or(u64::MAX);
    match carrier {
        Carrier::Grpc => grpc_value(left, to),
        Carrier::EnvoyExpected | Carrier::EnvoyUpstream | Carrier::Mosn => {
            write_number(whole(left.as_millis().max(1)), to);
        }
        Carrier::GoMicro => write_number(whole(left.as_nanos()), to),
    }
}

/// In decimal digits.
fn write_number(mut number: u64, to: &mut Vec<u8>) {
    // As many as the greatest has.
    let (mut digits, mut start) = ([0; 20], 20);
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    to.extend_from_slice(&digits[start..]);
}

/// Digits, and nothing else.
fn number(value: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let number = value.iter().try_fold(0_u64, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?));
    number.filter(|_| !value.is_empty())
}

/// The value of `grpc-timeout`: 1 to 8 digits and a unit.
fn grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let amount = number(digits).filter(|_| digits.len() <= 8)?;
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
fn grpc_value(left: Duration, to: &mut Vec<u8>) {
    const AMOUNT_MAX: u128 = 99_999_999;
    let units = [(left.as_nanos(), b'n'), (left.as_micros(), b'u'), (left.as_millis(), b'm')];
    let seconds = u128::from(left.as_secs());
    let coarse = [(seconds, b'S'), (seconds / 60, b'M'), (seconds / 3600, b'H')];
    let fits = units.into_iter().chain(coarse).find(|(amount, _)| *amount <= AMOUNT_MAX);
    let (amount, unit) = fits.unwrap_or((AMOUNT_MAX, b'H'));
    write_number(amount as u64, to);
    to.push(unit);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::deadline::{Auto, Deadline};

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn written(carrier: Carrier, left: Duration) -> Vec<u8> {
        let mut value = Vec::new();
        write(carrier, left, &mut value);
        value
    }

    fn of(carriers: &[Carrier]) -> Carriers {
        carriers.iter().copied().fold(Carriers::default(), Carriers::and)
    }

    #[test]
    fn every_field_is_read_as_it_is_defined() {
        use Carrier::{EnvoyExpected, EnvoyUpstream, GoMicro, Grpc, Mosn};
        let secs = Duration::from_secs;
        for (carrier, value, meant) in [
            (Grpc, "1n", Some(Duration::from_nanos(1))),
            (Grpc, "20u", Some(Duration::from_micros(20))),
            (Grpc, "300m", Some(MS(300))),
            (Grpc, "99999999S", Some(secs(99_999_999))),
            (Grpc, "2M", Some(secs(120))),
            (Grpc, "3H", Some(secs(10_800))),
            (Grpc, "0S", Some(Duration::ZERO)),
            (Grpc, "", None),
            (Grpc, "S", None),
            (Grpc, "1", None),
            (Grpc, "1s", None),
            (Grpc, "-1S", None),
            (Grpc, "+1S", None),
            (Grpc, "1 S", None),
            (Grpc, "123456789S", None),
            (EnvoyExpected, "300", Some(MS(300))),
            (EnvoyExpected, " 300 ", Some(MS(300))),
            (EnvoyExpected, "0", None),
            (EnvoyExpected, "-1", None),
            (EnvoyExpected, "1.5", None),
            (EnvoyExpected, "300ms", None),
            (EnvoyExpected, "", None),
            (EnvoyUpstream, "15000", Some(secs(15))),
            (EnvoyUpstream, "99999999999999999999", None),
            (Mosn, "60000", Some(secs(60))),
            (Mosn, "0", None),
            (GoMicro, "5000000000", Some(secs(5))),
            (GoMicro, "1", Some(Duration::from_nanos(1))),
            (GoMicro, "0", Some(Duration::ZERO)),
            (GoMicro, "5s", None),
            (GoMicro, "+5", None),
        ] {
            assert_eq!(read(carrier, value.as_bytes()), meant, "{carrier:?} {value:?}");
        }
    }

    #[test]
    fn what_is_left_is_written_in_eight_digits_for_grpc() {
        for (left, value) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_micros(100_000_999), "100000m"),
            (MS(100_000_999), "100000S"),
            (Duration::from_secs(100_000_059), "1666667M"),
            (Duration::from_secs(99_999_999 * 3600 * 2), "99999999H"),
        ] {
            assert_eq!(written(Carrier::Grpc, left), value.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn what_is_told_never_grows(nanos: u64, which in 0..Carrier::ALL.len()) {
            let (left, carrier) = (Duration::from_nanos(nanos), Carrier::ALL[which]);
            let again = read(carrier, &written(carrier, left)).expect("what is written is read");
            prop_assert!(again <= left.max(MS(1)));
            prop_assert!(again >= left.mul_f64(0.98), "{again:?} of {left:?}");
        }

        #[test]
        fn whatever_a_caller_says_nobody_breaks(value: Vec<u8>) {
            for carrier in Carrier::ALL {
                let _ = read(carrier, &value);
            }
        }
    }

    /// A caller's fields, and what they come to.
    fn judged(timing: Timing, is_grpc: bool, fields: &[(Carrier, &'static str)]) -> Option<Budget> {
        let mut said = Said::default();
        fields.iter().for_each(|(carrier, value)| said[*carrier as usize] = Some(value.as_bytes()));
        budget(timing, is_grpc, &said)
    }

    #[test]
    fn the_smallest_time_holds_and_is_told_in_the_fields_that_came() {
        use Carrier::{EnvoyExpected, EnvoyUpstream, GoMicro, Grpc, Mosn};
        let by_default = Deadline::default();
        let only = |carriers: &[Carrier]| Deadline { accept: of(carriers), ..by_default };
        let reset = Deadline { reset: true, ..by_default };
        let quiet = Deadline { forward: false, ..by_default };
        let envoy = (EnvoyExpected, "300");
        let budget = |millis, told: &[Carrier], replaced: &[Carrier]| {
            Some(Budget { time: MS(millis), is_callers: false, told: of(told), replaced: of(replaced) })
        };
        for (timeout, deadline, is_grpc, fields, expected) in [
            // Of nothing but gRPC's own field anything is known.
            (None, None, false, &[][..], None),
            (None, None, false, &[envoy, (Grpc, "1S")], None),
            (None, None, true, &[(Grpc, "1S"), envoy], budget(1000, &[Grpc], &[Grpc])),
            (None, None, true, &[(Grpc, "x")], None),
            (Some(500), None, true, &[(Grpc, "1S")], budget(500, &[Grpc], &[Grpc])),
            (Some(500), None, false, &[envoy], budget(500, &[], &[])),
            // All fields.
            (None, Some(by_default), false, &[], None),
            (None, Some(by_default), false, &[(Mosn, "soon")], None),
            (None, Some(by_default), false, &[envoy], budget(300, &[EnvoyExpected], &[EnvoyExpected])),
            (
                None,
                Some(by_default),
                false,
                &[envoy, (GoMicro, "200000000"), (Mosn, "x")],
                budget(200, &[EnvoyExpected, GoMicro], &[EnvoyExpected, GoMicro]),
            ),
            (None, Some(by_default), true, &[envoy], budget(300, &[EnvoyExpected, Grpc], &[EnvoyExpected])),
            (Some(100), Some(by_default), false, &[], budget(100, &[EnvoyExpected], &[])),
            (Some(100), Some(by_default), true, &[], budget(100, &[Grpc], &[])),
            (
                Some(900),
                Some(by_default),
                false,
                &[(EnvoyUpstream, "50")],
                budget(50, &[EnvoyUpstream], &[EnvoyUpstream]),
            ),
            // Some.
            (None, Some(only(&[Mosn])), false, &[envoy], None),
            (None, Some(only(&[Mosn])), true, &[(Grpc, "1S"), envoy], budget(1000, &[Grpc], &[Grpc])),
            // Nobody is told.
            (Some(100), Some(quiet), true, &[(Grpc, "1S")], budget(100, &[], &[Grpc])),
            // Nobody is believed.
            (
                Some(100),
                Some(reset),
                false,
                &[envoy, (GoMicro, "x")],
                budget(100, &[EnvoyExpected], &[EnvoyExpected, GoMicro]),
            ),
            (
                None,
                Some(reset),
                true,
                &[(Grpc, "1m")],
                Some(Budget { time: Duration::MAX, is_callers: false, told: of(&[]), replaced: of(&[Grpc]) }),
            ),
        ] {
            let timing = Timing { timeout: timeout.map(MS), deadline, ..Timing::default() };
            let judged = judged(timing, is_grpc, fields);
            if let Some(Budget { time, is_callers, .. }) = judged {
                let is_own = timing.timeout == Some(time) || time == Duration::MAX;
                assert_eq!(is_callers, !is_own, "{timing:?} {is_grpc} {fields:?}");
            }
            let judged = judged.map(|judged| Budget { is_callers: false, ..judged });
            assert_eq!(judged, expected, "{timing:?} {is_grpc} {fields:?}");
        }
    }

    #[test]
    fn a_route_says_more_than_its_service() {
        let service = Timing { timeout: Some(MS(5)), deadline: Some(Deadline::default()), auto: None };
        let route = Timing { timeout: Some(MS(7)), ..Timing::default() };
        assert_eq!(route.or(Some(service)), Timing { timeout: Some(MS(7)), ..service });
        assert_eq!(route.or(None), route);
        assert_eq!(Timing::default().or(Some(service)), service);
        let auto = Timing { auto: Some(Auto { factor: 3, min: MS(1) }), ..service };
        assert_eq!(
            route.or(Some(auto)),
            Timing { timeout: Some(MS(7)), ..service },
            "a timeout is not followed by halves"
        );
        assert_eq!(Timing { timeout: None, ..route }.or(Some(auto)), auto);
    }
}
