//! One probe of one endpoint: a connect, a request, or a command.

mod line;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Method;
use tokio::{net::TcpStream, time};

pub use self::line::Line;
use self::line::{Answer, Question};
use super::command;
use crate::{
    cluster::Service,
    config::{
        HttpVersion, Protocol,
        probe::{Kind, Probe},
    },
    health::Probed,
};

/// Longest wait for a probe of which the configuration says nothing: an endpoint that takes longer to accept is no better than one that
/// refuses.
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// `HealthCheckResponse.ServingStatus` as it is sent: field 1, a number, SERVING.
const SERVING: [u8; 2] = [0x08, 1];

/// Tries an endpoint as its service says, over a connection that an earlier probe has left if there is one. Also what the next may use.
pub async fn attempt(service: Arc<Service>, address: SocketAddr, left: Option<Line>) -> (Probed, Option<Line>) {
    let probe = service.config.probe.as_ref();
    let patience = probe.map_or(service.config.connect_timeout.min(PATIENCE_MAX), |probe| probe.timeout);
    if let Some(Probe { kind: Kind::Command(command), .. }) = probe {
        let address = address.to_string();
        let variables = [("SERVICE", service.config.name.as_str()), ("ENDPOINT", &address)];
        let is_well = command::run(command, &variables, patience).await;
        return (if is_well { Probed::Accepted } else { Probed::Failed }, None);
    }
    time::timeout(patience, tried(&service, address, left)).await.unwrap_or((Probed::Failed, None))
}

async fn tried(service: &Service, address: SocketAddr, left: Option<Line>) -> (Probed, Option<Line>) {
    let question = service.config.probe.as_ref().and_then(|probe| Some((probe, question(service, probe)?)));
    // One that does not answer any more was closed meanwhile: that says nothing of the endpoint.
    if let (Some((probe, question)), Some(line)) = (&question, left)
        && let Some(told) = told(probe, question, line).await
    {
        return told;
    }
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return (Probed::Refused, None),
        Err(_) => return (Probed::Failed, None),
    };
    let Some((probe, question)) = question else { return (Probed::Accepted, None) };
    let is_http2 = speaks_http2(service) || matches!(probe.kind, Kind::Grpc { .. });
    let Some(line) = Line::open(stream, address, service.config.tls.originate.as_deref(), is_http2).await else {
        return (Probed::Failed, None);
    };
    told(probe, &question, line).await.unwrap_or((Probed::Failed, None))
}

/// What an endpoint answers; `None`: nothing.
async fn told(probe: &Probe, question: &Question<'_>, mut line: Line) -> Option<(Probed, Option<Line>)> {
    let answer = line.ask(question).await?;
    let is_well = match &probe.kind {
        Kind::Http { expect, .. } => expect.iter().any(|range| range.contains(&answer.status.into())),
        _ => serves(&answer),
    };
    let left = (probe.reuses && answer.is_whole).then_some(line);
    Some((if is_well { Probed::Accepted } else { Probed::Unfit }, left))
}

/// What is asked; `None`: nothing is.
fn question<'s>(service: &'s Service, probe: &'s Probe) -> Option<Question<'s>> {
    let name = service.config.name.as_str();
    let stays = probe.reuses;
    match &probe.kind {
        Kind::Tcp | Kind::Command(_) => None,
        Kind::Http { path, host, headers, .. } => {
            let host = host.as_deref().unwrap_or(name);
            Some(Question { method: Method::GET, host, path, headers, body: None, stays })
        }
        Kind::Grpc { service } => {
            let path = "/grpc.health.v1.Health/Check";
            Some(Question { method: Method::POST, host: name, path, headers: &[], body: Some(message(service)), stays })
        }
    }
}

fn speaks_http2(service: &Service) -> bool {
    let config = &service.config;
    config.upstream_protocol.map_or(config.protocol == Protocol::Http2, |spoken| spoken == HttpVersion::Http2)
}

/// Whether it is a status of health that says so.
fn serves(answer: &Answer) -> bool {
    let is_ok = answer.status == 200 && answer.grpc_status == Some(0);
    is_ok && answer.body.get(5..).is_some_and(|message| message.starts_with(&SERVING))
}

/// `HealthCheckRequest` in a frame of gRPC: field 1 is the service's name.
fn message(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend_from_slice(&(message.len() as u32).to_be_bytes());
    frame.extend_from_slice(&message);
    frame.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_health_request_is_a_frame_with_one_field() {
        assert_eq!(&message("")[..], b"\0\0\0\0\0");
        assert_eq!(&message("ab")[..], b"\0\0\0\0\x04\x0a\x02ab");
        let long = message(&"x".repeat(200));
        assert_eq!(&long[..8], b"\0\0\0\0\xcb\x0a\xc8\x01");
        assert_eq!(long.len(), 5 + 203);
    }

    #[test]
    fn only_serving_serves() {
        let answer =
            |status, grpc_status, body: &[u8]| Answer { status, grpc_status, body: body.to_vec(), is_whole: true };
        assert!(serves(&answer(200, Some(0), b"\0\0\0\0\x02\x08\x01")));
        for bad in [
            answer(200, Some(0), b"\0\0\0\0\x02\x08\x02"),
            answer(200, Some(0), b"\0\0\0\0\0"),
            answer(200, Some(0), b""),
            answer(200, Some(12), b"\0\0\0\0\x02\x08\x01"),
            answer(200, None, b"\0\0\0\0\x02\x08\x01"),
            answer(503, Some(0), b"\0\0\0\0\x02\x08\x01"),
        ] {
            assert!(!serves(&bad));
        }
    }
}
