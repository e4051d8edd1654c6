//! Lines of requests that wait, by tables and by properties, under a clock of the test.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn judge(requests_max: u32, wait_max_ms: u32) -> Judge {
    Judge::new(&Pending { requests_max, wait_max: MS * wait_max_ms })
}

fn joined(judge: &Judge, line: &mut Line, now: Instant, patience: Option<Duration>) -> Result<u64, Unserved> {
    judge.join(line, now, patience).map(|(number, ..)| number)
}

/// The one who is to look for room.
fn first(line: &Line) -> Option<u64> {
    line.waiting.first_key_value().map(|(number, _)| *number)
}

#[test]
fn who_came_first_is_called_first_and_calls_the_next() {
    let (judge, mut line, now) = (judge(10, 3_000), Line::default(), Instant::now());
    let numbers: Vec<u64> = (0..3).map(|_| joined(&judge, &mut line, now, None).expect("room")).collect();
    let waker = Waker::noop();
    let turns = |line: &mut Line| numbers.iter().map(|number| judge.turn(line, *number, waker)).collect::<Vec<_>>();
    assert_eq!(turns(&mut line), [Turn::Called, Turn::NotYet, Turn::NotYet]);
    assert_eq!(turns(&mut line), [Turn::NotYet; 3], "each call is answered once");
    assert!(call(&mut line).is_some());
    assert_eq!(turns(&mut line), [Turn::Called, Turn::NotYet, Turn::NotYet]);
    assert!(judge.served(&mut line, numbers[0], now).is_some());
    assert_eq!(turns(&mut line)[1..], [Turn::Called, Turn::NotYet]);
    // Who leaves the head calls the next, too.
    assert!(judge.left(&mut line, numbers[1], Unserved::Gone, now).0.is_some());
    assert_eq!(turns(&mut line)[2], Turn::Called);
    assert!(judge.served(&mut line, numbers[2], now).is_none());
    assert!(line.waiting.is_empty());
}

#[test]
fn a_full_line_lets_nobody_in_before_a_fifth_of_it_is_gone() {
    // 000-34: a queue of 1000.
    let (judge, mut line, now) = (judge(1_000, 3_000), Line::default(), Instant::now());
    for number in 0..999 {
        assert!(matches!(judge.join(&mut line, now, None), Ok((at, false, _)) if at == number));
    }
    assert!(matches!(judge.join(&mut line, now, None), Ok((999, true, _))), "the last shuts it");
    for number in 0..199 {
        assert_eq!(joined(&judge, &mut line, now, None), Err(Unserved::Full), "{} wait", line.waiting.len());
        judge.served(&mut line, number, now);
    }
    assert_eq!((joined(&judge, &mut line, now, None), line.waiting.len()), (Err(Unserved::Full), 801));
    judge.served(&mut line, 199, now);
    assert_eq!(joined(&judge, &mut line, now, None), Ok(1_000));
}

#[test]
fn a_line_whose_first_is_too_old_lets_nobody_in_before_it_is_quick_again() {
    // 000-34: 3000 ms.
    let (judge, mut line, now) = (judge(1_000, 3_000), Line::default(), Instant::now());
    let early = joined(&judge, &mut line, now, None).expect("room");
    let late = joined(&judge, &mut line, now + 500 * MS, None).expect("room");
    assert_eq!(judge.until(now, None), (now + 3_000 * MS, Unserved::TooOld));
    let at = now + 3_000 * MS;
    assert!(judge.left(&mut line, early, Unserved::TooOld, at).1, "that shuts it");
    assert_eq!(joined(&judge, &mut line, at, None), Err(Unserved::Full), "the next has waited for 2500 ms");
    judge.served(&mut line, late, at);
    assert!(joined(&judge, &mut line, at, None).is_ok());
}

#[test]
fn nobody_waits_past_his_deadline_and_who_would_does_not_begin() {
    let (judge, mut line, now) = (judge(10, 3_000), Line::default(), Instant::now());
    assert_eq!(judge.until(now, Some(700 * MS)), (now + 700 * MS, Unserved::Deadline));
    assert_eq!(judge.until(now, Some(3_001 * MS)), (now + 3_000 * MS, Unserved::TooOld));
    // Nobody knows the pace yet: nobody is turned away for it.
    let numbers: Vec<u64> = (0..4).map(|_| joined(&judge, &mut line, now, Some(MS)).expect("room")).collect();
    judge.served(&mut line, numbers[0], now + 100 * MS);
    assert_eq!(line.interval, Some(100 * MS));
    let at = now + 100 * MS;
    assert_eq!(joined(&judge, &mut line, at, Some(299 * MS)), Err(Unserved::Doomed), "three are before him");
    assert!(joined(&judge, &mut line, at, Some(300 * MS)).is_ok());
    // Much later nobody knows how quick it is.
    while let Some(number) = first(&line) {
        judge.served(&mut line, number, at);
    }
    assert!(line.interval.is_some());
    assert!(joined(&judge, &mut line, at + 3_001 * MS, Some(MS)).is_ok());
    assert_eq!(line.interval, None);
}

#[test]
fn a_line_that_comes_to_be_full_throws_out_who_has_no_hope_before_it_is_shut() {
    let (judge, mut line, now) = (judge(5, 3_000), Line::default(), Instant::now());
    let patience = [None, Some(50 * MS), None, Some(150 * MS), None];
    let mut numbers: VecDeque<u64> =
        patience[..4].iter().map(|it| joined(&judge, &mut line, now, *it).expect("room")).collect();
    let waker = Waker::noop();
    for number in &numbers {
        judge.turn(&mut line, *number, waker);
    }
    line.interval = Some(100 * MS);
    let (last, is_shut, waked) = judge.join(&mut line, now, None).expect("room");
    numbers.push_back(last);
    assert!(!is_shut, "two of five left");
    assert_eq!(line.waiting.keys().copied().collect::<Vec<_>>(), [numbers[0], numbers[2], numbers[4]]);
    assert_eq!(waked.len(), 3, "those two, and the first");
    assert_eq!(judge.turn(&mut line, numbers[1], waker), Turn::ThrownOut);
}

#[test]
fn who_is_turned_away_hears_when_there_is_room_as_far_as_anybody_knows() {
    let (judge, mut line, now) = (judge(10, 30_000), Line::default(), Instant::now());
    assert_eq!(judge.retry_after(&line), Duration::from_secs(1));
    for _ in 0..10 {
        joined(&judge, &mut line, now, None).expect("room");
    }
    line.interval = Some(2_000 * MS);
    assert_eq!(judge.retry_after(&line), Duration::from_secs(6), "3 of 10 have to go first");
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Join(Option<u32>),
    Serve,
    Leave(usize, Unserved),
    Pass(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => proptest::option::of(1..5_000_u32).prop_map(Step::Join),
        3 => Just(Step::Serve),
        1 => (0..20_usize, prop_oneof![Just(Unserved::Gone), Just(Unserved::TooOld), Just(Unserved::Deadline)])
            .prop_map(|(at, why)| Step::Leave(at, why)),
        2 => (1..400_u32).prop_map(Step::Pass),
    ]
}

proptest! {
    #[test]
    fn there_are_never_more_than_fit_the_order_holds_and_the_first_is_always_called(steps in proptest::collection::vec(step(), 1..300)) {
        let (judge, mut line, mut now) = (judge(10, 3_000), Line::default(), Instant::now());
        let (mut last, mut was_shut) = (None, false);
        for step in steps {
            let before = line.waiting.len();
            match step {
                Step::Join(patience) => {
                    if joined(&judge, &mut line, now, patience.map(|ms| MS * ms)).is_ok() {
                        prop_assert!(!was_shut || before <= 8);
                    }
                }
                Step::Serve => if let Some(number) = first(&line) {
                    prop_assert!(last.is_none_or(|last| last < number), "{number} after {last:?}");
                    last = Some(number);
                    judge.served(&mut line, number, now);
                },
                Step::Leave(at, why) => {
                    let number = line.waiting.keys().nth(at).copied();
                    if let Some(number) = number {
                        judge.left(&mut line, number, why, now);
                    }
                }
                Step::Pass(ms) => now += MS * ms,
            }
            prop_assert!(line.waiting.len() <= 10);
            prop_assert!(line.waiting.values().next().is_none_or(|first| first.is_called), "nobody looks for room");
            prop_assert!(!line.waiting.is_empty() || !line.is_shut, "nobody would open it");
            was_shut = line.is_shut;
        }
    }
}
