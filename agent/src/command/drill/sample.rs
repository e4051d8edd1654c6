//! One scrape of an agent's metrics, as far as a drill looks at it.

use std::collections::BTreeMap;

/// Every series with its value.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    series: BTreeMap<String, f64>,
}

impl Sample {
    /// Of Prometheus' text format.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self { series: series.collect() }
    }

    /// What a series says; nothing is 0.
    pub fn get(&self, series: &str) -> f64 {
        self.series.get(series).copied().unwrap_or(0.0)
    }

    /// The series of this name, with what stands between their braces.
    pub fn of<'s>(&'s self, name: &str) -> impl Iterator<Item = (&'s str, f64)> {
        let prefix = format!("{name}{{");
        self.series.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(&prefix)?.strip_suffix('}')?;
            Some((labels, *value))
        })
    }

    /// All series with this label.
    pub fn with_label(&self, label: &str) -> impl Iterator<Item = (&str, f64)> {
        let fits = move |series: &str| series.split_once('{').is_some_and(|(_, labels)| labels.contains(label));
        self.series.iter().filter(move |(series, _)| fits(series)).map(|(series, value)| (series.as_str(), *value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_found_by_name_and_by_label() {
        let sample = Sample::parse("# HELP a x\na{b=\"c\",d=\"e\"} 7\na{b=\"x\"} 1e2\nab 3\n\nodd\n");
        assert_eq!((sample.get("ab"), sample.get("a{b=\"x\"}"), sample.get("z")), (3.0, 100.0, 0.0));
        assert_eq!(sample.of("a").collect::<Vec<_>>(), [("b=\"c\",d=\"e\"", 7.0), ("b=\"x\"", 100.0)]);
        assert_eq!(sample.with_label("d=\"e\"").collect::<Vec<_>>(), [("a{b=\"c\",d=\"e\"}", 7.0)]);
    }
}
