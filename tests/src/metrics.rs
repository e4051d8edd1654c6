//! Prometheus text, read back.

use std::collections::BTreeMap;

/// One scrape.
#[derive(Clone, Debug)]
pub struct Metrics {
    text: String,
    samples: Vec<Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

impl Metrics {
    /// Reads the text of `/metrics`; panics on a line that is none of the format.
    #[track_caller]
    pub fn parse(text: String) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples = lines
            .map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a line of Prometheus text: {line:?}")))
            .collect();
        Self { text, samples }
    }

    /// The sum of all samples of this name that carry at least these labels; 0 when there are none.
    pub fn get(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// Whether there is a sample of this name with at least these labels.
    pub fn has(&self, name: &str, labels: &[(&str, &str)]) -> bool {
        self.matching(name, labels).next().is_some()
    }

    /// The values that a label takes on the samples of a name.
    pub fn values_of<'a>(&'a self, name: &'a str, label: &'a str) -> Vec<&'a str> {
        self.matching(name, &[]).filter_map(|sample| sample.labels.get(label)).map(String::as_str).collect()
    }

    /// Every metric's name, each once, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.samples.iter().map(|sample| sample.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether the text has a line `# HELP name something`.
    pub fn has_help(&self, name: &str) -> bool {
        let start = format!("# HELP {name} ");
        self.text.lines().any(|line| line.strip_prefix(&start).is_some_and(|help| !help.trim().is_empty()))
    }

    /// The type that the text declares for a name.
    pub fn type_of(&self, name: &str) -> Option<&str> {
        let start = format!("# TYPE {name} ");
        self.text.lines().find_map(|line| line.strip_prefix(&start))
    }

    /// The text as it was scraped.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.name == name && sample.carries(labels))
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        let labels = labels.split("\",").filter(|label| !label.is_empty()).map(parse_label).collect::<Option<_>>()?;
        Some(Self { name: name.to_owned(), labels, value: value.parse().ok()? })
    }

    fn carries(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels.get(*name).is_some_and(|found| found == value))
    }
}

/// `name="value` (the closing quote may be gone). No label of ours has an escaped quote in it.
fn parse_label(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once("=\"")?;
    Some((name.to_owned(), value.trim_end_matches('"').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_found_by_name_and_some_of_their_labels() {
        let text = "# HELP hops_total Hops.\n# TYPE hops_total counter\nhops_total{a=\"1\",b=\"x:2\"} 3\nhops_total{a=\"2\"} 4\nup 1\n";
        let metrics = Metrics::parse(text.to_owned());
        assert_eq!(metrics.get("hops_total", &[]), 7.0);
        assert_eq!(metrics.get("hops_total", &[("b", "x:2")]), 3.0);
        assert_eq!(metrics.get("hops_total", &[("a", "3")]), 0.0);
        assert_eq!(metrics.names(), ["hops_total", "up"]);
        assert!(metrics.has_help("hops_total") && !metrics.has_help("up"));
        assert_eq!(metrics.type_of("hops_total"), Some("counter"));
    }
}
