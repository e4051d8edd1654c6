//! The repository as a whole: what stands at its top, that the pages' links lead somewhere, that both halves ask for the same versions.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};

use super::Finding;

/// Everything that may stand at the top beside dotfiles; all but `target` must.
const TOP: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "agent",
    "common",
    "ebpf",
    "tests",
    "xtask",
    "README.md",
    "LICENSE-MIT",
    "LICENSE-APACHE",
];

pub fn check(root: &Path) -> Result<Vec<Finding>> {
    let names = fs::read_dir(root)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut findings = top(&names.collect::<Result<Vec<_>>>()?);
    let readme = fs::read_to_string(root.join("README.md")).unwrap_or_default();
    findings.extend(links("README.md", &readme, |target| root.join(target).exists()));
    let manifest = |folder: &str| {
        let path = root.join(folder).join("Cargo.toml");
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    for other in ["common", "agent"] {
        findings.extend(versions("ebpf/Cargo.toml", &manifest("ebpf")?, other, &manifest(other)?));
    }
    Ok(findings)
}

fn top(names: &[String]) -> Vec<Finding> {
    let strange =
        names.iter().filter(|name| !name.starts_with('.') && *name != "target" && !TOP.contains(&name.as_str()));
    let missing = TOP.iter().filter(|expected| !names.iter().any(|name| name == *expected));
    strange
        .map(|name| Finding::new(name, 1, "the top is small", "move it to where it belongs: the top level is fixed"))
        .chain(missing.map(|name| Finding::new(name, 1, "the top is small", "it is missing")))
        .collect()
}

/// Links of a page to files of the repository.
fn links(page: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ', '#']).next());
        for target in
            targets.filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
        {
            if !exists(target) {
                findings.push(Finding::new(page, index + 1, "links lead somewhere", format!("there is no {target}")));
            }
        }
    }
    findings
}

fn versions(page: &str, ours: &str, other: &str, theirs: &str) -> Vec<Finding> {
    let theirs = requirements(theirs);
    let differing = requirements(ours).into_iter().filter_map(|(name, (line, version))| {
        let (_, their_version) = theirs.get(&name).filter(|(_, theirs)| *theirs != version)?;
        let remedy = format!("{name} is {version} here and {their_version} in {other}/Cargo.toml: ask for the same");
        Some(Finding::new(page, line, "both halves agree", remedy))
    });
    differing.collect()
}

/// Name to line and version, for every dependency that has a version.
fn requirements(manifest: &str) -> BTreeMap<String, (usize, String)> {
    let mut found = BTreeMap::new();
    let mut inside = false;
    for (index, line) in manifest.lines().enumerate() {
        if let Some(section) = line.trim().strip_prefix('[') {
            inside = section.contains("dependencies]");
        } else if let (true, Some((name, value))) = (inside, line.split_once('='))
            && let Some(version) = version(value)
        {
            found.insert(name.trim().to_owned(), (index + 1, version));
        }
    }
    found
}

fn version(value: &str) -> Option<String> {
    let quoted = match value.trim().strip_prefix('{') {
        Some(table) => table.split_once("version")?.1,
        None => value,
    };
    // `=1.2` pins what `1.2` allows: no disagreement.
    Some(quoted.split('"').nth(1)?.trim_start_matches(['=', '^']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_belong_at_the_top_and_what_is_missing_is_found() {
        let mut names: Vec<String> = TOP.iter().map(|name| (*name).to_owned()).collect();
        names.extend([".ci".to_owned(), "target".to_owned()]);
        assert!(top(&names).is_empty());
        names.push("scripts".to_owned());
        names.retain(|name| name != "LICENSE-MIT");
        let found: Vec<String> = top(&names).iter().map(|finding| finding.file.display().to_string()).collect();
        assert_eq!(found, ["scripts", "LICENSE-MIT"]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_found() {
        let text = "# x\n[a](agent/src/lib.rs) [b](https://example.org/) [c](#top) [d](gone.md#part)\n";
        let found = links("README.md", text, |target| target == "agent/src/lib.rs");
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].line, found[0].remedy.as_str()), (2, "there is no gone.md"));
    }

    #[test]
    fn halves_that_ask_for_different_versions_are_found() {
        let ours = "[package]\nversion = \"9\"\n[dependencies]\naya-ebpf = \"=0.2.1\"\nlog = \"0.4\"\n";
        assert!(
            versions("e", ours, "common", "[dependencies]\naya-ebpf = { version = \"0.2.1\", optional = true }\n")
                .is_empty()
        );
        assert_eq!(versions("e", ours, "common", "[dependencies]\nlog = \"0.3\"\n").len(), 1);
    }
}
