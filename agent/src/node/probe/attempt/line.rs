//! A connection to an endpoint that probes ask over, one after the other: of HTTP/1.1 or HTTP/2, under TLS where the service speaks it to its
//! endpoints.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::client;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, header, uri::Authority};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task, time,
};
use tokio_rustls::TlsConnector;

use crate::{
    config::tls::{Originate, Within},
    decode::grpc,
};

/// Bytes of an answer that are read: a health status of gRPC has two. What is longer is cut off, and its connection is not used again.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long the rest of an answer is waited for, whose status is known.
const REST_MAX: Duration = Duration::from_millis(100);

/// Bytes both ways.
trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// See the file. Dropping it ends the connection.
#[derive(Debug)]
pub struct Line {
    sender: Sender,
    is_secure: bool,
}

#[derive(Debug)]
enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(client::SendRequest<Bytes>),
}

/// What is asked.
#[derive(Debug)]
pub struct Question<'q> {
    /// With what method.
    pub method: Method,
    /// The `Host`, or authority.
    pub host: &'q str,
    /// The path.
    pub path: &'q str,
    /// Further fields.
    pub headers: &'q [(String, String)],
    /// A message of gRPC, if it is one.
    pub body: Option<Bytes>,
    /// Whether the connection may stay.
    pub stays: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct Answer {
    /// Of HTTP.
    pub status: u16,
    /// Of gRPC, if there is one.
    pub grpc_status: Option<u8>,
    /// As much as was read.
    pub body: Vec<u8>,
    /// Whether that is all.
    pub is_whole: bool,
}

impl Line {
    /// Over a connection that was just made; `None`: that is not spoken there.
    pub async fn open(stream: TcpStream, address: SocketAddr, tls: Option<&Originate>, is_http2: bool) -> Option<Self> {
        let stream: Box<dyn Io> = match tls {
            Some(originate) => {
                let within = if is_http2 { Within::Http2 } else { Within::Http1 };
                let connector = TlsConnector::from(originate.client(within));
                Box::new(connector.connect(originate.name_of(address.ip()), stream).await.ok()?)
            }
            None => Box::new(stream),
        };
        let sender = if is_http2 {
            let (sender, connection) = client::handshake(stream).await.ok()?;
            task::spawn(connection);
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            task::spawn(connection);
            Sender::Http1(sender)
        };
        Some(Self { sender, is_secure: tls.is_some() })
    }

    /// Asks; `None`: there is no answer.
    pub async fn ask(&mut self, question: &Question<'_>) -> Option<Answer> {
        let head = self.head(question)?;
        match &mut self.sender {
            Sender::Http1(sender) => get(sender, head.map(|()| Empty::new())).await,
            Sender::Http2(sender) => exchange(sender.clone(), head, question.body.clone()).await,
        }
    }

    fn head(&self, question: &Question<'_>) -> Option<Request<()>> {
        let mut request = Request::new(());
        *request.method_mut() = question.method.clone();
        let headers = request.headers_mut();
        headers.insert(header::USER_AGENT, HeaderValue::from_static("sockway-probe"));
        if question.body.is_some() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        for (name, value) in question.headers {
            headers.append(HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?);
        }
        match &self.sender {
            Sender::Http1(_) => {
                headers.insert(header::HOST, HeaderValue::from_str(question.host).ok()?);
                if !question.stays {
                    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                *request.uri_mut() = question.path.parse().ok()?;
            }
            Sender::Http2(_) => {
                let scheme = if self.is_secure { "https" } else { "http" };
                let authority = question.host.parse::<Authority>().ok()?;
                *request.uri_mut() =
                    Uri::builder().scheme(scheme).authority(authority).path_and_query(question.path).build().ok()?;
                *request.version_mut() = Version::HTTP_2;
            }
        }
        Some(request)
    }
}

/// Asks in HTTP/1.1. The status says all; the rest is read so that the connection can be used again.
async fn get(sender: &mut http1::SendRequest<Empty<Bytes>>, request: Request<Empty<Bytes>>) -> Option<Answer> {
    sender.ready().await.ok()?;
    let (head, body) = sender.send_request(request).await.ok()?.into_parts();
    let is_whole = time::timeout(REST_MAX, read(body)).await.unwrap_or(false);
    Some(Answer { status: head.status.as_u16(), grpc_status: None, body: Vec::new(), is_whole })
}

/// Whether all of it came, and was not too much.
async fn read(mut body: Incoming) -> bool {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > BODY_BYTES_MAX {
            return false;
        }
    }
    true
}

/// Asks in HTTP/2.
async fn exchange(sender: client::SendRequest<Bytes>, request: Request<()>, body: Option<Bytes>) -> Option<Answer> {
    let mut sender = sender.ready().await.ok()?;
    let (response, mut up) = sender.send_request(request, body.is_none()).ok()?;
    if let Some(body) = body {
        up.send_data(body, true).ok()?;
    }
    let (head, mut from) = response.await.ok()?.into_parts();
    let (status, grpc_status) = (head.status.as_u16(), grpc_status(&head.headers));
    let mut answer = Answer { status, grpc_status, body: Vec::new(), is_whole: false };
    while let Some(piece) = from.data().await {
        let piece = piece.ok()?;
        let _ = from.flow_control().release_capacity(piece.len());
        if answer.body.len() + piece.len() > BODY_BYTES_MAX {
            return Some(answer);
        }
        answer.body.extend_from_slice(&piece);
    }
    if let Some(trailers) = from.trailers().await.ok()? {
        answer.grpc_status = self::grpc_status(&trailers).or(answer.grpc_status);
    }
    Some(Answer { is_whole: true, ..answer })
}

fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    headers.get("grpc-status").map(|value| grpc::status(value.as_bytes()))
}
