//! Paths with holes: `*` stands for any part of one component, `?` for one character of it, and a component `**` for any number of
//! components, none included. Judges names that are given one by one, so that a tree can be walked only where a path may still match.

use std::fmt;

/// Components of one pattern; a position in it is a bit of a word.
pub const COMPONENTS_MAX: usize = 63;

/// A path, from `/`, that may have holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    parts: Vec<String>,
}

/// Where in a pattern a walk stands: one bit for each component that may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing(u64);

/// Any number of components.
const DEEP: &str = "**";

impl Pattern {
    /// Of a text that begins with `/`. `None` when it has more than [`COMPONENTS_MAX`] components.
    pub fn new(text: &str) -> Option<Self> {
        let parts: Vec<String> = text.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        (parts.len() <= COMPONENTS_MAX).then(|| Self { text: format!("/{}", parts.join("/")), parts })
    }

    /// The pattern as it is written, without needless slashes.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its components.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(String::as_str)
    }

    /// Whether it has no hole: it is one path.
    pub fn is_plain(&self) -> bool {
        is_plain(&self.text)
    }

    /// At `/`.
    pub fn start(&self) -> Standing {
        self.skip(1)
    }

    /// After one more component.
    pub fn step(&self, at: Standing, name: &str) -> Standing {
        let next = self.parts.iter().enumerate().fold(0, |next, (index, part)| match at.0 >> index & 1 {
            0 => next,
            _ if part == DEEP => next | 1 << index,
            _ if fits(part, name) => next | 1 << (index + 1),
            _ => next,
        });
        self.skip(next)
    }

    /// Whether the path so far is one of those that are meant.
    pub fn is_match(&self, at: Standing) -> bool {
        at.0 >> self.parts.len() & 1 == 1
    }

    /// Whether a longer path may be.
    pub fn may_go_on(&self, at: Standing) -> bool {
        at.0 & ((1 << self.parts.len()) - 1) != 0
    }

    /// Whether a whole path is meant.
    pub fn matches(&self, path: &str) -> bool {
        let names = path.split('/').filter(|name| !name.is_empty());
        self.is_match(names.fold(self.start(), |at, name| self.step(at, name)))
    }

    /// `**` may stand for nothing: then what follows it may come next, too.
    fn skip(&self, mut standing: u64) -> Standing {
        for (index, part) in self.parts.iter().enumerate() {
            if part == DEEP && standing >> index & 1 == 1 {
                standing |= 1 << (index + 1);
            }
        }
        Standing(standing)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether a text has no hole.
pub fn is_plain(text: &str) -> bool {
    !text.contains(['*', '?'])
}

/// Whether a name fits one component. The greedy walk with one point of return (R. L. Cox, "Glob Matching Can Be Simple And Fast Too",
/// 2017): never worse than the product of the lengths.
pub fn fits(part: &str, name: &str) -> bool {
    let (part, name): (Vec<char>, Vec<char>) = (part.chars().collect(), name.chars().collect());
    let (mut at, mut seen) = (0, 0);
    // Where the last `*` stands, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < name.len() {
        match part.get(at) {
            Some('*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some('?') => (at, seen) = (at + 1, seen + 1),
            Some(letter) if *letter == name[seen] => (at, seen) = (at + 1, seen + 1),
            _ => match star {
                Some((back, taken)) => {
                    star = Some((back, taken + 1));
                    (at, seen) = (back + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    part[at..].iter().all(|letter| *letter == '*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stays_within_a_component_and_two_go_across() {
        let cases = [
            ("/", "/", true),
            ("/", "/a", false),
            ("/a/b", "/a/b", true),
            ("/a/b", "/a", false),
            ("/a/*", "/a/b", true),
            ("/a/*", "/a/b/c", false),
            ("/a/b?.slice", "/a/bc.slice", true),
            ("/a/b?.slice", "/a/b.slice", false),
            ("/**", "/", true),
            ("/**", "/a/b/c", true),
            ("/a/**/z", "/a/z", true),
            ("/a/**/z", "/a/b/c/z", true),
            ("/a/**/z", "/a/b/c", false),
            ("/**/b/**/b", "/b/a/b", true),
            ("/**/b/**/b", "/b", false),
            (
                "/kubepods.slice/**/cri-containerd-*.scope",
                "/kubepods.slice/a.slice/b.slice/cri-containerd-1f.scope",
                true,
            ),
            ("/kubepods.slice/**/cri-containerd-*.scope", "/kubepods.slice/a.slice/docker-1f.scope", false),
            ("/*a*b*", "/xaxbx", true),
            ("/*a*b*", "/bxa", false),
            ("/**", "/.hidden", true),
            ("/ü?", "/üé", true),
        ];
        for (pattern, path, meant) in cases {
            assert_eq!(Pattern::new(pattern).expect("short").matches(path), meant, "{pattern} {path}");
        }
    }

    #[test]
    fn a_walk_ends_where_nothing_can_match() {
        let pattern = Pattern::new("/a/*.slice/**/x").expect("short");
        let a = pattern.step(pattern.start(), "a");
        assert!(pattern.may_go_on(pattern.start()) && pattern.may_go_on(a));
        assert!(!pattern.may_go_on(pattern.step(pattern.start(), "b")));
        assert!(!pattern.may_go_on(pattern.step(a, "b.scope")));
        let deep = pattern.step(pattern.step(a, "b.slice"), "anything");
        assert!(pattern.may_go_on(deep) && !pattern.is_match(deep) && pattern.is_match(pattern.step(deep, "x")));
        let plain = Pattern::new("/a").expect("short");
        assert!(!plain.may_go_on(plain.step(plain.start(), "a")));
    }

    #[test]
    fn needless_slashes_are_left_out_and_length_is_bounded() {
        assert_eq!(Pattern::new("//a/b//").expect("short").as_str(), "/a/b");
        assert!(Pattern::new("/a/b").expect("short").is_plain() && !Pattern::new("/a/?").expect("short").is_plain());
        assert!(Pattern::new(&"/a".repeat(COMPONENTS_MAX)).is_some());
        assert!(Pattern::new(&"/a".repeat(COMPONENTS_MAX + 1)).is_none());
        let longest = Pattern::new(&"/**".repeat(COMPONENTS_MAX)).expect("long enough");
        assert!(longest.matches("/a/b/c"));
    }

    proptest! {
        #[test]
        fn a_component_fits_as_its_definition_says(part in "[ab*?]{0,8}", name in "[ab]{0,8}") {
            fn defined(part: &[u8], name: &[u8]) -> bool {
                match (part.first(), name.first()) {
                    (None, None) => true,
                    (Some(b'*'), _) => defined(&part[1..], name) || (!name.is_empty() && defined(part, &name[1..])),
                    (Some(letter), Some(found)) if *letter == b'?' || letter == found => defined(&part[1..], &name[1..]),
                    _ => false,
                }
            }
            prop_assert_eq!(fits(&part, &name), defined(part.as_bytes(), name.as_bytes()));
        }
    }
}
