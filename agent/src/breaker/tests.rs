//! Breakers against the tables of their sources, and by properties, under a clock of the test.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::guard::OnOpen;

fn over(window_ms: u64, buckets: u32, requests: u32) -> Over {
    Over { window: Duration::from_millis(window_ms), buckets, requests }
}

fn rules(kind: Kind, open_ms: u64, probes: u32) -> Breaker {
    Breaker {
        kind,
        open_for: Duration::from_millis(open_ms),
        half_open_requests: probes,
        rests_from_try: false,
        counts_rejected: false,
        on_open: OnOpen::Fail,
    }
}

/// hystrix-go's defaults.
fn hystrix() -> Breaker {
    let kind = Kind::ErrorRatio { percent: 50, over: over(10_000, 10, 20) };
    Breaker { rests_from_try: true, counts_rejected: true, ..rules(kind, 5_000, 1) }
}

/// A breaker and its clock.
struct Bench {
    judge: Judge,
    state: BreakerState,
    now_ms: u64,
}

const GOOD: Outcome = Outcome::Answered(1);
const BAD: Outcome = Outcome::Failed(1);

impl Bench {
    fn of(rules: &Breaker) -> Self {
        Self { judge: Judge::new(rules), state: BreakerState::new(rules), now_ms: 1_000_000 }
    }

    fn ask(&self) -> Option<Pass> {
        self.judge.ask(&self.state, self.now_ms).0
    }

    fn tell(&self, pass: Option<Pass>, outcome: Outcome) {
        self.judge.tell(&self.state, pass.expect("it passed"), outcome, self.now_ms);
    }

    /// Requests that go as told, one after the other.
    fn run(&self, outcomes: impl IntoIterator<Item = Outcome>) -> &Self {
        outcomes.into_iter().for_each(|outcome| self.tell(self.ask(), outcome));
        self
    }

    fn after(&mut self, ms: u64) -> &Self {
        self.now_ms += ms;
        self
    }

    fn phase(&self) -> Phase {
        self.state.phase()
    }
}

fn times(outcome: Outcome, count: usize) -> impl Iterator<Item = Outcome> {
    std::iter::repeat_n(outcome, count)
}

#[test]
fn hystrix_opens_at_its_volume_and_at_its_percentage() {
    for (good, bad, opens) in [
        // Exactly 20 with 10 errors.
        (10, 10, true),
        // 19 of 19 are too few to say anything.
        (0, 19, false),
        (0, 20, true),
        (11, 9, false),
        // 49.5 % is rounded up, 49.3 % is not.
        (101, 99, true),
        (103, 100, false),
        (0, 0, false),
    ] {
        let bench = Bench::of(&hystrix());
        bench.run(times(GOOD, good)).run(times(BAD, bad).take(bad.saturating_sub(1)));
        if bad > 0 && bench.phase() == Phase::Closed {
            bench.run([BAD]);
        }
        assert_eq!(bench.phase() == Phase::Open, opens, "{good} good, {bad} bad");
    }
}

#[test]
fn a_good_answer_may_be_the_one_that_makes_enough_to_judge_by() {
    let bench = Bench::of(&hystrix());
    bench.run(times(BAD, 10)).run(times(GOOD, 9));
    assert_eq!(bench.phase(), Phase::Closed);
    bench.run([GOOD]);
    assert_eq!(bench.phase(), Phase::Open);
}

#[test]
fn hystrix_forgets_after_ten_seconds() {
    let mut bench = Bench::of(&hystrix());
    bench.run(times(BAD, 19));
    bench.after(9_999).run([GOOD]);
    assert_eq!(bench.phase(), Phase::Open, "the first are in the window yet");
    let mut bench = Bench::of(&hystrix());
    bench.run(times(BAD, 19));
    bench.after(10_000).run([BAD]);
    assert_eq!(bench.phase(), Phase::Closed, "the first are in it no more");
}

#[test]
fn rejections_are_errors_for_hystrix_only() {
    for (counts_rejected, opens) in [(true, true), (false, false)] {
        let bench = Bench::of(&Breaker { counts_rejected, ..hystrix() });
        bench.run(times(Outcome::Rejected, 20));
        assert_eq!(bench.phase() == Phase::Open, opens);
    }
}

#[test]
fn one_try_passes_for_each_time_of_rest_and_who_gave_up_says_nothing() {
    let mut bench = Bench::of(&hystrix());
    bench.run(times(Outcome::Unknown, 100)).run(times(BAD, 20));
    assert_eq!(bench.after(5_000).ask(), None, "hystrix waits for longer than its window");
    let first = bench.after(1).ask();
    // Those who come with it.
    assert!(first.is_some());
    assert_eq!([bench.ask(), bench.ask()], [None, None]);
    assert_eq!(bench.phase(), Phase::HalfOpen);
    // It is lost: nobody hears of it any more. One more for each time of rest.
    assert_eq!(bench.after(5_000).ask(), None);
    let second = bench.after(1).ask();
    assert!(second.is_some() && bench.ask().is_none());
    // One that was taken back makes room at once.
    bench.tell(second, Outcome::Unknown);
    let third = bench.ask();
    bench.tell(third, GOOD);
    assert_eq!(bench.phase(), Phase::Closed);
    // Its counts began anew.
    bench.run(times(BAD, 19));
    assert_eq!(bench.phase(), Phase::Closed);
    bench.run([BAD]);
    assert_eq!(bench.phase(), Phase::Open);
}

#[test]
fn after_a_failed_try_hystrix_rests_from_when_the_try_began() {
    for (rests_from_try, passes) in [(true, true), (false, false)] {
        let mut bench = Bench::of(&Breaker { rests_from_try, ..hystrix() });
        bench.run(times(BAD, 20));
        let tried = bench.after(5_001).ask();
        bench.after(1_000);
        bench.tell(tried, BAD);
        assert_eq!((bench.phase(), bench.ask()), (Phase::Open, None));
        assert_eq!(bench.after(4_001).ask().is_some(), passes);
    }
}

#[test]
fn a_late_answer_of_an_earlier_epoch_neither_closes_nor_opens() {
    let mut bench = Bench::of(&hystrix());
    let late = bench.ask();
    bench.run(times(BAD, 20));
    bench.tell(late, GOOD);
    assert_eq!(bench.phase(), Phase::Open, "hystrix-go's quirk is not copied");
    let tried = bench.after(5_001).ask();
    bench.tell(late, GOOD);
    bench.tell(late, BAD);
    assert_eq!(bench.phase(), Phase::HalfOpen);
    bench.tell(tried, GOOD);
    bench.tell(tried, BAD);
    assert_eq!(bench.phase(), Phase::Closed, "and it was told of once");
}

#[test]
fn all_of_the_tries_must_succeed() {
    let half_open = || {
        let mut bench = Bench::of(&rules(Kind::Consecutive(3), 100, 3));
        bench.run([BAD, BAD, GOOD, BAD, BAD]);
        assert_eq!(bench.phase(), Phase::Closed, "in a row");
        bench.run([BAD]);
        bench.after(101);
        bench
    };
    let bench = half_open();
    let tries = [(); 4].map(|()| bench.ask());
    assert!(tries[..3].iter().all(Option::is_some) && tries[3].is_none());
    bench.tell(tries[0], GOOD);
    bench.tell(tries[1], GOOD);
    assert_eq!((bench.phase(), bench.ask()), (Phase::HalfOpen, None));
    bench.tell(tries[2], GOOD);
    assert_eq!(bench.phase(), Phase::Closed);
    let bench = half_open();
    let tries = [(); 3].map(|()| bench.ask());
    bench.tell(tries[0], GOOD);
    bench.tell(tries[1], BAD);
    bench.tell(tries[2], GOOD);
    assert_eq!((bench.phase(), bench.ask()), (Phase::Open, None), "any failure opens it again");
}

#[test]
fn slow_calls_and_counts_of_errors_are_sentinels() {
    let slow = Kind::SlowCalls { slow: Duration::from_millis(50), percent: 100, over: over(1_000, 1, 5) };
    let bench = Bench::of(&rules(slow, 1_000, 1));
    bench.run([Outcome::Answered(51), Outcome::Failed(51), Outcome::Answered(51), Outcome::Answered(51)]);
    assert_eq!(bench.phase(), Phase::Closed, "fewer than minRequestAmount");
    bench.run([Outcome::Answered(51)]);
    assert_eq!(bench.phase(), Phase::Open);
    let bench = Bench::of(&rules(slow, 1_000, 1));
    bench.run([Outcome::Answered(50)]).run(times(Outcome::Answered(51), 9)).run(times(BAD, 9));
    assert_eq!(bench.phase(), Phase::Closed, "what takes just as long is not slow, nor what fails at once");
    let bench = Bench::of(&rules(Kind::ErrorCount { errors: 3, over: over(1_000, 1, 5) }, 1_000, 1));
    bench.run([BAD, BAD, BAD, GOOD]);
    assert_eq!(bench.phase(), Phase::Closed);
    bench.run([GOOD]);
    assert_eq!(bench.phase(), Phase::Open);
}

#[test]
fn more_than_fifty_a_second_open_for_thirty_seconds() {
    // Requirements section 6, console trigger and breaker duration: 50 per s, 30 s.
    let mut bench = Bench::of(&rules(Kind::Rate(50), 30_000, 0));
    assert!((0..50).all(|_| bench.ask().is_some()));
    bench.after(1_000);
    assert!((0..50).all(|_| bench.ask().is_some()), "another second");
    assert!(bench.ask().is_none());
    assert_eq!((bench.phase(), bench.after(30_000).ask()), (Phase::Open, None));
    assert!(bench.after(1).ask().is_some());
    assert_eq!(bench.phase(), Phase::Closed);
    assert!((0..49).all(|_| bench.ask().is_some()) && bench.ask().is_none());
}

#[test]
fn to_look_whether_one_would_pass_takes_nothing() {
    let mut bench = Bench::of(&rules(Kind::Consecutive(1), 1_000, 2));
    let would = |bench: &Bench| bench.judge.would_pass(&bench.state, bench.now_ms);
    assert!(would(&bench));
    bench.run([BAD]);
    assert!(!would(&bench));
    bench.after(1_001);
    assert!(would(&bench) && would(&bench) && would(&bench));
    assert_eq!(bench.phase(), Phase::Open);
    assert!(bench.ask().is_some() && would(&bench) && bench.ask().is_some());
    assert!(!would(&bench) && bench.ask().is_none());
    bench.after(1_001);
    assert!(would(&bench), "who tries it was not heard of");
}

#[test]
fn of_all_who_ask_together_one_passes() {
    let mut bench = Bench::of(&hystrix());
    bench.run(times(BAD, 20));
    bench.after(5_001);
    let bench = &bench;
    let passed = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| u32::from(bench.ask().is_some()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<u32>()
    });
    assert_eq!(passed, 1);
}

/// What can happen to a breaker.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Ask,
    /// One of those that passed ends.
    End(prop::sample::Index, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..400_u64).prop_map(Step::Wait),
        Just(Step::Ask),
        (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, good)| Step::End(which, good)),
    ]
}

proptest! {
    #[test]
    fn while_it_rests_nothing_passes_and_it_closes_only_by_as_many_good_tries(
        steps in prop::collection::vec(step(), 1..300),
        probes in 1..4_u32,
    ) {
        let mut bench = Bench::of(&rules(Kind::Consecutive(2), 500, probes));
        let (mut passed, mut opened_at, mut good_tries) = (Vec::new(), 0, 0);
        for step in steps {
            let before = bench.phase();
            match step {
                Step::Wait(ms) => bench.now_ms += ms,
                Step::Ask => {
                    let pass = bench.ask();
                    prop_assert!(pass.is_none() || before != Phase::Open || bench.now_ms > opened_at + 500);
                    prop_assert!(pass.is_some() || before != Phase::Closed);
                    if before == Phase::Open && pass.is_some() {
                        good_tries = 0;
                    }
                    passed.extend(pass);
                }
                Step::End(which, good) if !passed.is_empty() => {
                    let pass = passed.swap_remove(which.index(passed.len()));
                    let news = bench.judge.tell(&bench.state, pass, if good { GOOD } else { BAD }, bench.now_ms);
                    let is_news = bench.phase() != before;
                    prop_assert_eq!(news.is_some(), is_news);
                    if is_news && bench.phase() == Phase::Open {
                        prop_assert!(!good);
                        opened_at = bench.now_ms;
                    }
                    good_tries += u32::from(good && before == Phase::HalfOpen);
                    if is_news && bench.phase() == Phase::Closed {
                        prop_assert!(good_tries >= probes);
                    }
                }
                Step::End(..) => {}
            }
        }
    }
}

#[test]
fn a_breaker_that_is_tripped_is_open_for_its_time_and_no_longer_for_being_tripped_again() {
    // 000-33: over the limit opens it for 30 s.
    let rules = Breaker {
        kind: Kind::Consecutive(5),
        open_for: Duration::from_secs(30),
        half_open_requests: 1,
        rests_from_try: true,
        counts_rejected: true,
        on_open: Default::default(),
    };
    let (judge, state) = (Judge::new(&rules), BreakerState::new(&rules));
    assert_eq!(judge.trip(&state, 1_000), Some(Phase::Open));
    assert_eq!(judge.trip(&state, 20_000), None);
    assert_eq!(judge.ask(&state, 31_000), (None, None));
    let (pass, phase) = judge.ask(&state, 31_001);
    assert_eq!(phase, Some(Phase::HalfOpen));
    // Somebody is over the limit while it is tried: what comes of that try says nothing any more.
    assert_eq!(judge.trip(&state, 31_100), Some(Phase::Open));
    assert_eq!(judge.tell(&state, pass.expect("it passed"), Outcome::Answered(1), 31_200), None);
    assert_eq!(judge.ask(&state, 61_100).0, None);
    assert!(judge.ask(&state, 61_101).0.is_some());
    // One that has rested, and that nobody asked, rests again.
    assert!(judge.tell(&state, Pass { epoch: 4 }, Outcome::Answered(1), 61_102).is_some());
    assert_eq!(judge.trip(&state, 70_000), Some(Phase::Open));
    assert_eq!(judge.trip(&state, 200_000), None);
    assert_eq!(judge.ask(&state, 230_000).0, None);
}
