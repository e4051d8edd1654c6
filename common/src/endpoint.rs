//! One endpoint of a service as the kernel half knows it: where it is and whether it may be chosen, and its live state.

use crate::{
    flow::Address,
    seal::{SEED, mix, mix_address, mix_u64},
    service::EndpointKey,
};

/// Where an endpoint is, and whether it may be chosen.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// One of [`endpoint_state`].
    pub state: u32,
    /// See [`Endpoint::sealed`].
    pub seal: u32,
}

/// Values of [`Endpoint::state`].
pub mod endpoint_state {
    /// May be chosen.
    pub const ACTIVE: u32 = 0;
    /// Takes no new connections; those that it has go on.
    pub const DRAINING: u32 = 1;
    /// Takes no new connections, and those that it has are being ended.
    pub const DEAD: u32 = 2;
    /// Has no share of the new connections now: it is down, or a backup that is not needed. Who stayed with it is balanced anew; it is
    /// chosen while whatever has a share is ejected, if it stands by (see [`crate::service::Slot::standby`]).
    pub const STANDBY: u32 = 3;
}

impl Endpoint {
    /// The entry with its seal, for the key it will stand under (see [`crate::service::Service::sealed`]).
    pub fn sealed(mut self, key: &EndpointKey) -> Self {
        self.seal = self.seal_for(key);
        self
    }

    /// Whether the entry is whole and belongs to this key.
    #[inline(always)]
    pub fn is_whole(&self, key: &EndpointKey) -> bool {
        self.seal == self.seal_for(key)
    }

    #[inline(always)]
    fn seal_for(&self, key: &EndpointKey) -> u32 {
        let seal = mix(mix(SEED, key.service), key.endpoint);
        mix(mix_address(seal, &self.address), self.state)
    }
}

/// What all CPUs share of one endpoint and change while it is used. Only for services with
/// [`crate::service::service_flags::LIVE`]; the agent makes the entry and never writes it again.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointLive {
    /// Open connections that the connect hooks sent there, those under way included.
    pub open: u64,
    /// Handshakes in a row that failed.
    pub failures: u64,
    /// It is not chosen before this moment of `CLOCK_MONOTONIC`, in nanoseconds, unless all are ejected.
    pub ejected_until_ns: u64,
}

/// The endpoint's id in the key under which an [`EndpointLive`] says what the breaker of a service does. The agent makes the entry when the
/// breaker opens, and takes it away when that closes. Until `ejected_until_ns`, and while the agent's heartbeat is fresh, so many connects
/// still pass as `failures` says, which they count down; `open` counts those that were refused.
pub const ENDPOINT_BREAKER: u32 = u32::MAX - 1;

/// When the kernel half ejects an endpoint by itself: one sealed entry by the service's id.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectPolicy {
    /// For how long, in nanoseconds.
    pub for_ns: u64,
    /// After how many failed handshakes in a row.
    pub failures: u32,
    /// See [`EjectPolicy::sealed`].
    pub seal: u32,
}

impl EjectPolicy {
    /// The entry with its seal, for the service it will stand under (see [`crate::service::Service::sealed`]).
    pub fn sealed(mut self, service: u32) -> Self {
        self.seal = self.seal_for(service);
        self
    }

    /// Whether the entry is whole and belongs to this service.
    #[inline(always)]
    pub fn is_whole(&self, service: u32) -> bool {
        self.seal == self.seal_for(service)
    }

    #[inline(always)]
    fn seal_for(&self, service: u32) -> u32 {
        mix(mix_u64(mix(SEED, service), self.for_ns), self.failures)
    }
}

const _: () = {
    assert!(size_of::<Endpoint>() == 28);
    assert!(size_of::<EndpointLive>() == 24);
    assert!(size_of::<EjectPolicy>() == 16);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_made_of_two_halves_is_not_whole() {
        let key = EndpointKey { service: 1, endpoint: 1 };
        let endpoint =
            Endpoint { address: Address::v4(0x0a00_000a, 80), state: endpoint_state::ACTIVE, seal: 0 }.sealed(&key);
        assert!(endpoint.is_whole(&key));
        assert!(!endpoint.is_whole(&EndpointKey { endpoint: 2, ..key }));
        assert!(!Endpoint { address: Address::v4(0x0a00_000b, 80), ..endpoint }.is_whole(&key));
        assert!(!Endpoint { state: endpoint_state::DEAD, ..endpoint }.is_whole(&key));
    }
}
