//! The fields: the paths that connections may take through Sockway, each with services and endpoints of its own.

use std::net::SocketAddr;

use crate::{
    config::{Config, Service},
    netns::{Netns, Veth},
    process::Room,
    stage::Stage,
};

/// One kind of path.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a line.
    pub what: &'static str,
    /// Whether the agent is killed and started again for as long as it lasts.
    pub kills_the_agent: bool,
    /// Lays it out.
    pub lay: fn(&Stage) -> Ground,
}

/// All of them.
pub const FIELDS: [Field; 9] = [
    Field {
        name: "shortcut",
        what: "shortcut on, one namespace: three in four balanced in the kernel, one through the agent",
        kills_the_agent: false,
        lay: |stage| Ground::mixed(stage, "on", Stage::address),
    },
    Field {
        name: "ipv6",
        what: "the same over IPv6",
        kills_the_agent: false,
        lay: |stage| Ground::mixed(stage, "on", |stage| stage.addresses.next_v6()),
    },
    Field {
        name: "pods",
        what: "shortcut on, between two namespaces, balanced in the kernel",
        kills_the_agent: false,
        lay: Ground::pods,
    },
    Field {
        name: "relay",
        what: "opaque TCP through the agent, shortcut off",
        kills_the_agent: false,
        lay: |stage| Ground::through_the_agent(stage, "off", Stage::address),
    },
    Field {
        name: "joined",
        what: "opaque TCP through the agent, shortcut on: past the agent once it has nothing more to pass on",
        kills_the_agent: false,
        lay: |stage| Ground::through_the_agent(stage, "on", Stage::address),
    },
    Field {
        name: "joined-v6",
        what: "the same over IPv6",
        kills_the_agent: false,
        lay: |stage| Ground::through_the_agent(stage, "on", |stage| stage.addresses.next_v6()),
    },
    Field {
        name: "joined-ns",
        what: "the same between two namespaces",
        kills_the_agent: false,
        lay: Ground::joined_pods,
    },
    Field {
        name: "killed",
        what: "balanced in the kernel, shortcut on, while the agent is killed and started over and over, in mid-start too",
        kills_the_agent: true,
        lay: Ground::kernel_alone,
    },
    Field {
        name: "off",
        what: "as `shortcut`, but with it off: what goes wrong here is not its doing",
        kills_the_agent: false,
        lay: |stage| Ground::mixed(stage, "off", Stage::address),
    },
];

impl Field {
    /// The field of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        FIELDS.iter().find(|field| field.name == name)
    }
}

/// A field laid out on a stage.
#[derive(Debug)]
pub struct Ground {
    /// What the agent is told.
    pub config: Config,
    /// Where the server listens, as `LEADER@ADDRESS`: who speaks first there.
    pub endpoints: Vec<String>,
    /// What the client dials, in the same form, each as often as its share.
    pub services: Vec<String>,
    /// Where the server is told that all is done.
    pub end: SocketAddr,
    /// The namespaces of client and server, if they have one each.
    pods: Option<(Netns, Netns)>,
    agent_beside_client: bool,
}

/// Who speaks first on a connection: either kind of service has endpoints of its own.
const LEADERS: [&str; 2] = ["client", "server"];

impl Ground {
    /// Where the client runs.
    pub fn client<'a>(&'a self, stage: &'a Stage) -> Room<'a> {
        let room = Room::of(&stage.clients);
        self.pods.as_ref().map_or(room, |(left, _)| room.inside(left))
    }

    /// Where the agent runs.
    pub fn agent(&self) -> Room<'_> {
        let left = self.pods.as_ref().filter(|_| self.agent_beside_client).map(|(left, _)| left);
        left.map_or(Room::default(), |left| Room::default().inside(left))
    }

    /// Where the server runs.
    pub fn server<'a>(&'a self, stage: &'a Stage) -> Room<'a> {
        let room = Room::of(&stage.origins);
        self.pods.as_ref().map_or(room, |(_, right)| room.inside(right))
    }

    fn new(config: Config, end: SocketAddr) -> Self {
        Self {
            config,
            endpoints: vec![format!("client@{end}")],
            services: Vec::new(),
            end,
            pods: None,
            agent_beside_client: false,
        }
    }

    fn captured(stage: &Stage, shortcut: &'static str) -> Config {
        Config::new().capture_with(&stage.clients, shortcut).capture_with(&stage.origins, shortcut)
    }

    fn mixed(stage: &Stage, shortcut: &'static str, address: fn(&Stage) -> SocketAddr) -> Self {
        let mut ground = Self::new(Self::captured(stage, shortcut), address(stage));
        for leader in LEADERS {
            let kernel = Service::kernel_tcp(&format!("kernel-{leader}"), ground.share(leader, 3, address(stage)));
            ground.add(kernel, shortcut, leader, [address(stage), address(stage)]);
            let agent = Service::agent_tcp(&format!("agent-{leader}"), ground.share(leader, 1, address(stage)));
            ground.add(agent, shortcut, leader, [address(stage), address(stage)]);
        }
        ground
    }

    fn through_the_agent(stage: &Stage, shortcut: &'static str, address: fn(&Stage) -> SocketAddr) -> Self {
        let mut ground = Self::new(Self::captured(stage, shortcut), address(stage));
        for leader in LEADERS {
            let service = Service::agent_tcp(&format!("agent-{leader}"), ground.share(leader, 1, address(stage)));
            ground.add(service, shortcut, leader, [address(stage), address(stage)]);
        }
        ground
    }

    fn kernel_alone(stage: &Stage) -> Self {
        let mut ground = Self::new(stage.config_with_shortcut(), stage.address());
        for leader in LEADERS {
            let service = Service::kernel_tcp(&format!("kernel-{leader}"), ground.share(leader, 1, stage.address()));
            ground.add(service, "on", leader, [stage.address(), stage.address()]);
        }
        ground
    }

    fn pods(stage: &Stage) -> Self {
        Self::between_pods(stage, Service::kernel_tcp)
    }

    /// The agent dials from the client's namespace: from nowhere else is there a way to the server's.
    fn joined_pods(stage: &Stage) -> Self {
        Self { agent_beside_client: true, ..Self::between_pods(stage, Service::agent_tcp) }
    }

    fn between_pods(stage: &Stage, service: fn(&str, SocketAddr) -> Service) -> Self {
        let (left, right) = (Netns::new(), Netns::new());
        let wire = Veth::between(&left, &right);
        let endpoint = |port: u16| SocketAddr::new(wire.right.into(), port);
        let mut ground = Self::new(stage.config_with_shortcut(), endpoint(1));
        for (index, leader) in LEADERS.into_iter().enumerate() {
            // No namespace has a route to a service's address: what gets through was captured.
            let address = ground.share(leader, 1, SocketAddr::from(([10, 254, 0, index as u8 + 1], 80)));
            let port = (index as u16 + 1) * 1_000;
            ground.add(service(leader, address), "on", leader, [endpoint(port), endpoint(port + 1)]);
        }
        Self { pods: Some((left, right)), ..ground }
    }

    /// Gives a service's address its share of the connections.
    fn share(&mut self, leader: &str, share: usize, service: SocketAddr) -> SocketAddr {
        self.services.extend(vec![format!("{leader}@{service}"); share]);
        service
    }

    fn add(&mut self, service: Service, shortcut: &str, leader: &str, endpoints: [SocketAddr; 2]) {
        self.endpoints.extend(endpoints.map(|endpoint| format!("{leader}@{endpoint}")));
        let service = service.set(&format!("shortcut: {shortcut}")).to_all(endpoints);
        self.config = self.config.clone().service(service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_s_help_tells_of_every_field() {
        let help = include_str!("../../../xtask/src/torture.rs");
        for Field { name, what, .. } in FIELDS {
            assert!(help.contains(&format!("{name:<9} {what}")), "xtask's torture.rs does not tell of {name}: {what}");
        }
    }
}
