//! One probe of one endpoint: a connect, a request, or a command.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, Version, header, uri::Authority};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time,
};

use super::command;
use crate::{
    cluster::Service,
    config::{
        HttpVersion, Protocol,
        probe::{Kind, Probe},
    },
    decode::grpc,
    health::Probed,
};

/// Longest wait for a probe of which the configuration says nothing: an endpoint that takes longer to accept is no better than one that
/// refuses.
const PATIENCE_MAX: Duration = Duration::from_secs(1);
/// Bytes of a status line that are waited for.
const STATUS_LINE_MAX: usize = 4 * 1024;
/// Bytes of an answer of gRPC: a health status has two.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
/// `HealthCheckResponse.ServingStatus` as it is sent: field 1, a number, SERVING.
const SERVING: [u8; 2] = [0x08, 1];

/// Tries an endpoint as its service says.
pub async fn attempt(service: Arc<Service>, address: SocketAddr) -> Probed {
    let probe = service.config.probe.as_ref();
    let patience = probe.map_or(service.config.connect_timeout.min(PATIENCE_MAX), |probe| probe.timeout);
    if let Some(Probe { kind: Kind::Command(command), .. }) = probe {
        let address = address.to_string();
        let variables = [("SERVICE", service.config.name.as_str()), ("ENDPOINT", &address)];
        let is_well = command::run(command, &variables, patience).await;
        return if is_well { Probed::Accepted } else { Probed::Failed };
    }
    time::timeout(patience, connected(&service, address)).await.unwrap_or(Probed::Failed)
}

async fn connected(service: &Service, address: SocketAddr) -> Probed {
    let stream = match TcpStream::connect(address).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Probed::Refused,
        Err(_) => return Probed::Failed,
    };
    match service.config.probe.as_ref().map(|probe| &probe.kind) {
        None | Some(Kind::Tcp | Kind::Command(_)) => Probed::Accepted,
        Some(Kind::Http { path, host, expect }) => {
            let host = host.as_deref().unwrap_or(&service.config.name);
            let answered = match speaks_http2(service) {
                true => exchange(stream, Method::GET, (host, path), None).await.map(|answer| answer.status),
                false => get(stream, path, host).await,
            };
            match answered {
                Some(status) if expect.iter().any(|range| range.contains(&status.into())) => Probed::Accepted,
                Some(_) => Probed::Unfit,
                None => Probed::Failed,
            }
        }
        Some(Kind::Grpc { service: asked }) => {
            let place = (service.config.name.as_str(), "/grpc.health.v1.Health/Check");
            match exchange(stream, Method::POST, place, Some(message(asked))).await {
                Some(answer) if answer.serves() => Probed::Accepted,
                Some(_) => Probed::Unfit,
                None => Probed::Failed,
            }
        }
    }
}

fn speaks_http2(service: &Service) -> bool {
    let config = &service.config;
    config.upstream_protocol.map_or(config.protocol == Protocol::Http2, |spoken| spoken == HttpVersion::Http2)
}

/// Asks in HTTP/1.1; gives the status. What comes behind the status line is nobody's business.
async fn get(mut stream: TcpStream, path: &str, host: &str) -> Option<u16> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: sockway-probe\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < STATUS_LINE_MAX {
        if stream.read_buf(&mut line).await.ok()? == 0 {
            return None;
        }
    }
    let line = std::str::from_utf8(line.split(|byte| *byte == b'\n').next()?).ok()?;
    let (version, rest) = line.split_once(' ')?;
    version.starts_with("HTTP/1.").then_some(())?;
    rest.get(..3)?.parse().ok()
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

/// What came of a request of HTTP/2.
struct Answer {
    status: u16,
    grpc_status: Option<u8>,
    body: Vec<u8>,
}

impl Answer {
    /// Whether it is a status of health that says so.
    fn serves(&self) -> bool {
        let is_ok = self.status == 200 && self.grpc_status == Some(0);
        is_ok && self.body.get(5..).is_some_and(|message| message.starts_with(&SERVING))
    }
}

/// Asks in HTTP/2, of an authority and a path.
async fn exchange(
    stream: TcpStream,
    method: Method,
    (authority, path): (&str, &str),
    body: Option<Bytes>,
) -> Option<Answer> {
    let (sender, connection) = client::handshake(stream).await.ok()?;
    let uri = Uri::builder().scheme("http").authority(authority.parse::<Authority>().ok()?).path_and_query(path);
    let mut request = Request::new(());
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) = (method, uri.build().ok()?, Version::HTTP_2);
    let headers = request.headers_mut();
    headers.insert(header::USER_AGENT, HeaderValue::from_static("sockway-probe"));
    if body.is_some() {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    tokio::select! {
        answer = ask(sender, request, body) => answer,
        _ = connection => None,
    }
}

async fn ask(sender: client::SendRequest<Bytes>, request: Request<()>, body: Option<Bytes>) -> Option<Answer> {
    let mut sender = sender.ready().await.ok()?;
    let (response, mut up) = sender.send_request(request, body.is_none()).ok()?;
    if let Some(body) = body {
        up.send_data(body, true).ok()?;
    }
    let (head, mut from) = response.await.ok()?.into_parts();
    let mut answer = Answer { status: head.status.as_u16(), grpc_status: grpc_status(&head.headers), body: Vec::new() };
    while let Some(piece) = from.data().await {
        let piece = piece.ok()?;
        let _ = from.flow_control().release_capacity(piece.len());
        if answer.body.len() + piece.len() > MESSAGE_BYTES_MAX {
            return Some(answer);
        }
        answer.body.extend_from_slice(&piece);
    }
    if let Some(trailers) = from.trailers().await.ok()? {
        answer.grpc_status = grpc_status(&trailers).or(answer.grpc_status);
    }
    Some(answer)
}

fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status").map(|value| grpc::status(value.as_bytes()))
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
        let answer = |status, grpc_status, body: &[u8]| Answer { status, grpc_status, body: body.to_vec() };
        assert!(answer(200, Some(0), b"\0\0\0\0\x02\x08\x01").serves());
        for bad in [
            answer(200, Some(0), b"\0\0\0\0\x02\x08\x02"),
            answer(200, Some(0), b"\0\0\0\0\0"),
            answer(200, Some(0), b""),
            answer(200, Some(12), b"\0\0\0\0\x02\x08\x01"),
            answer(200, None, b"\0\0\0\0\x02\x08\x01"),
            answer(503, Some(0), b"\0\0\0\0\x02\x08\x01"),
        ] {
            assert!(!bad.serves());
        }
    }
}
