//! What a scenario has to reach, judged from its samples.

use super::sample::{Compare, Figure, Placement, Samples, Spread};

/// One line of the table of goals.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    /// Which way is judged.
    pub way: &'static str,
    /// By which figure.
    pub figure: Figure,
    /// In which placement.
    pub placement: Placement,
    /// Set against what.
    pub against: Against,
    /// What it must be.
    pub bound: Bound,
}

/// What the figure of the judged way is set against.
#[derive(Clone, Copy, Debug)]
pub enum Against {
    /// Nothing: the figure itself counts.
    Nothing,
    /// The ratio to another way.
    Ratio(&'static str),
    /// The ratio to whichever of these does better in this figure.
    RatioToBetter(&'static [&'static str]),
    /// What it has more than another way.
    Difference(&'static str),
    /// What it has more than `base`, as a multiple of the least that one of `rivals` has more.
    Added {
        /// What everybody is measured from.
        base: &'static str,
        /// Who adds something too.
        rivals: &'static [&'static str],
    },
}

/// The goal itself.
#[derive(Clone, Copy, Debug)]
pub enum Bound {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// What the samples say about a goal.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// Whether the median reaches the goal.
    pub pass: bool,
    /// The figure that was judged, with its least and greatest pair.
    pub spread: Spread,
    /// The way it was set against.
    pub over: Option<&'static str>,
}

impl Goal {
    /// Judges the samples; `None` when a way that the goal speaks of has no samples.
    pub fn judge(&self, samples: &Samples) -> Option<Verdict> {
        let compare = |over, compare| samples.compare(self.placement, self.way, over, self.figure, compare);
        let (spread, over) = match self.against {
            Against::Nothing => (samples.spread(self.placement, self.way, self.figure)?, None),
            Against::Ratio(over) => (compare(over, Compare::Ratio)?, Some(over)),
            Against::RatioToBetter(ways) => {
                let over = self.better(samples, ways)?;
                (compare(over, Compare::Ratio)?, Some(over))
            }
            Against::Difference(over) => (compare(over, Compare::Difference)?, Some(over)),
            Against::Added { base, rivals } => {
                let added = samples.over(self.placement, base, self.figure);
                let over = self.better(&added, rivals)?;
                (added.compare(self.placement, self.way, over, self.figure, Compare::Ratio)?, Some(over))
            }
        };
        Some(Verdict { pass: self.bound.holds(spread.median), spread, over })
    }

    /// The ways that must have been measured before this can be judged.
    pub fn needs(&self) -> Vec<&'static str> {
        let mut ways = vec![self.way];
        match self.against {
            Against::Nothing => {}
            Against::Ratio(over) | Against::Difference(over) => ways.push(over),
            Against::RatioToBetter(over) => ways.extend(over),
            Against::Added { base, rivals } => {
                ways.push(base);
                ways.extend(rivals);
            }
        }
        ways
    }

    /// The goal in words: `sockway: requests/s ≥ 1.15 × the best of nginx, haproxy (free)`.
    pub fn say(&self) -> String {
        let (sign, bound) = match self.bound {
            Bound::AtLeast(bound) => ('≥', bound),
            Bound::AtMost(bound) => ('≤', bound),
        };
        let goal = match self.against {
            Against::Nothing => format!("{sign} {bound}"),
            Against::Ratio(over) => format!("{sign} {bound:.2} × {over}"),
            Against::RatioToBetter(ways) => format!("{sign} {bound:.2} × the best of {}", ways.join(", ")),
            Against::Difference(over) => format!("{sign} {bound} more than {over}"),
            Against::Added { base, rivals } => {
                format!("over {base}'s {sign} {bound:.2} × the least of {}", rivals.join(", "))
            }
        };
        format!("{}: {} {goal} ({})", self.way, self.figure.say(), self.placement.name())
    }

    /// All of them must be there: the better of one is no comparison.
    fn better(&self, samples: &Samples, ways: &[&'static str]) -> Option<&'static str> {
        let mut medians = Vec::new();
        for way in ways {
            medians.push((*way, samples.spread(self.placement, way, self.figure)?.median));
        }
        let best = match self.bound {
            Bound::AtLeast(_) => medians.iter().max_by(|a, b| a.1.total_cmp(&b.1)),
            Bound::AtMost(_) => medians.iter().min_by(|a, b| a.1.total_cmp(&b.1)),
        };
        best.map(|(way, _)| *way)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::sample::Sample, *};
    use std::collections::BTreeMap;

    fn samples(rows: &[(&'static str, f64, f64)]) -> Samples {
        Samples(
            rows.iter()
                .map(|&(way, rps, cpu)| Sample {
                    way,
                    placement: Placement::Free,
                    round: 1,
                    values: BTreeMap::from([(Figure::Rps, rps), (Figure::Cpu, cpu)]),
                })
                .collect(),
        )
    }

    fn goal(figure: Figure, against: Against, bound: Bound) -> Goal {
        Goal { way: "sockway", figure, placement: Placement::Free, against, bound }
    }

    #[test]
    fn the_better_proxy_is_the_faster_or_the_cheaper_one_as_the_goal_asks() {
        let samples = samples(&[("sockway", 120.0, 9.0), ("nginx", 100.0, 20.0), ("haproxy", 80.0, 10.0)]);
        let better = Against::RatioToBetter(&["nginx", "haproxy"]);
        let speed = goal(Figure::Rps, better, Bound::AtLeast(1.15)).judge(&samples).unwrap();
        assert_eq!((speed.pass, speed.over, speed.spread.median), (true, Some("nginx"), 1.2));
        let cost = goal(Figure::Cpu, better, Bound::AtMost(0.85)).judge(&samples).unwrap();
        assert_eq!((cost.pass, cost.over, cost.spread.median), (false, Some("haproxy"), 0.9));
    }

    #[test]
    fn the_bound_itself_is_good_enough() {
        let samples = samples(&[("sockway", 98.0, 4.0), ("direct", 100.0, 0.0)]);
        assert!(goal(Figure::Rps, Against::Ratio("direct"), Bound::AtLeast(0.98)).judge(&samples).unwrap().pass);
        assert!(goal(Figure::Cpu, Against::Difference("direct"), Bound::AtMost(4.0)).judge(&samples).unwrap().pass);
        assert!(!goal(Figure::Cpu, Against::Nothing, Bound::AtMost(3.9)).judge(&samples).unwrap().pass);
    }

    #[test]
    fn what_is_added_is_set_against_the_least_that_another_adds() {
        let samples =
            samples(&[("direct", 0.0, 20.0), ("sockway", 0.0, 30.0), ("nginx", 0.0, 45.0), ("haproxy", 0.0, 40.0)]);
        let against = Against::Added { base: "direct", rivals: &["nginx", "haproxy"] };
        let goal = goal(Figure::Cpu, against, Bound::AtMost(0.4));
        let verdict = goal.judge(&samples).unwrap();
        assert_eq!((verdict.pass, verdict.over, verdict.spread.median), (false, Some("haproxy"), 0.5));
        assert_eq!(goal.needs(), ["sockway", "direct", "nginx", "haproxy"]);
        assert!(goal.say().contains("CPU per request (µs) over direct's ≤ 0.40 × the least of nginx, haproxy"));
    }

    #[test]
    fn nothing_is_judged_without_every_way_it_speaks_of() {
        let samples = samples(&[("sockway", 120.0, 9.0), ("nginx", 100.0, 20.0)]);
        let goal = goal(Figure::Rps, Against::RatioToBetter(&["nginx", "haproxy"]), Bound::AtLeast(1.15));
        assert!(goal.judge(&samples).is_none());
        assert_eq!(goal.needs(), ["sockway", "nginx", "haproxy"]);
        assert_eq!(goal.say(), "sockway: requests/s ≥ 1.15 × the best of nginx, haproxy (free)");
    }
}
