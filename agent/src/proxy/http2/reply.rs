//! Answers of our own to requests of HTTP/2.

use bytes::Bytes;
use h2::{Reason, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, header};

use crate::{decode::grpc, proxy::http::Reply};

/// What must be known of a request to answer it in the endpoint's stead.
#[derive(Clone, Copy, Debug)]
pub struct To {
    /// A gRPC caller reads no text, and takes every status but 200 for a broken connection.
    pub is_grpc: bool,
    /// No body.
    pub is_head: bool,
}

/// Answers; a client that went away meanwhile needs no answer.
pub fn send(respond: &mut SendResponse<Bytes>, reply: &Reply, to: To) {
    let sent = if to.is_grpc {
        respond.send_response(trailers_only(reply), true).map(drop)
    } else {
        let (response, body) = text(reply);
        let is_whole = to.is_head || body.is_empty();
        respond.send_response(response, is_whole).and_then(|mut stream| match is_whole {
            true => Ok(()),
            false => stream.send_data(body, true),
        })
    };
    if sent.is_err() {
        respond.send_reset(Reason::INTERNAL_ERROR);
    }
}

/// Answers a request that breaks the rules of its head, and resets its stream (RFC 9113 section 8.1.1).
pub async fn reset(respond: &mut SendResponse<Bytes>, reply: &Reply) {
    let (response, body) = text(reply);
    // What waits to be sent is lost with the reset: the reason is a courtesy, the reset is the rule.
    if respond.send_response(response, false).is_ok_and(|mut stream| stream.send_data(body, false).is_ok()) {
        tokio::task::yield_now().await;
    }
    respond.send_reset(Reason::PROTOCOL_ERROR);
}

fn text(reply: &Reply) -> (Response<()>, Bytes) {
    let body = Bytes::copy_from_slice(reply.text().as_bytes());
    let mut response = Response::new(());
    *response.status_mut() = reply.status();
    let headers = response.headers_mut();
    headers.extend(reply.fields.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
    if reply.says_length() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    (response, body)
}

fn trailers_only(reply: &Reply) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = trailers(reply);
    let fields = reply.fields.iter().filter(|(name, _)| *name != header::CONTENT_TYPE);
    response.headers_mut().extend(fields.map(|(name, value)| (Some(name.clone()), value.clone())));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// What ends a gRPC response of which the head was sent already.
pub fn trailers(reply: &Reply) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(reply.grpc_code())));
    if let Ok(message) = HeaderValue::try_from(grpc::message(reply.text().trim_end())) {
        trailers.insert("grpc-message", message);
    }
    trailers
}
