//! A Rust file as the rules see it: its text, and its code alone, without comments, literals and unit tests.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A Rust file.
#[derive(Debug)]
pub struct Source {
    /// Path below the repository's root.
    pub path: PathBuf,
    /// As it stands.
    pub text: String,
    /// The same lines and columns, with blanks for comments and for what stands in string and character literals.
    pub code: String,
    /// Number of lines of `code` before the unit tests.
    pub untested_lines: usize,
}

impl Source {
    /// Takes a file apart.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let code = blank(&text);
        let untested_lines = if is_test_file(&path) { 0 } else { lines_before_tests(&code) };
        Self { path, text, code, untested_lines }
    }

    /// The room of the agent that the file belongs to: `ring` for `agent/src/ring.rs` and all in `agent/src/ring/`.
    pub fn room(&self) -> Option<&str> {
        let below = self.path.strip_prefix("agent/src").ok()?;
        let room = below.components().next()?.as_os_str().to_str()?;
        Some(room.strip_suffix(".rs").unwrap_or(room)).filter(|room| !matches!(*room, "lib" | "main"))
    }

    /// The code that ships, line by line, numbered from 1.
    pub fn shipped(&self) -> impl Iterator<Item = (usize, &str)> {
        self.numbered().take(self.untested_lines)
    }

    /// All code, line by line, numbered from 1.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Whether the path begins with one of these.
    pub fn is_in(&self, places: &[&str]) -> bool {
        let path = self.path.to_string_lossy();
        places.iter().any(|place| path.starts_with(place))
    }
}

/// Every Rust file of the repository, in the order of their paths.
pub fn read_all(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for folder in ["agent", "common", "ebpf", "tests", "xtask"] {
        collect(&root.join(folder), &mut paths)?;
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Source::new(path.strip_prefix(root).unwrap_or(&path), text))
    };
    paths.into_iter().map(read).collect()
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                collect(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// `word` as a word of its own in `line`.
pub fn has_word(line: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part_of_word)
            && !line[at + word.len()..].chars().next().is_some_and(part_of_word)
    })
}

fn is_test_file(path: &Path) -> bool {
    path.starts_with("tests")
        || path.starts_with("agent/benches")
        || path.file_name().is_some_and(|name| name == "tests.rs")
}

fn lines_before_tests(code: &str) -> usize {
    let lines: Vec<&str> = code.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod tests"));
    tests.unwrap_or(lines.len())
}

/// What the lexer is in the middle of.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    /// Nested this deep.
    BlockComment(u32),
    Text,
    /// A raw string that ends with this many hashes.
    RawText(usize),
}

/// Blanks comments and literals, byte by byte where the text is ASCII, so that lines stay where they are.
fn blank(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let (next, length, keep) = step(state, &chars, at);
        for &c in &chars[at..at + length] {
            code.push(if keep || c == '\n' { c } else { ' ' });
        }
        state = next;
        at += length;
    }
    code
}

/// The state after the next token, the token's length, and whether it is code.
fn step(state: State, chars: &[char], at: usize) -> (State, usize, bool) {
    let rest = &chars[at..];
    let starts = |pattern: &str| pattern.chars().enumerate().all(|(index, c)| rest.get(index) == Some(&c));
    match state {
        State::Code if starts("//") => (State::LineComment, 2, false),
        State::Code if starts("/*") => (State::BlockComment(1), 2, false),
        State::Code if rest[0] == '"' => (State::Text, 1, true),
        State::Code if rest[0] == '\'' => (State::Code, char_literal(rest), false),
        State::Code => {
            raw_text(chars, at).map_or((State::Code, 1, true), |hashes| (State::RawText(hashes), hashes + 2, false))
        }
        State::LineComment if rest[0] == '\n' => (State::Code, 1, true),
        State::LineComment => (state, 1, false),
        State::BlockComment(depth) if starts("/*") => (State::BlockComment(depth + 1), 2, false),
        State::BlockComment(1) if starts("*/") => (State::Code, 2, false),
        State::BlockComment(depth) if starts("*/") => (State::BlockComment(depth - 1), 2, false),
        State::BlockComment(_) => (state, 1, false),
        State::Text if rest[0] == '\\' => (state, rest.len().min(2), false),
        State::Text if rest[0] == '"' => (State::Code, 1, true),
        State::Text => (state, 1, false),
        State::RawText(hashes) if starts(&format!("\"{}", "#".repeat(hashes))) => (State::Code, hashes + 1, false),
        State::RawText(_) => (state, 1, false),
    }
}

/// Length of a character literal; 1 for the quote of a lifetime.
fn char_literal(rest: &[char]) -> usize {
    match rest {
        [_, '\\', _, after @ ..] => after.iter().position(|&c| c == '\'').map_or(1, |end| end + 4),
        [_, _, '\'', ..] => 3,
        _ => 1,
    }
}

/// The number of hashes if a raw string begins here.
fn raw_text(chars: &[char], at: usize) -> Option<usize> {
    let inside_word = at.checked_sub(1).is_some_and(|before| chars[before].is_alphanumeric() && chars[before] != 'b');
    if chars[at] != 'r' || inside_word {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_no_code() {
        let code = |text: &str| Source::new("a.rs", text).code;
        assert_eq!(code("a // unsafe\nb"), "a          \nb");
        assert_eq!(code("a /* x /* y */ z */ b"), "a                   b");
        assert_eq!(code(r#"f("unsafe \" x", 'u', '\'')"#), r#"f("           ",    ,     )"#);
        assert_eq!(code("f(r#\"un\"safe\"#, 1)"), "f(            , 1)");
        assert_eq!(code("fn f<'a>(x: &'a str)"), "fn f< a>(x: & a str)");
    }

    #[test]
    fn a_room_is_a_file_and_its_folder() {
        let room = |path| Source::new(path, "").room().map(str::to_owned);
        assert_eq!(room("agent/src/ring.rs").as_deref(), Some("ring"));
        assert_eq!(room("agent/src/ring/recv.rs").as_deref(), Some("ring"));
        assert_eq!(room("agent/src/lib.rs"), None);
        assert_eq!(room("common/src/flow.rs"), None);
    }

    #[test]
    fn unit_tests_do_not_ship() {
        let source = Source::new("agent/src/route.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n}\n");
        assert_eq!(source.shipped().count(), 1);
        assert_eq!(Source::new("agent/src/config/file/tests.rs", "fn f() {}\n").shipped().count(), 0);
    }

    #[test]
    fn a_word_is_not_a_part_of_a_word() {
        assert!(has_word("unsafe {", "unsafe"));
        assert!(!has_word("deny(unsafe_code)", "unsafe"));
        assert!(!has_word("operand", "rand"));
    }
}
