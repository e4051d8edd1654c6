//! The only `unsafe impl aya::Pod`s: every type here is `repr(C)`, `Copy`, free of padding (sizes asserted beside it) and of pointers.

use crate::{capture, endpoint, flow, inbound, join, latency, limit, service, udp, watch};

macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, every bit pattern valid, no padding: the type's fields are integers and its size is asserted where it is declared.
            unsafe impl aya::Pod for $type {}
        )+
    };
}

pod!(
    flow::Address,
    flow::Conn,
    flow::FlowKey,
    flow::OriginalKey,
    flow::Original,
    udp::Conversations,
    udp::Connected,
    join::Join,
    join::Half,
    join::Meeting,
    join::ShortcutStats,
    flow::Introduction,
    flow::Accepted,
    inbound::PortKey,
    inbound::Port,
    inbound::AccessKey,
    inbound::SourceVerdict,
    inbound::SteerKey,
    service::Service,
    service::ChunkKey,
    service::Chunk,
    service::SourceKey,
    service::Affinity,
    endpoint::Endpoint,
    endpoint::EndpointLive,
    endpoint::EjectPolicy,
    limit::LimitPolicy,
    limit::LimitKey,
    limit::LimitState,
    service::EndpointKey,
    service::EndpointStats,
    capture::Settings,
    capture::Listener,
    capture::Source,
    capture::Event,
    latency::EndpointLatency,
    watch::Watch,
    watch::Reported,
    watch::Flow,
    watch::Name,
);
