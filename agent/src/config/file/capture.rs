//! Whose connections are captured.

use std::{net::IpAddr, ops::RangeInclusive, path::PathBuf};

use super::{
    SHORTCUTS,
    section::{Field, Path, Problems, Section, shown},
    tree::Value,
};
use crate::config::{
    Capture, CaptureRule, Except, NamespaceRules, Shortcut,
    capture::{Cidr, NAMED, NamespaceName},
    pattern::{COMPONENTS_MAX, Pattern},
};

/// Whether a rule captures or leaves out.
const CAPTURES: [(&str, bool); 2] = [("on", true), ("off", false)];

pub(super) fn default_capture() -> Capture {
    Capture {
        cgroup_mount: None,
        bpffs: default_bpffs(),
        rules: whole_host(),
        namespaces: NamespaceRules::default(),
        except: Except::default(),
    }
}

fn default_bpffs() -> PathBuf {
    PathBuf::from("/sys/fs/bpf")
}

fn whole_host() -> Vec<CaptureRule> {
    let path = Pattern::new("/").into_iter();
    path.map(|path| CaptureRule { path, capture: true, shortcut: Shortcut::Auto }).collect()
}

pub(super) fn capture(field: &Field<'_>, problems: &mut Problems) -> Option<Capture> {
    let keys = ["cgroup_mount", "bpffs", "cgroups", "namespaces", "except"];
    let section = Section::open(field.node, &field.path, &keys, problems)?;
    let cgroup_mount = section.or("cgroup_mount", || None, |field, p| field.path(p).map(Some), problems);
    let bpffs = section.or("bpffs", default_bpffs, Field::path, problems);
    let rules = section.or("cgroups", whole_host, capture_rules, problems);
    let namespaces = section.or("namespaces", NamespaceRules::default, namespaces, problems);
    let except = section.or("except", Except::default, except, problems);
    Some(Capture {
        cgroup_mount: cgroup_mount?,
        bpffs: bpffs?,
        rules: rules?,
        namespaces: namespaces?,
        except: except?,
    })
}

fn capture_rules(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<CaptureRule>> {
    let items = field.list(problems)?;
    if items.is_empty() {
        field.refuse("captures nothing; name a cgroup, or leave the key out to capture the whole host", problems);
    }
    let mut rules: Vec<CaptureRule> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let item_path = Path::Item(&field.path, index);
        let keys = ["path", "capture", "shortcut"];
        let Some(section) = Section::open(item, &item_path, &keys, problems) else { continue };
        let path_field =
            section.require("path", "write the cgroup\'s path below the cgroup v2 mount, as /kubepods", problems);
        let capture = section.or("capture", || true, |field, p| field.choice(&CAPTURES, p), problems);
        let shortcut = section.or("shortcut", Shortcut::default, |field, p| field.choice(&SHORTCUTS, p), problems);
        if let (Some(false), Some(shortcut)) = (capture, section.get("shortcut")) {
            shortcut.refuse("means nothing where capture is off; remove one of the two", problems);
        }
        let path = path_field.and_then(|field| pattern(&field, problems));
        if let (Some(field), Some(path)) = (path_field, &path)
            && rules.iter().any(|rule| rule.path == *path)
        {
            field.refuse(format!("{path} is listed twice; keep one"), problems);
        }
        let rule = path.zip(capture).zip(shortcut);
        rules.extend(rule.map(|((path, capture), shortcut)| CaptureRule { path, capture, shortcut }));
    }
    if !rules.is_empty() && rules.iter().all(|rule| !rule.capture) {
        field.refuse(
            "captures nothing: every rule says capture: off; add one that captures what is around them",
            problems,
        );
    }
    Some(rules)
}

/// An absolute path that may hold `*`, `?` and `**`.
pub(super) fn pattern(field: &Field<'_>, problems: &mut Problems) -> Option<Pattern> {
    let path = field.path(problems)?;
    let text = path.to_str()?;
    if text.split('/').any(|part| part != "**" && part.contains("**")) {
        let what =
            "\"**\" stands for whole components and must be one by itself; write /a/**/b, or * within a component";
        field.refuse(what, problems);
        return None;
    }
    let pattern = Pattern::new(text);
    if pattern.is_none() {
        field.refuse(format!("has more than {COMPONENTS_MAX} components; write ** for several"), problems);
    }
    pattern
}

pub(super) fn namespaces(field: &Field<'_>, problems: &mut Problems) -> Option<NamespaceRules> {
    let section = Section::open(field.node, &field.path, &["only", "except"], problems)?;
    let only = section.or("only", Vec::new, namespace_names, problems);
    if let (Some(field), Some([])) = (section.get("only"), only.as_deref()) {
        field.refuse("captures nothing; name a namespace, or leave the key out to capture all", problems);
    }
    let except = section.or("except", Vec::new, namespace_names, problems);
    Some(NamespaceRules { only: only?, except: except? })
}

fn namespace_names(field: &Field<'_>, problems: &mut Problems) -> Option<Vec<NamespaceName>> {
    each(field, problems, namespace_name)
}

/// How a network namespace is named.
pub(super) fn namespace_name(field: &Field<'_>, problems: &mut Problems) -> Option<NamespaceName> {
    let text = field.text(problems)?;
    if text == "host" {
        return Some(NamespaceName::Host);
    }
    if text.starts_with('/') {
        let path = pattern(field, problems)?;
        if path.parts().any(|part| part == "**") {
            field.refuse("would be searched for in the whole file system; write * for each component", problems);
            return None;
        }
        return Some(NamespaceName::At(path));
    }
    if text.is_empty() || text.contains(['/', '\0']) || text == ".." || text == "." {
        let what = format!("\"{}\" is no name of a namespace; write a name of {NAMED}, a path, or host", shown(text));
        field.refuse(what, problems);
        return None;
    }
    Pattern::new(&format!("{NAMED}/{text}")).map(NamespaceName::At)
}

fn except(field: &Field<'_>, problems: &mut Problems) -> Option<Except> {
    let section = Section::open(field.node, &field.path, &["ports", "cidrs", "uids"], problems)?;
    let ports = section.or("ports", Vec::new, |field, p| each(field, p, port), problems);
    let cidrs = section.or("cidrs", Vec::new, |field, p| each(field, p, cidr), problems);
    // The last number means "no user" to the kernel.
    let uid = |field: &Field<'_>, p: &mut Problems| range(field, 0..=u32::MAX - 1, "user", "0 or 1000-1010", p);
    let uids = section.or("uids", Vec::new, |field, p| each(field, p, uid), problems);
    Some(Except { ports: ports?, cidrs: cidrs?, uids: uids? })
}

/// A port, or a range of them.
pub(super) fn port(field: &Field<'_>, problems: &mut Problems) -> Option<RangeInclusive<u16>> {
    let range = range(field, 1..=u16::MAX.into(), "port", "22 or 8000-8010", problems)?;
    Some(*range.start() as u16..=*range.end() as u16)
}

/// A list of which each item is read; what is wrong with one does not hide the next.
pub(super) fn each<T>(
    field: &Field<'_>,
    problems: &mut Problems,
    read: impl Fn(&Field<'_>, &mut Problems) -> Option<T>,
) -> Option<Vec<T>> {
    let items = field.list(problems)?;
    let item = |(index, node)| read(&Field { node, path: Path::Item(&field.path, index) }, problems);
    Some(items.iter().enumerate().filter_map(item).collect())
}

/// A whole number, or two of them with `-` between.
pub(super) fn range(
    field: &Field<'_>,
    whole: RangeInclusive<u32>,
    what: &str,
    example: &str,
    problems: &mut Problems,
) -> Option<RangeInclusive<u32>> {
    if let Value::Integer(_) = field.node.value {
        return field.integer(whole, problems).map(|number| number..=number);
    }
    let text = field.text(problems)?;
    let ends = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| text.trim().parse::<u32>().ok().filter(|number| whole.contains(number));
    match (number(ends.0), number(ends.1)) {
        (Some(first), Some(last)) if first <= last => Some(first..=last),
        _ => {
            let (least, most) = (whole.start(), whole.end());
            let what = format!(
                "\"{}\" is no {what} and no range of them; write {example}, from {least} to {most}",
                shown(text)
            );
            field.refuse(what, problems);
            None
        }
    }
}

/// `IP/PREFIX`, or one IP.
pub(super) fn cidr(field: &Field<'_>, problems: &mut Problems) -> Option<Cidr> {
    let text = field.text(problems)?;
    let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, prefix)| (ip, Some(prefix)));
    let Ok(ip) = ip.parse::<IpAddr>() else {
        field.refuse(
            format!("\"{}\" is no block of addresses; write it as 10.0.0.0/8 or fd00::/8", shown(text)),
            problems,
        );
        return None;
    };
    let prefix = prefix.map_or(Some(if ip.is_ipv4() { 32 } else { 128 }), |prefix| prefix.parse().ok());
    let cidr = prefix.and_then(|prefix| Cidr::new(ip, prefix));
    if cidr.is_none() {
        let what = format!(
            "\"{}\" has bits set behind its prefix, or a prefix longer than the address; write it as 10.0.0.0/8",
            shown(text)
        );
        field.refuse(what, problems);
    }
    cidr
}
