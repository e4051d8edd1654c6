//! What became of an attempt to what follows: whether the answer is taken, another endpoint is asked, or something else stands for it.
//!
//! The strategies are Dubbo's (<https://dubbo.apache.org/en/overview/mannual/java-sdk/tasks/framework/fault-tolerent-strategy/>), read for HTTP:
//! a failure is no answer, or one whose status says that whoever answers cannot; and what has an effect each time it is sent is sent once,
//! unless nobody can have seen it, or the configuration says otherwise.

pub mod aggregate;

use std::time::Duration;

use crate::{
    chance::part_of,
    cluster::{Cause, Seen},
    config::{
        retry::{BackOff, Budget, Failures},
        strategy::{Kind, Strategy},
    },
};

/// What an answer says of when to come again counts for so long at most: Envoy's bound.
const TOLD_MAX: Duration = Duration::from_secs(300);

/// What is known of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why it is one.
    pub reason: Cause,
    /// The effect of the request sent twice is that of once.
    pub is_idempotent: bool,
    /// Nobody can have processed it.
    pub is_unprocessed: bool,
    /// How often it was tried again already.
    pub retries: u32,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The caller is told how it went.
    Give,
    /// Another endpoint is asked.
    Again,
    /// The caller is told that it went well.
    Absorb,
    /// It is sent again later.
    Defer,
}

/// Why an attempt has failed, if it has; `is_unprocessed`: nobody can have processed it.
pub fn failed(rules: &Strategy, seen: Seen, is_unprocessed: bool) -> Option<Cause> {
    let all = Failures { connect_failure: true, refused_stream: true, reset: true, late: true, grpc: 0 };
    let on = if let Kind::Failover(retry) = &rules.kind { retry.on } else { all };
    if let Seen::Answered { grpc_status: Some(code), .. } = seen
        && on.grpc.checked_shr(code.into()).is_some_and(|codes| codes & 1 == 1)
    {
        return Some(Cause::Grpc);
    }
    if let Some(status) = seen.status() {
        let is_meant = rules.failed_status.iter().any(|range| range.contains(&status.into()));
        return is_meant.then(|| Cause::of_status(status));
    }
    let (reason, is_meant) = match seen {
        Seen::NotConnected | Seen::ConnectLate => (Cause::ConnectFailure, on.connect_failure),
        Seen::NoResponse if is_unprocessed => (Cause::RefusedStream, on.refused_stream),
        Seen::NoResponse => (Cause::Reset, on.reset),
        Seen::Late => (Cause::Late, on.late),
        Seen::Connected | Seen::Answered { .. } => return None,
    };
    is_meant.then_some(reason)
}

/// What follows a failure.
pub fn next(rules: &Strategy, failure: Failure) -> Next {
    let may_repeat = failure.is_idempotent || rules.non_idempotent;
    let may_retry = may_repeat || failure.is_unprocessed || failure.reason == Cause::Grpc;
    match &rules.kind {
        Kind::Failover(retry) if failure.retries < retry.attempts && may_retry => Next::Again,
        Kind::Failsafe => Next::Absorb,
        Kind::Failback(_) if may_repeat => Next::Defer,
        Kind::Failover(_) | Kind::Failfast | Kind::Failback(_) | Kind::Forking(_) | Kind::Broadcast(_) => Next::Give,
    }
}

/// How many endpoints a request is sent to at once, if that is for the strategy to say and not for who is there.
pub fn forks(rules: &Strategy, is_idempotent: bool) -> u32 {
    match rules.kind {
        Kind::Forking(forks) if is_idempotent || rules.non_idempotent => forks,
        _ => 1,
    }
}

/// Whether one more may be tried again, where so many of a service's requests are in flight, and so many of them are retries: what fails must
/// not become a multiple of itself.
pub fn is_within_budget(budget: Budget, retrying: u64, in_flight: u64) -> bool {
    retrying < u64::from(budget.min).max(in_flight.saturating_mul(budget.percent.into()) / 100)
}

/// How long is waited before the `nth` retry, the first of which is 1, by 64 random bits: uniformly less than (2^N − 1) times the base, as
/// Envoy's fully jittered back-off.
pub fn pause(rules: BackOff, nth: u32, chance: u64) -> Duration {
    let factor = 2_u32.checked_pow(nth).map_or(u32::MAX, |power| power - 1);
    part_of(rules.base.saturating_mul(factor).min(rules.max), chance)
}

/// How long is waited where an answer says when to come again, in whole seconds: that, and up to half as much (Envoy's). `None`: it says no
/// such time, or one that is too far off.
pub fn pause_told(value: &[u8], chance: u64) -> Option<Duration> {
    let told = Duration::from_secs(number(value)?);
    (told <= TOLD_MAX).then(|| told + part_of(told / 2, chance))
}

/// How long a gRPC server wants to be left alone (`grpc-retry-pushback-ms`); `None`: for ever, which anything that is no time means, too (gRFC
/// A6).
pub fn push_back(value: &[u8]) -> Option<Duration> {
    number(value).map(Duration::from_millis)
}

fn number(value: &[u8]) -> Option<u64> {
    let text = str::from_utf8(value.trim_ascii()).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{prop_assert, proptest};

    use super::*;
    use crate::config::{
        retry::Retry,
        strategy::{Aggregate, Broadcast, Failback},
    };

    fn rules(kind: Kind) -> Strategy {
        Strategy { kind, failed_status: vec![500..=500, 502..=504], non_idempotent: false, body_bytes_max: 0 }
    }

    fn failover(retries: u32) -> Kind {
        Kind::Failover(Box::new(Retry::failover(retries)))
    }

    #[test]
    fn what_is_no_answer_or_says_that_it_cannot_has_failed() {
        use Cause::{ConnectFailure, GatewayError, Late, RefusedStream, Reset, ServerError};
        let answered = |status, grpc_status| Seen::Answered { status, grpc_status };
        for (seen, is_unprocessed, expected) in [
            (Seen::NotConnected, true, Some(ConnectFailure)),
            (Seen::ConnectLate, true, Some(ConnectFailure)),
            (Seen::NoResponse, false, Some(Reset)),
            (Seen::NoResponse, true, Some(RefusedStream)),
            (Seen::Late, false, Some(Late)),
            (Seen::Connected, false, None),
            (answered(200, None), false, None),
            (answered(404, None), false, None),
            (answered(500, None), false, Some(ServerError)),
            (answered(501, None), false, None),
            (answered(504, None), false, Some(GatewayError)),
            (answered(200, Some(0)), false, None),
            (answered(200, Some(5)), false, None),
            (answered(200, Some(14)), false, Some(GatewayError)),
            (answered(200, Some(4)), false, Some(GatewayError)),
            (answered(200, Some(12)), false, None),
            (answered(200, Some(99)), false, Some(ServerError)),
        ] {
            for rules in [rules(Kind::Failfast), rules(failover(1))] {
                assert_eq!(failed(&rules, seen, is_unprocessed), expected, "{seen:?}");
            }
        }
    }

    #[test]
    fn of_retries_only_what_was_named_is_a_failure() {
        let answered = |status, grpc_status| Seen::Answered { status, grpc_status };
        let all = [
            (Seen::ConnectLate, true, Cause::ConnectFailure),
            (Seen::NoResponse, true, Cause::RefusedStream),
            (Seen::NoResponse, false, Cause::Reset),
            (Seen::Late, false, Cause::Late),
            (answered(409, None), false, Cause::ClientError),
            (answered(307, None), false, Cause::Status),
            (answered(200, Some(10)), false, Cause::Grpc),
        ];
        let none = Failures::default();
        for (on, statuses, expected) in [
            (Failures { connect_failure: true, ..none }, vec![], Cause::ConnectFailure),
            (Failures { refused_stream: true, ..none }, vec![], Cause::RefusedStream),
            (Failures { reset: true, ..none }, vec![], Cause::Reset),
            (Failures { late: true, ..none }, vec![], Cause::Late),
            (Failures { grpc: 1 << 10, ..none }, vec![], Cause::Grpc),
            (none, vec![307..=307], Cause::Status),
        ] {
            let kind = Kind::Failover(Box::new(Retry { on, ..Retry::failover(1) }));
            let rules = Strategy { failed_status: statuses, ..rules(kind) };
            let found: Vec<Cause> = all.iter().filter_map(|(seen, unseen, _)| failed(&rules, *seen, *unseen)).collect();
            assert_eq!(found, [expected], "{on:?}");
        }
    }

    #[test]
    fn each_strategy_does_what_its_name_says() {
        let failback = || Kind::Failback(Failback { retries: 3, interval: Duration::from_secs(5), tasks: 100 });
        let all = || Kind::Broadcast(Broadcast { subset: BTreeMap::new(), aggregate: Aggregate::All });
        let failure = |is_idempotent, is_unprocessed, retries| {
            let reason = Cause::GatewayError;
            Failure { reason, is_idempotent, is_unprocessed, retries }
        };
        for (kind, said, failure, expected) in [
            (failover(2), false, failure(true, false, 0), Next::Again),
            (failover(2), false, failure(true, false, 1), Next::Again),
            (failover(2), false, failure(true, false, 2), Next::Give),
            (failover(2), false, failure(false, false, 0), Next::Give),
            (failover(2), false, Failure { reason: Cause::Grpc, ..failure(false, false, 0) }, Next::Again),
            (failover(2), false, failure(false, true, 0), Next::Again),
            (failover(2), false, failure(false, true, 2), Next::Give),
            (failover(2), true, failure(false, false, 0), Next::Again),
            (Kind::Failfast, true, failure(true, true, 0), Next::Give),
            (Kind::Failsafe, false, failure(false, false, 0), Next::Absorb),
            (failback(), false, failure(true, false, 0), Next::Defer),
            (failback(), false, failure(false, true, 0), Next::Give),
            (failback(), true, failure(false, false, 0), Next::Defer),
            (Kind::Forking(2), true, failure(true, true, 0), Next::Give),
            (all(), true, failure(true, true, 0), Next::Give),
        ] {
            let rules = Strategy { non_idempotent: said, ..rules(kind) };
            assert_eq!(next(&rules, failure), expected, "{:?} {said} {failure:?}", rules.kind);
        }
    }

    #[test]
    fn what_has_an_effect_each_time_is_not_forked_unless_that_is_said() {
        let forking = rules(Kind::Forking(3));
        let said = Strategy { non_idempotent: true, ..forking.clone() };
        let found =
            [forks(&forking, true), forks(&forking, false), forks(&said, false), forks(&rules(Kind::Failfast), true)];
        assert_eq!(found, [3, 1, 3, 1]);
    }

    #[test]
    fn retries_are_a_part_of_what_is_in_flight_or_a_few() {
        for (retrying, in_flight, expected) in [
            (0, 0, true),
            (2, 1, true),
            (3, 1, false),
            (3, 19, false),
            (3, 20, true),
            (19, 100, true),
            (20, 100, false),
        ] {
            assert_eq!(is_within_budget(Budget::default(), retrying, in_flight), expected, "{retrying} of {in_flight}");
        }
        assert!(!is_within_budget(Budget { percent: 0, min: 0 }, 0, u64::MAX), "none at all");
    }

    proptest! {
        #[test]
        fn no_wait_is_longer_than_envoys(nth in 1..200_u32, chance: u64) {
            let rules = BackOff { base: Duration::from_millis(25), max: Duration::from_millis(250), heeds_answers: false };
            let most = Duration::from_millis([25, 75, 175].get(nth as usize - 1).copied().unwrap_or(250));
            let (pause, longest) = (pause(rules, nth, chance), super::pause(rules, nth, u64::MAX));
            prop_assert!(pause <= longest && longest < most, "{pause:?} {longest:?}");
            prop_assert!(longest > most - Duration::from_millis(1));
        }
    }

    #[test]
    fn an_answer_says_when_to_come_again() {
        let told = |value: &str, chance| pause_told(value.as_bytes(), chance);
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(
            [told("2", 0), told(" 300 ", 0), told("301", 0), told("Wed, 21 Oct", 0), told("-1", 0)],
            [seconds(2), seconds(300), None, None, None]
        );
        assert!(told("2", u64::MAX).is_some_and(|pause| pause > Duration::from_millis(2_999)));
        let back = |value: &str| push_back(value.as_bytes());
        let none = [back("-1"), back(""), back("soon"), back("1.5"), back("99999999999999999999")];
        assert_eq!(none, [None; 5]);
        assert_eq!([back("0"), back("250")], [Some(Duration::ZERO), Some(Duration::from_millis(250))]);
    }
}
