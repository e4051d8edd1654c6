//! The table of cases: every number of the rules, under a virtual clock.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    cluster::{Service, Snapshot},
    config::file,
};

const OK: Seen = Seen::Answered { status: 200, grpc_status: None };
const ALWAYS: u64 = 0;

fn status(status: u16) -> Seen {
    Seen::Answered { status, grpc_status: None }
}

/// A service, its endpoints, and a clock.
struct World {
    service: Arc<Service>,
    now_ms: u64,
}

impl World {
    fn new(hosts: usize, rules: &str) -> Self {
        let endpoints: Vec<String> = (0..hosts).map(|last| format!("10.0.1.{}:80", last + 1)).collect();
        let endpoints = endpoints.join(", ");
        let text = format!(
            "services: [{{name: a, address: 10.0.0.1:80, protocol: http, outlier: {{{rules}}}, endpoints: [{endpoints}]}}]"
        );
        let snapshot = Snapshot::build(&file::parse(&text, "F").expect("a good file"), &Snapshot::default());
        Self { service: Arc::clone(&snapshot.services[0]), now_ms: 1_000_000 }
    }

    fn court(&self) -> Court<'_> {
        let rules = self.service.config.outlier.as_ref().expect("rules");
        Court { rules, ejections: &self.service.ejections, hosts: self.service.endpoints.len() }
    }

    fn state(&self, place: usize) -> &EndpointState {
        &self.service.endpoints[place].state
    }

    fn saw_by(&self, place: usize, seen: Seen, chance: u64) -> Option<Ejected> {
        let (court, state) = (self.court(), self.state(place));
        let reasons = court.count(state.marks().expect("marks"), seen);
        let eject = |reason| court.eject(state, reason, self.now_ms, chance);
        reasons.into_iter().flatten().find_map(eject)
    }

    fn saw(&self, place: usize, seen: &[Seen]) -> Option<Ejected> {
        let ejected: Vec<Ejected> = seen.iter().filter_map(|seen| self.saw_by(place, *seen, ALWAYS)).collect();
        ejected.last().copied()
    }

    /// So many requests, of which so many are good.
    fn tally(&self, place: usize, requests: usize, good: usize) {
        let marks = self.state(place).marks().expect("marks");
        (0..requests).for_each(|number| marks.external.count(number < good));
    }

    fn interval(&mut self) -> Vec<(usize, Found)> {
        self.after(10_000)
    }

    fn after(&mut self, ms: u64) -> Vec<(usize, Found)> {
        self.now_ms += ms;
        let states: Vec<&EndpointState> = self.service.endpoints.iter().map(|endpoint| &*endpoint.state).collect();
        self.court().look(&states, self.now_ms, || ALWAYS)
    }
}

fn ejected(reason: Reason, seconds: u64) -> Option<Ejected> {
    Some(Ejected { reason, period: Duration::from_secs(seconds) })
}

#[test]
fn five_answers_of_5xx_in_a_row_eject_and_four_do_not() {
    let world = World::new(10, "");
    assert_eq!(world.saw(0, &[status(500); 4]), None);
    assert_eq!(world.saw(0, &[OK]), None);
    assert_eq!(world.saw(0, &[status(500); 4]), None, "a good answer begins anew");
    assert_eq!(world.saw(0, &[status(599)]), ejected(Reason::Consecutive5xx, 30));
    assert!(world.state(0).is_ejected() && !world.state(0).usable() && !world.state(0).is_down());
    assert_eq!(world.saw(0, &[status(500); 20]), None, "it is ejected already");
    assert_eq!(world.saw(1, &[status(499), status(404), status(600), status(302), status(101), OK]), None);
    assert_eq!(world.service.ejections.of(Reason::Consecutive5xx), 1);
}

#[test]
fn what_is_no_answer_is_one_of_503_or_504_unless_it_is_split_off() {
    let none = [Seen::NotConnected, Seen::ConnectLate, Seen::NoResponse, Seen::Late, status(502)];
    assert_eq!(World::new(10, "").saw(0, &none), ejected(Reason::Consecutive5xx, 30));
    let gateway = "enforcing_consecutive_gateway_failure: 100";
    assert_eq!(World::new(10, gateway).saw(0, &none), ejected(Reason::ConsecutiveGatewayFailure, 30));
    let split = World::new(10, "split_local_origin: on");
    assert_eq!(split.saw(0, &none), None, "who answers has accepted");
    let failures = [Seen::NotConnected, Seen::ConnectLate, Seen::NoResponse, Seen::Late];
    assert_eq!(split.saw(0, &failures), None);
    assert_eq!(split.saw(0, &[Seen::NotConnected]), ejected(Reason::ConsecutiveLocalOriginFailure, 30));
    assert_eq!(split.saw(1, &[&failures[..], &[Seen::Connected], &failures].concat()), None);
    let mixed = [status(500), Seen::Late, status(500), Seen::Late, status(500), Seen::Late, status(500)];
    assert_eq!((split.saw(2, &mixed), split.service.ejections.overflow.load(Relaxed)), (None, 0));
    assert_eq!(split.saw(2, &[status(500)]), None, "one of ten is ejected already");
    assert_eq!(split.service.ejections.overflow.load(Relaxed), 1);
}

#[test]
fn gateway_failures_are_found_and_have_no_consequences_unless_enforced() {
    let rules = "consecutive_5xx: 100, consecutive_gateway_failure: 5";
    assert_eq!(World::new(10, rules).saw(0, &[status(503); 50]), None);
    let enforced = World::new(10, &format!("{rules}, enforcing_consecutive_gateway_failure: 100"));
    let four_and_another = [status(502), status(503), status(504), status(503), status(500)];
    assert_eq!(enforced.saw(0, &four_and_another), None, "500 is no gateway's");
    assert_eq!(enforced.saw(0, &[status(503); 5]), ejected(Reason::ConsecutiveGatewayFailure, 30));
}

#[test]
fn what_grpc_says_is_taken_for_what_http_would_have_said() {
    let grpc = |code| Seen::Answered { status: 200, grpc_status: Some(code) };
    let bad: Vec<u8> = (0..=16).filter(|code| World::new(10, "").saw(0, &[grpc(*code); 5]).is_some()).collect();
    assert_eq!(bad, [2, 4, 12, 13, 14, 15]);
}

#[test]
fn an_ejection_lasts_for_the_base_times_their_number_and_no_longer_than_the_most() {
    let mut world = World::new(10, "");
    let mut periods = Vec::new();
    for _ in 0..13 {
        let found = world.saw(0, &[status(503); 5]).expect("an ejection");
        periods.push(found.period.as_secs());
        assert_eq!(world.after(found.period.as_millis() as u64 - 1), [], "not a millisecond too early");
        assert_eq!(world.after(1), [(0, Found::Back)]);
        assert!(world.state(0).usable());
    }
    assert_eq!(periods, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]);
}

#[test]
fn each_interval_in_which_it_is_well_makes_the_next_ejection_shorter() {
    let mut world = World::new(10, "");
    for seconds in [30, 60, 90] {
        assert_eq!(world.saw(0, &[status(503); 5]), ejected(Reason::Consecutive5xx, seconds));
        assert_eq!(world.after(seconds * 1000), [(0, Found::Back)]);
    }
    assert_eq!((world.interval(), world.interval()), (vec![], vec![]));
    assert_eq!(world.saw(0, &[status(503); 5]), ejected(Reason::Consecutive5xx, 60));
    world.after(60_000);
    (0..20).for_each(|_| assert_eq!(world.interval(), []));
    assert_eq!(world.saw(0, &[status(503); 5]), ejected(Reason::Consecutive5xx, 30));
}

#[test]
fn no_more_than_a_part_of_the_endpoints_is_ejected_at_a_time() {
    for (hosts, rules, expected) in [
        (5, "", 0),
        (9, "", 0),
        (10, "", 1),
        (20, "", 2),
        (5, "always_eject_one_host: on", 1),
        (1, "always_eject_one_host: on", 1),
        (5, "max_ejection_percent: 40", 2),
        (5, "max_ejection_percent: 100", 5),
        (5, "max_ejection_percent: 0", 0),
        (5, "max_ejection_percent: 0, always_eject_one_host: on", 1),
    ] {
        let world = World::new(hosts, rules);
        let number = (0..hosts).filter(|place| world.saw(*place, &[status(500); 5]).is_some()).count();
        assert_eq!(number, expected, "{hosts} endpoints, {rules}");
        assert_eq!(world.service.ejections.active.load(Relaxed) as usize, expected);
        assert_eq!(world.service.ejections.overflow.load(Relaxed) as usize, hosts - expected);
    }
}

#[test]
fn chance_decides_as_often_as_is_enforced_and_how_much_longer_it_lasts() {
    let eject = |rules: &str, chance| {
        let world = World::new(10, rules);
        (0..4).for_each(|_| assert_eq!(world.saw_by(0, status(500), chance), None));
        world.saw_by(0, status(500), chance).map(|ejected| ejected.period.as_millis())
    };
    let rules = "enforcing_consecutive_5xx: 30";
    assert_eq!((0..100).filter(|chance| eject(rules, *chance).is_some()).count(), 30);
    let periods: Vec<u128> = (0..5).filter_map(|chance| eject("ejection_jitter_ms: 3", 100 * chance)).collect();
    assert_eq!(periods, [30_000, 30_001, 30_002, 30_003, 30_000]);
}

#[test]
fn who_is_not_ejected_for_it_is_counted_anew() {
    let world = World::new(10, "enforcing_consecutive_5xx: 50");
    (0..9).for_each(|_| assert_eq!(world.saw_by(0, status(500), 99), None));
    assert_eq!(world.saw_by(0, status(500), 0), ejected(Reason::Consecutive5xx, 30));
}

#[test]
fn whose_rate_is_far_below_the_mean_is_ejected() {
    let mut world = World::new(10, "");
    (0..9).for_each(|place| world.tally(place, 100, 100));
    world.tally(9, 100, 95);
    let found = Found::Ejected(Ejected { reason: Reason::SuccessRate, period: Duration::from_secs(30) });
    assert_eq!(world.interval(), [(9, found)]);
    // One of five is 2 deviations below the mean.
    for (rules, expected) in [("", 1), ("success_rate_stdev_factor: 2100,", 0)] {
        let mut world = World::new(5, &format!("{rules} max_ejection_percent: 20"));
        (0..4).for_each(|place| world.tally(place, 100, 100));
        world.tally(4, 100, 50);
        assert_eq!(world.interval().len(), expected, "{rules}");
    }
    let mut world = World::new(10, "");
    (0..10).for_each(|place| world.tally(place, 1000, 10));
    assert_eq!(world.interval(), [], "all alike, however bad");
}

#[test]
fn rates_take_five_endpoints_with_a_hundred_requests_in_one_interval() {
    for (hosts, requests, expected) in [(5, 100, 1), (4, 100, 0), (5, 99, 0)] {
        let mut world = World::new(hosts, "max_ejection_percent: 50");
        (1..hosts).for_each(|place| world.tally(place, requests, requests));
        world.tally(0, requests, 0);
        assert_eq!(world.interval().len(), expected, "{hosts} endpoints, {requests} requests");
    }
    let mut world = World::new(5, "max_ejection_percent: 50");
    for _ in 0..2 {
        (1..5).for_each(|place| world.tally(place, 60, 60));
        world.tally(0, 60, 0);
        assert_eq!(world.interval(), [], "what was before counts no more");
    }
}

#[test]
fn failures_in_percent_are_enforced_from_85_on_if_at_all() {
    let enforced = "enforcing_failure_percentage: 100";
    for (rules, hosts, requests, failures, expected) in [
        (enforced, 5, 100, 85, 5),
        (enforced, 5, 100, 84, 0),
        (enforced, 5, 50, 50, 5),
        (enforced, 5, 49, 49, 0),
        (enforced, 4, 100, 100, 0),
        ("enforcing_failure_percentage: 100, failure_percentage_minimum_hosts: 1", 1, 50, 50, 1),
        ("enforcing_failure_percentage: 0", 5, 100, 100, 0),
    ] {
        let mut world = World::new(hosts, &format!("max_ejection_percent: 100, {rules}"));
        (0..hosts).for_each(|place| world.tally(place, requests, requests - failures));
        let found = world.interval();
        assert_eq!(found.len(), expected, "{rules}: {failures} of {requests}");
        let of = |found: &Found| matches!(found, Found::Ejected(Ejected { reason: Reason::FailurePercentage, .. }));
        assert!(found.iter().all(|(_, found)| of(found)));
    }
}

#[test]
fn failures_that_are_no_answers_have_rates_of_their_own() {
    let mut world = World::new(10, "split_local_origin: on, consecutive_local_origin_failure: 1000");
    for place in 0..10 {
        let seen = if place == 3 { Seen::NotConnected } else { OK };
        (0..100).for_each(|_| assert_eq!(world.saw(place, &[seen]), None));
    }
    let found = Found::Ejected(Ejected { reason: Reason::SuccessRateLocalOrigin, period: Duration::from_secs(30) });
    assert_eq!(world.interval(), [(3, found)]);
}

#[test]
fn who_is_taken_back_begins_anew_and_stays_down_if_it_is() {
    let mut world = World::new(10, "");
    world.saw(0, &[status(500); 9]);
    let back = || take_back(&world.service.ejections, world.state(0));
    assert!(back() && !back());
    assert_eq!((world.saw(0, &[status(500); 4]), world.service.ejections.active.load(Relaxed)), (None, 0));
    assert_eq!(world.saw(0, &[status(500)]), ejected(Reason::Consecutive5xx, 60));
    world.state(0).set_down(true);
    assert_eq!(world.after(60_000), [(0, Found::Back)]);
    assert!(!world.state(0).usable(), "that it is down is another's verdict");
}

proptest! {
    #[test]
    fn never_are_more_ejected_than_may_be_and_all_come_back(
        hosts in 1_usize..30,
        percent in 0_u32..=100,
        seen in prop::collection::vec((0_usize..30, 0_usize..3), 0..600),
    ) {
        let mut world = World::new(hosts, &format!("max_ejection_percent: {percent}, consecutive_5xx: 2"));
        for (place, kind) in seen {
            world.saw(place % hosts, &[[status(500), status(503), OK][kind]]);
            let number = (0..hosts).filter(|place| world.state(*place).is_ejected()).count();
            prop_assert!(100 * number <= percent as usize * hosts);
            prop_assert_eq!(world.service.ejections.active.load(Relaxed) as usize, number);
        }
        // The first look compares the rates of what was seen, and may eject for them.
        world.interval();
        world.after(400_000);
        prop_assert!((0..hosts).all(|place| world.state(place).usable()));
        prop_assert_eq!(world.service.ejections.active.load(Relaxed), 0);
    }
}
