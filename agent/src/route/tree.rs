//! Templates of paths, in a tree of their segments.

use memchr::memchr;

use super::words::{Lengths, Map};
use crate::config::route::Segment;

/// Templates, each with a number.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    literals: Map<usize>,
    lengths: Lengths,
    named: Option<usize>,
    /// Numbers of the templates that end here.
    ends: Vec<usize>,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: vec![Node::default()] }
    }
}

impl Tree {
    /// Adds a template.
    pub fn add(&mut self, segments: &[Segment], number: usize) {
        let mut at = 0;
        for segment in segments {
            let fresh = self.nodes.len();
            let node = &mut self.nodes[at];
            at = match segment {
                Segment::Literal(text) => {
                    node.lengths.add(text.len());
                    *node.literals.entry(text.as_bytes().into()).or_insert(fresh)
                }
                Segment::Named(_) => *node.named.get_or_insert(fresh),
            };
            if at == fresh {
                self.nodes.push(Node::default());
            }
        }
        self.nodes[at].ends.push(number);
    }

    /// Tells the number of each template that a path fits. Visits no node twice, so that no path costs more than the tree is large.
    pub fn each(&self, path: &[u8], found: &mut impl FnMut(usize)) {
        if let (Some(path), 2..) = (path.strip_prefix(b"/"), self.nodes.len()) {
            self.below(0, Some(path), found);
        }
    }

    fn below(&self, at: usize, left: Option<&[u8]>, found: &mut impl FnMut(usize)) {
        let node = &self.nodes[at];
        let Some(left) = left else { return node.ends.iter().for_each(|number| found(*number)) };
        let slash = memchr(b'/', left);
        let (segment, rest) = slash.map_or((left, None), |slash| (&left[..slash], Some(&left[slash + 1..])));
        let literal = || node.literals.get(segment);
        if let Some(next) = node.lengths.has(segment.len()).then(literal).flatten() {
            self.below(*next, rest, found);
        }
        if let Some(next) = node.named.filter(|_| !segment.is_empty()) {
            self.below(next, rest, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(template: &str) -> Vec<Segment> {
        let named = |part: &str| part.strip_prefix('{').and_then(|part| part.strip_suffix('}')).map(str::to_owned);
        let segment = |part: &str| named(part).map_or(Segment::Literal(part.to_owned()), Segment::Named);
        template[1..].split('/').map(segment).collect()
    }

    #[test]
    fn every_template_that_fits_is_found() {
        let templates = ["/a/{x}", "/a/b", "/{x}/b", "/a/{x}/c", "/{x}", "/a/"];
        let mut tree = Tree::default();
        templates.iter().enumerate().for_each(|(number, template)| tree.add(&segments(template), number));
        for (path, expected) in [
            ("/a/b", &[0, 1, 2][..]),
            ("/a/z", &[0]),
            ("/z/b", &[2]),
            ("/a/z/c", &[3]),
            ("/a//c", &[]),
            ("/z", &[4]),
            ("/", &[]),
            ("/a/", &[5]),
            ("*", &[]),
            ("", &[]),
        ] {
            let mut found = Vec::new();
            tree.each(path.as_bytes(), &mut |number| found.push(number));
            found.sort_unstable();
            assert_eq!(found, expected, "{path}");
        }
    }
}
