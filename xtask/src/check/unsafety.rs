//! Unsafe code stands in few places, and every block says why it holds.

use super::{
    Finding,
    source::{Source, has_word},
};

/// Where it may stand: what talks to the kernel, and what starts processes from between fork and exec.
const PLACES: &[&str] =
    &["agent/src/ring", "agent/src/kernel", "common/src/pod.rs", "ebpf/", "tests/", "xtask/src/bench"];

/// How far above its block a reason may begin.
const REACH: usize = 8;

pub fn check(source: &Source) -> Vec<Finding> {
    let lines: Vec<&str> = source.text.lines().collect();
    let blocks = source.numbered().filter(|(_, line)| has_word(line, "unsafe") && !line.contains("unsafe(no_mangle"));
    blocks.filter_map(|(number, line)| judge(source, &lines, number, line)).collect()
}

fn judge(source: &Source, lines: &[&str], number: usize, line: &str) -> Option<Finding> {
    if !source.is_in(PLACES) {
        let remedy = format!("unsafe code only in {}", PLACES.join(", "));
        return Some(Finding::new(&source.path, number, "unsafe is rare", remedy));
    }
    let needs_reason = line.contains("unsafe {") || line.contains("unsafe impl");
    if needs_reason && !has_reason(lines, number - 1) {
        return Some(Finding::new(
            &source.path,
            number,
            "unsafe is argued",
            "say above the block, after `// SAFETY:`, what makes it hold",
        ));
    }
    None
}

/// A reason stands on the line itself or above it, before a blank line.
fn has_reason(lines: &[&str], index: usize) -> bool {
    let above = lines[index.saturating_sub(REACH)..=index].iter().rev();
    above.take_while(|line| !line.trim().is_empty()).any(|line| line.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(path: &str, text: &str) -> Vec<&'static str> {
        check(&Source::new(path, text)).iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn unsafe_code_elsewhere_is_found() {
        assert_eq!(rules("agent/src/proxy.rs", "// SAFETY: x\nunsafe { f() }\n"), ["unsafe is rare"]);
        assert!(rules("agent/src/lib.rs", "#![deny(unsafe_code)]\n// unsafe\n").is_empty());
    }

    #[test]
    fn a_block_without_a_reason_is_found() {
        assert_eq!(rules("ebpf/src/peer.rs", "let a = 1;\nunsafe { f() }\n"), ["unsafe is argued"]);
        assert_eq!(rules("ebpf/src/peer.rs", "// SAFETY: for another block\n\nunsafe { f() }\n"), ["unsafe is argued"]);
        assert!(rules("ebpf/src/peer.rs", "// SAFETY: the context is valid.\nlet a = unsafe { f() };\n").is_empty());
    }
}
