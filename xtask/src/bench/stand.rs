//! Where a scenario stands: its cgroups, its namespaces, and who may run on which CPU.

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use super::{
    Bench,
    cgroup::{Cgroup, Tree},
    namespace::{Landscape, Layout},
    process::{Place, Process},
    sample::Placement,
};

/// Sizes of the bodies that the origin serves, by the name in the URL.
const BODIES: [(&str, usize); 2] = [("1k", 1024), ("64k", 64 * 1024)];

/// Cgroups and namespaces of one scenario in one placement; all of it gone when dropped.
#[derive(Debug)]
pub struct Stand {
    client: Cgroup,
    origin: Cgroup,
    node: Cgroup,
    placement: Placement,
    directory: PathBuf,
    // The processes of the tree go before the namespaces they stand in.
    tree: Tree,
    layout: Layout,
    landscape: Landscape,
}

impl Stand {
    /// Sets it up.
    pub fn raise(bench: &Bench, placement: Placement, layout: Layout) -> Result<Self> {
        let tree = Tree::plant()?;
        let landscape = Landscape::of(layout)?;
        let (client, origin, node) = (tree.group("client")?, tree.group("origin")?, tree.group("node")?);
        let directory = bench.directory.clone();
        fs::create_dir_all(directory.join("www")).with_context(|| format!("{}", directory.display()))?;
        for (name, size) in BODIES {
            fs::write(directory.join("www").join(name), "x".repeat(size))?;
        }
        Ok(Self { client, origin, node, placement, directory, tree, layout, landscape })
    }

    /// Where the load generator runs; captured by the agent.
    pub fn client(&self) -> Place<'_> {
        Place { namespace: self.landscape.client(), cgroup: &self.client, cpu: self.cpu(0) }
    }

    /// Where the origin runs; captured too, because a shortcut needs both of its ends, unless it is remote.
    pub fn origin(&self) -> Place<'_> {
        Place { namespace: self.landscape.origin(), cgroup: &self.origin, cpu: self.cpu(0) }
    }

    /// Where an origin with a core of its own runs.
    pub fn origin_apart(&self) -> Place<'_> {
        Place { cpu: self.cpu(1), ..self.origin() }
    }

    /// Where the proxies run; not captured.
    pub fn proxy(&self) -> Place<'_> {
        Place { namespace: self.landscape.node(), cgroup: &self.node, cpu: self.cpu(1) }
    }

    /// Like the client, but not captured.
    pub fn outsider(&self) -> Place<'_> {
        Place { cgroup: &self.node, ..self.client() }
    }

    /// A group of its own for a client; made on first use.
    pub fn group(&self, role: &str) -> Result<Cgroup> {
        self.tree.group(role)
    }

    /// Names of the captured groups.
    pub fn captured(&self) -> Vec<&str> {
        let mut groups = vec![self.client.name.as_str()];
        if self.layout != Layout::Remote {
            groups.push(&self.origin.name);
        }
        groups
    }

    /// The namespaces.
    pub fn landscape(&self) -> &Landscape {
        &self.landscape
    }

    /// CPU time of everything that runs here, except what left its cgroup.
    pub fn cpu_time(&self) -> Result<Duration> {
        self.tree.cpu()
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Writes a configuration: the template with each `{{key}}` filled in.
    pub fn write(&self, name: &str, template: &str, values: &[(&str, &str)]) -> Result<PathBuf> {
        let path = self.file(name);
        let directory = self.directory.to_str().context("the target directory's name is not UTF-8")?;
        let text = fill(template, &[&[("dir", directory)], values].concat())?;
        fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
        Ok(path)
    }

    /// Starts a server whose output goes to a log of this run.
    pub fn serve(&self, name: &str, command: &mut Command, place: &Place) -> Result<Process> {
        Process::serve(command, place, &self.file(&format!("{name}.log")))
    }

    /// Calls `url` as the client does, once.
    pub fn call(&self, url: &str) -> Result<()> {
        self.call_with(&[], url)
    }

    /// The same by HTTP/2.
    pub fn call_http2(&self, url: &str) -> Result<()> {
        self.call_with(&["--http2-prior-knowledge"], url)
    }

    /// The same with these arguments of curl.
    pub fn call_with(&self, arguments: &[&str], url: &str) -> Result<()> {
        let received = curl(arguments, url, &self.client())?;
        let name = url.rsplit('/').next().unwrap_or_default();
        let size = BODIES.iter().find(|(body, _)| *body == name).map(|(_, size)| *size);
        ensure!(size.is_none_or(|size| received.len() == size), "{url}: {} bytes came", received.len());
        Ok(())
    }

    /// Gets a page of an admin endpoint in the node's namespace.
    pub fn get(&self, url: &str) -> Result<String> {
        curl(&[], url, &Place { cpu: None, ..self.proxy() })
    }

    fn cpu(&self, cpu: usize) -> Option<usize> {
        (self.placement == Placement::Pinned).then_some(cpu)
    }
}

fn curl(arguments: &[&str], url: &str, place: &Place) -> Result<String> {
    let mut command = Command::new("curl");
    // The metrics of a hundred thousand endpoints are 20 MB.
    command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "30"]).args(arguments).arg(url);
    Process::output(&mut command, place, Duration::from_secs(40))
}

fn fill(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_owned();
    for (key, value) in values {
        text = text.replace(&format!("{{{{{key}}}}}"), value);
    }
    if let Some(start) = text.find("{{") {
        let end = text[start..].find("}}").map_or(text.len(), |length| start + length + 2);
        bail!("the template's {} has no value", &text[start..end]);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_with_a_key_left_over_is_refused() {
        assert_eq!(fill("a {{x}} b {{y}} {{x}}", &[("x", "1"), ("y", "2")]).unwrap(), "a 1 b 2 1");
        assert_eq!(
            fill("a {{x}} b {{y}}", &[("x", "1")]).unwrap_err().to_string(),
            "the template's {{y}} has no value"
        );
    }
}
