//! What became of an attempt to what follows: whether the answer is taken, another endpoint is asked, or something else stands for it.
//!
//! The strategies are Dubbo's (<https://dubbo.apache.org/en/overview/mannual/java-sdk/tasks/framework/fault-tolerent-strategy/>), read for HTTP:
//! a failure is no answer, or one whose status says that whoever answers cannot; and what has an effect each time it is sent is sent once,
//! unless nobody can have seen it, or the configuration says otherwise.

pub mod aggregate;

use crate::{
    cluster::Seen,
    config::strategy::{Kind, Strategy},
};

/// Retries may take so much of what a service's endpoints have in flight, in percent: Envoy's budget.
const BUDGET_PERCENT: u64 = 20;
/// So many retries at once are always allowed.
const BUDGET_MIN: u64 = 3;

/// What is known of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
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

/// Whether an attempt has failed.
pub fn has_failed(rules: &Strategy, seen: Seen) -> bool {
    match seen.status() {
        Some(status) => rules.failed_status.iter().any(|range| range.contains(&status.into())),
        None => seen != Seen::Connected,
    }
}

/// What follows a failure.
pub fn next(rules: &Strategy, failure: Failure) -> Next {
    let may_repeat = failure.is_idempotent || rules.non_idempotent;
    match &rules.kind {
        Kind::Failover(retries) if failure.retries < *retries && (may_repeat || failure.is_unprocessed) => Next::Again,
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
pub fn is_within_budget(retrying: u64, in_flight: u64) -> bool {
    retrying < BUDGET_MIN.max(in_flight * BUDGET_PERCENT / 100)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::config::strategy::{Aggregate, Broadcast, Failback};

    fn rules(kind: Kind) -> Strategy {
        Strategy { kind, failed_status: vec![500..=500, 502..=504], non_idempotent: false, body_bytes_max: 0 }
    }

    #[test]
    fn what_is_no_answer_or_says_that_it_cannot_has_failed() {
        let rules = rules(Kind::Failfast);
        let answered = |status, grpc_status| Seen::Answered { status, grpc_status };
        for (seen, expected) in [
            (Seen::NotConnected, true),
            (Seen::ConnectLate, true),
            (Seen::NoResponse, true),
            (Seen::Late, true),
            (Seen::Connected, false),
            (answered(200, None), false),
            (answered(404, None), false),
            (answered(500, None), true),
            (answered(501, None), false),
            (answered(504, None), true),
            (answered(200, Some(0)), false),
            (answered(200, Some(5)), false),
            (answered(200, Some(14)), true),
            (answered(200, Some(4)), true),
            (answered(200, Some(12)), false),
            (answered(200, Some(99)), true),
        ] {
            assert_eq!(has_failed(&rules, seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn each_strategy_does_what_its_name_says() {
        let failback = || Kind::Failback(Failback { retries: 3, interval: Duration::from_secs(5), tasks: 100 });
        let all = || Kind::Broadcast(Broadcast { subset: BTreeMap::new(), aggregate: Aggregate::All });
        let failure = |is_idempotent, is_unprocessed, retries| Failure { is_idempotent, is_unprocessed, retries };
        for (kind, said, failure, expected) in [
            (Kind::Failover(2), false, failure(true, false, 0), Next::Again),
            (Kind::Failover(2), false, failure(true, false, 1), Next::Again),
            (Kind::Failover(2), false, failure(true, false, 2), Next::Give),
            (Kind::Failover(2), false, failure(false, false, 0), Next::Give),
            (Kind::Failover(2), false, failure(false, true, 0), Next::Again),
            (Kind::Failover(2), false, failure(false, true, 2), Next::Give),
            (Kind::Failover(2), true, failure(false, false, 0), Next::Again),
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
    fn retries_are_a_fifth_of_what_is_in_flight_or_three() {
        for (retrying, in_flight, expected) in [
            (0, 0, true),
            (2, 1, true),
            (3, 1, false),
            (3, 19, false),
            (3, 20, true),
            (19, 100, true),
            (20, 100, false),
        ] {
            assert_eq!(is_within_budget(retrying, in_flight), expected, "{retrying} of {in_flight}");
        }
    }
}
