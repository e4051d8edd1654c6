//! What of the kernel half a kernel may lack: a part is one program or several, and a capability that the self-test tries, `doctor` tells and
//! the metrics name. A kernel that refuses one of its programs, for whatever reason, has none of the part; everything else works.
//!
//! Not here is what the agent cannot do without: the hooks on `connect()`, on sockets that are established and released.

use crate::{
    cluster::Service,
    config::{Config, Shortcut},
};
use sockway_common::flow::UDP;

use super::load;

/// A part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Messages from socket to socket. Its program reads the peer's memory (trap T18), which a kernel that is locked down refuses.
    Shortcut,
    /// Connections that come in are steered.
    Inbound,
    /// `SO_ORIGINAL_DST` is answered.
    OriginalDst,
    /// What is sent without `connect()`.
    Datagrams,
    /// `getpeername()` is answered.
    PeerName,
    /// Idle entries of the limits are removed.
    Sweep,
    /// Hooks look at what no context shows: why a handshake failed, how a connection ended, whether the kernel itself dials.
    Inside,
}

impl Part {
    const ALL: [Self; 7] =
        [Self::Shortcut, Self::Inbound, Self::OriginalDst, Self::Datagrams, Self::PeerName, Self::Sweep, Self::Inside];

    /// The part that a program is of; none if the agent cannot do without it.
    pub fn of(program: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.programs().contains(&program))
    }

    /// Its programs.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Shortcut => &[load::SHORTCUT_PROGRAM, load::LOOKING_AT_QUEUE],
            Self::Inbound => &[load::STEERING],
            Self::OriginalDst => &["ask_option"],
            // All or none: what is sent to an endpoint must seem to come back from the service.
            Self::Datagrams => &["send_v4", "send_v6", "receive_v4", "receive_v6"],
            Self::PeerName => &["peer_v4", "peer_v6"],
            Self::Sweep => &["sweep_limits", "settle_limits"],
            Self::Inside => &[load::LOOKING_INSIDE],
        }
    }

    /// What does not work without it.
    pub fn without(self) -> &'static str {
        match self {
            Self::Shortcut => "`shortcut` has no effect: all bytes go by TCP",
            Self::Inbound => {
                "rules of `inbound` have no effect: programs serve by themselves, and nobody is denied or limited"
            }
            Self::OriginalDst => {
                "`original_dst: on` has no effect: proxies are not told what their clients dialled, and take it for themselves"
            }
            Self::Datagrams => "services with `protocol: udp` are not balanced: datagrams go where programs send them",
            Self::PeerName => {
                "getpeername() answers the endpoint instead of the service, and what is accepted through the agent hears the agent's address"
            }
            Self::Sweep => {
                "idle sources stay in the table of limits: when it is full, further sources are not limited each by itself"
            }
            Self::Inside => {
                "`eject` has no effect, flows do not tell of errors, and what the kernel itself dials (NFS, SMB) is balanced like a program's"
            }
        }
    }

    /// Whether a configuration asks for it.
    pub fn is_asked_for(self, config: &Config) -> bool {
        let services = &config.services;
        match self {
            Self::Shortcut => services.iter().any(|service| service.shortcut == Shortcut::On),
            Self::Inbound => !config.inbound.is_empty(),
            Self::OriginalDst => services.iter().any(|service| service.original_dst),
            Self::Datagrams => services.iter().any(|service| service.protocol.transport() == UDP),
            Self::PeerName => !services.is_empty(),
            Self::Sweep => services.iter().any(|service| service.policy.limits.is_some()),
            Self::Inside => services.iter().any(|service| service.policy.eject.is_some()),
        }
    }
}

/// The parts that this kernel lacks.
#[derive(Clone, Debug, Default)]
pub struct Lacking(Vec<Part>);

impl Lacking {
    /// Of programs that were refused.
    pub fn of<'r>(programs: impl IntoIterator<Item = &'r str>) -> Self {
        let mut parts: Vec<Part> = programs.into_iter().filter_map(Part::of).collect();
        parts.dedup();
        Self(parts)
    }

    /// Whether this is one of them.
    pub fn has(&self, part: Part) -> bool {
        self.0.contains(&part)
    }

    /// Whether this program is of no use.
    pub fn has_program(&self, program: &str) -> bool {
        Part::of(program).is_some_and(|part| self.has(part))
    }

    /// Whether a service cannot be balanced.
    pub fn leaves_out(&self, service: &Service) -> bool {
        self.has(Part::Datagrams) && service.config.protocol.transport() == UDP
    }

    /// Says in the log what a configuration asks for in vain.
    pub fn tell(&self, config: &Config) {
        for part in self.0.iter().filter(|part| part.is_asked_for(config)) {
            tracing::error!(
                "this kernel lacks what the configuration asks for: {}; `sockway doctor` tells why",
                part.without()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    #[test]
    fn a_part_lacks_as_soon_as_one_of_its_programs_does() {
        let lacking = Lacking::of(["receive_v6", "receive_v4", "steer"]);
        assert!(lacking.has_program("send_v4") && lacking.has(Part::Inbound) && !lacking.has(Part::Shortcut));
        assert!(!lacking.has_program("dial_v4"), "nothing works without it");
        assert_eq!(lacking.0, [Part::Datagrams, Part::Inbound]);
    }

    #[test]
    fn a_configuration_asks_for_what_its_keys_say() {
        let config = |text: &str| file::parse(text, "F").expect("a good file");
        let asked = |text: &str| -> Vec<Part> {
            Part::ALL.into_iter().filter(|part| part.is_asked_for(&config(text))).collect()
        };
        assert_eq!(asked("services: []"), []);
        let udp = "services: [{ name: a, address: '127.1.1.1:53', protocol: udp, endpoints: ['127.1.1.2:53'] }]";
        assert_eq!(asked(udp), [Part::Datagrams, Part::PeerName]);
        let eject = "services: [{ name: a, address: '127.1.1.1:1', protocol: tcp, eject: { failures: 3 }, endpoints: ['127.1.1.2:1'] }]";
        assert_eq!(asked(eject), [Part::PeerName, Part::Inside]);
        assert_eq!(asked("inbound: [{ name: a, ports: [80], protocol: tcp }]"), [Part::Inbound]);
    }

    #[cfg(sockway_ebpf)]
    #[test]
    fn every_program_of_a_part_is_in_the_object() {
        let object = aya_obj::Object::parse(load::OBJECT.expect("built with the kernel half")).unwrap();
        for program in Part::ALL.into_iter().flat_map(Part::programs) {
            assert!(object.programs.contains_key(*program), "{program}");
        }
    }
}
