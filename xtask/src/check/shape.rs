//! The shape of a file: how it opens, what it is called, how long it is, and that nothing in it is left for later.

use super::{
    Finding,
    source::{Source, has_word},
};

const LINES_MAX: usize = 600;
const LINES_GOOD: usize = 500;

/// A name that tells what something is made of, and not what happens there.
const NAMES: &[&str] = &["utils", "util", "helpers", "helper", "types", "errors", "manager", "misc", "common"];

/// Spelled in two parts, or this file would break its own rule.
const LEFT: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
const LEFT_MACROS: &[&str] = &[concat!("to", "do!("), concat!("unimple", "mented!(")];

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let path = &source.path;
    if !source.text.starts_with("//!") {
        findings.push(Finding::new(
            path,
            1,
            "opening",
            "begin the file with `//!`: what happens here, what comes in, what goes out",
        ));
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if stem == "mod" {
        findings.push(Finding::new(path, 1, "no mod.rs", "name the file as its folder, and put it beside the folder"));
    }
    if NAMES.contains(&&*stem) {
        findings.push(Finding::new(
            path,
            1,
            "names",
            format!("`{stem}` says nothing: name it after what happens there, or split it by idea"),
        ));
    }
    findings.extend(length(source));
    findings.extend(leftovers(source));
    findings
}

fn length(source: &Source) -> Option<Finding> {
    let lines = source.text.lines().count();
    let remedy = format!("{lines} lines: split it by idea, at most {LINES_MAX}");
    let finding = Finding::new(&source.path, lines, "length", remedy);
    (lines > LINES_GOOD).then_some(Finding { only_a_warning: lines <= LINES_MAX, ..finding })
}

fn leftovers(source: &Source) -> Vec<Finding> {
    let finding = |index: usize, what: &str| {
        Finding::new(&source.path, index + 1, "nothing for later", format!("do it, or write an issue: `{what}`"))
    };
    let words = source.text.lines().enumerate().flat_map(|(index, line)| {
        LEFT.iter().filter(move |word| has_word(line, word)).map(move |word| finding(index, word))
    });
    let macros = source.code.lines().enumerate().flat_map(|(index, line)| {
        LEFT_MACROS.iter().filter(move |name| line.contains(**name)).map(move |name| finding(index, name))
    });
    words.chain(macros).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        check(&Source::new(path, text)).iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn a_good_file_passes() {
        assert!(rules("agent/src/ring/recv.rs", "//! Receives.\nfn f() {}\n").is_empty());
    }

    #[test]
    fn a_file_without_an_opening_is_found() {
        assert_eq!(rules("agent/src/ring/recv.rs", "fn f() {}\n"), ["opening"]);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        assert_eq!(rules("agent/src/ring/mod.rs", "//! x\n"), ["no mod.rs"]);
        assert_eq!(rules("agent/src/utils.rs", "//! x\n"), ["names"]);
    }

    #[test]
    fn a_long_file_is_warned_of_and_a_very_long_one_fails() {
        let long = Source::new("agent/src/a.rs", "//! x\n".repeat(501));
        assert!(check(&long)[0].only_a_warning);
        let very_long = Source::new("agent/src/a.rs", "//! x\n".repeat(601));
        assert!(!check(&very_long)[0].only_a_warning);
        assert!(rules("agent/src/a.rs", &"//! x\n".repeat(500)).is_empty());
    }

    #[test]
    fn what_is_left_for_later_is_found_in_comments_and_code() {
        for left in LEFT {
            assert_eq!(rules("agent/src/a.rs", &format!("//! x\n// {left}: y\n")), ["nothing for later"]);
        }
        for left in LEFT_MACROS {
            assert_eq!(rules("agent/src/a.rs", &format!("//! x\nfn f() {{ {left}) }}\n")), ["nothing for later"]);
        }
    }
}
