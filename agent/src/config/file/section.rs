//! Reading a located tree with every problem collected: a [`Section`] is a mapping with known keys, a [`Field`] one value of it.
//!
//! Nothing here stops at a problem: it is noted, `None` is returned, and the reader goes on.

use std::{fmt, net::SocketAddr, ops::RangeInclusive, path::PathBuf};

use super::tree::{Key, Node, Value};

/// Line and column, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
}

impl Position {
    pub(super) const START: Position = Position { line: 1, column: 1 };
}

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// Path of the key, as `services[2].endpoints[0].address`; empty for the file as a whole.
    pub path: String,
    /// What is wrong; what to do.
    pub what: String,
}

/// Path of a key, written out only when there is something to say about it.
#[derive(Clone, Copy)]
pub(super) enum Path<'p> {
    Root,
    Key(&'p Path<'p>, &'p str),
    Item(&'p Path<'p>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => f.write_str(key),
            Path::Key(parent, key) => write!(f, "{parent}.{key}"),
            Path::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// Everything found wrong so far.
#[derive(Default)]
pub(super) struct Problems(pub(super) Vec<Problem>);

impl Problems {
    /// What a person reads at once; a file with more is wrong from the ground up. Also keeps a hostile file from filling memory.
    const MAX: usize = 1_000;

    pub(super) fn note(&mut self, at: Position, path: &Path<'_>, what: impl fmt::Display) {
        if self.0.len() < Self::MAX {
            self.0.push(Problem { at, path: path.to_string(), what: what.to_string() });
        }
    }
}

/// A mapping all of whose keys are known.
pub(super) struct Section<'t> {
    pub(super) at: Position,
    pub(super) path: &'t Path<'t>,
    entries: &'t [(Key, Node)],
    /// What it says where it does not say a key at all.
    usual: &'t [(Key, Node)],
}

impl<'t> Section<'t> {
    /// Takes `node` as a mapping with these keys; notes every other key.
    pub(super) fn open(
        node: &'t Node,
        path: &'t Path<'t>,
        known: &[&str],
        problems: &mut Problems,
    ) -> Option<Section<'t>> {
        let entries = match &node.value {
            Value::Map(entries) => entries.as_slice(),
            Value::Null => &[],
            other => {
                let keys = known.join(", ");
                problems.note(
                    node.at,
                    path,
                    format!("expected a mapping, found {}; write its keys: {keys}", other.kind()),
                );
                return None;
            }
        };
        for (key, _) in entries {
            if !known.contains(&key.text.as_str()) {
                problems.note(key.at, &Path::Key(path, &shown(&key.text)), unknown(&key.text, known));
            }
        }
        Some(Section { at: node.at, path, entries, usual: &[] })
    }

    /// A value that stands for a mapping of which nothing else is said.
    pub(super) fn alone(field: &'t Field<'t>) -> Section<'t> {
        Section { at: field.node.at, path: &field.path, entries: &[], usual: &[] }
    }

    /// The same, with what it says where it does not say a key at all.
    pub(super) fn over(self, usual: &'t [(Key, Node)]) -> Section<'t> {
        Section { usual, ..self }
    }

    /// The value of `key`, unless it is absent or empty.
    pub(super) fn get(&self, key: &'t str) -> Option<Field<'t>> {
        let (_, node) = self.entries.iter().chain(self.usual).find(|(found, _)| found.text == key)?;
        (!matches!(node.value, Value::Null)).then_some(Field { node, path: Path::Key(self.path, key) })
    }

    /// What `read` makes of the value of `key`, or the default; `None` if the value is there and wrong.
    pub(super) fn or<T>(
        &self,
        key: &'t str,
        default: impl FnOnce() -> T,
        read: impl FnOnce(&Field<'t>, &mut Problems) -> Option<T>,
        problems: &mut Problems,
    ) -> Option<T> {
        match self.get(key) {
            Some(field) => read(&field, problems),
            None => Some(default()),
        }
    }

    /// The value of `key`; its absence is a problem, and `remedy` says what to write.
    pub(super) fn require(&self, key: &'t str, remedy: &str, problems: &mut Problems) -> Option<Field<'t>> {
        let field = self.get(key);
        if field.is_none() {
            problems.note(self.at, &Path::Key(self.path, key), format!("is missing; {remedy}"));
        }
        field
    }
}

/// One value and its path.
#[derive(Clone, Copy)]
pub(super) struct Field<'t> {
    pub(super) node: &'t Node,
    pub(super) path: Path<'t>,
}

impl<'t> Field<'t> {
    /// Notes something wrong with this value.
    pub(super) fn refuse(&self, what: impl fmt::Display, problems: &mut Problems) {
        problems.note(self.node.at, &self.path, what);
    }

    /// A text.
    pub(super) fn text(&self, problems: &mut Problems) -> Option<&'t str> {
        match &self.node.value {
            Value::Text(text) => return Some(text),
            Value::Bool | Value::Integer(_) | Value::Fraction => {
                let kind = self.node.value.kind();
                self.refuse(format!("expected a text, found {kind}; put it in quotes"), problems);
            }
            other => self.refuse(format!("expected a text, found {}", other.kind()), problems),
        }
        None
    }

    /// A list.
    pub(super) fn list(&self, problems: &mut Problems) -> Option<&'t [Node]> {
        if let Value::List(items) = &self.node.value {
            return Some(items);
        }
        let kind = self.node.value.kind();
        self.refuse(format!("expected a list, found {kind}; begin each item with \"- \""), problems);
        None
    }

    /// A whole number of this range.
    pub(super) fn integer(&self, range: RangeInclusive<u32>, problems: &mut Problems) -> Option<u32> {
        let (least, most) = (range.start(), range.end());
        let Value::Integer(number) = self.node.value else {
            let kind = self.node.value.kind();
            self.refuse(format!("expected a whole number from {least} to {most}, found {kind}"), problems);
            return None;
        };
        match u32::try_from(number) {
            Ok(number) if range.contains(&number) => Some(number),
            _ => {
                self.refuse(format!("{number} is out of range; write a whole number from {least} to {most}"), problems);
                None
            }
        }
    }

    /// One of these words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)], problems: &mut Problems) -> Option<T> {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let Value::Text(text) = &self.node.value else {
            let kind = self.node.value.kind();
            self.refuse(format!("expected one of {}, found {kind}", words.join(", ")), problems);
            return None;
        };
        let chosen = choices.iter().find(|(word, _)| word == text).map(|(_, value)| *value);
        if chosen.is_none() {
            let hint = nearest(text, &words).map(|word| format!(" (did you mean {word}?)")).unwrap_or_default();
            self.refuse(
                format!("unknown value \"{}\"{hint}; write one of {}", shown(text), words.join(", ")),
                problems,
            );
        }
        chosen
    }

    /// `IP:PORT` with a port that is not 0 unless `port_zero`; IPv4-mapped IPv6 is taken as the IPv4 address it stands for.
    pub(super) fn address(&self, port_zero: bool, problems: &mut Problems) -> Option<SocketAddr> {
        if let Value::List(_) = self.node.value {
            self.refuse("expected an address, found a list; put an IPv6 address in quotes: \"[::1]:80\"", problems);
            return None;
        }
        let text = self.text(problems)?;
        let Ok(address) = text.parse::<SocketAddr>() else {
            self.refuse(format!("\"{}\" is not an address; {}", shown(text), address_remedy(text)), problems);
            return None;
        };
        if address.port() == 0 && !port_zero {
            self.refuse("port 0 is no port; write a port from 1 to 65535", problems);
            return None;
        }
        if matches!(address, SocketAddr::V6(address) if address.scope_id() != 0) {
            self.refuse(
                "an IPv6 zone (%…) is not supported; write a global, unique local or loopback address",
                problems,
            );
            return None;
        }
        Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }

    /// An absolute path without `..`.
    pub(super) fn path(&self, problems: &mut Problems) -> Option<PathBuf> {
        let text = self.text(problems)?;
        if !text.starts_with('/') {
            self.refuse(format!("\"{}\" does not begin with /; write an absolute path", shown(text)), problems);
        } else if text.contains('\0') {
            self.refuse("holds a NUL byte, which no path can; remove it", problems);
        } else if text.split('/').any(|part| part == "..") {
            self.refuse("contains \"..\"; write the path without going up", problems);
        } else {
            return Some(PathBuf::from(text));
        }
        None
    }
}

fn address_remedy(text: &str) -> &'static str {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    if text.parse::<std::net::IpAddr>().is_ok() {
        return "add a port: 10.0.0.1:80, or \"[::1]:80\" for IPv6";
    }
    if host.chars().any(|c| c.is_alphabetic()) && !host.contains(':') {
        return "names are not resolved: write the IP address and port, as 10.0.0.1:80";
    }
    "write it as 10.0.0.1:80, or as \"[::1]:80\" for IPv6"
}

fn unknown(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(word) => format!("unknown key; did you mean {word}?"),
        None => format!("unknown key; known here: {}", known.join(", ")),
    }
}

/// A text of the file as it may stand in a message: short, and without what a terminal would obey.
pub(super) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut short: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

/// The word that a slip of the finger could have turned into `text`.
fn nearest<'w>(text: &str, words: &[&'w str]) -> Option<&'w str> {
    const CHARS_MAX: usize = 40;
    if text.chars().nth(CHARS_MAX).is_some() {
        return None;
    }
    let (distance, word) = words.iter().map(|word| (edits(text, word), *word)).min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + word.len() / 5).then_some(word)
}

/// Edit distance with neighbours swapped as one edit (optimal string alignment), ignoring case and the kind of separator.
fn edits(a: &str, b: &str) -> usize {
    let fold = |text: &str| -> Vec<char> {
        text.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
    };
    let (a, b) = (fold(a), fold(b));
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_word() {
        let words = ["services", "workers", "drain_timeout_ms", "admin"];
        for (text, expected) in [
            ("service", Some("services")),
            ("Workers", Some("workers")),
            ("wrokers", Some("workers")),
            ("drain-timeout-ms", Some("drain_timeout_ms")),
            ("drain_timeout", Some("drain_timeout_ms")),
            ("amdin", Some("admin")),
            ("listeners", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, &words), expected, "{text:?}");
        }
    }

    #[test]
    fn what_a_file_says_cannot_drive_the_terminal() {
        assert_eq!(shown("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown(&"x".repeat(100)).chars().count(), 81);
    }
}
