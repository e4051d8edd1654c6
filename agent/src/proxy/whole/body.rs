//! The body of an answer: an endpoint's, as it comes, or one of our own.

use std::{
    fmt,
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use http::HeaderMap;

use super::{http1::FromHttp1, http2::FromHttp2};

/// A body.
pub enum Body {
    /// All of it, and what stands behind it.
    Ready(Bytes, HeaderMap),
    /// What was taken of another, and that.
    Begun(Result<Bytes, Broken>, Box<Self>),
    /// As it comes from an endpoint of HTTP/1.
    Http1(Box<FromHttp1>),
    /// As it comes from one of HTTP/2.
    Http2(Box<FromHttp2>),
    /// What something makes of another.
    Through(Box<dyn Through>),
}

/// What comes next of a body.
pub type Next<'b> = Pin<Box<dyn Future<Output = Result<Piece, Broken>> + 'b>>;

/// What makes a body of another, piece by piece.
pub trait Through {
    /// As [`Body::is_empty`].
    fn is_empty(&self) -> bool;

    /// As [`Body::next`].
    fn next(&mut self) -> Next<'_>;
}

/// What comes of a body.
#[derive(Debug)]
pub enum Piece {
    /// Not empty.
    Data(Bytes),
    /// That was all; with what stands behind it.
    End(HeaderMap),
}

/// Why a body ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It broke off, or broke a rule.
    Off,
    /// It did not go on in time.
    Late,
}

impl Body {
    /// Whether there is nothing in it, and nothing behind it.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Ready(bytes, trailers) => bytes.is_empty() && trailers.is_empty(),
            Self::Begun(..) => false,
            Self::Http1(body) => body.is_empty(),
            Self::Http2(body) => body.is_empty(),
            Self::Through(body) => body.is_empty(),
        }
    }

    /// What comes next. May be given up while it is waited for, and asked for again; nothing is to be asked for behind the end.
    ///
    /// # Errors
    ///
    /// When it ends before its end.
    pub async fn next(&mut self) -> Result<Piece, Broken> {
        match self {
            Self::Ready(bytes, trailers) if bytes.is_empty() => Ok(Piece::End(mem::take(trailers))),
            Self::Ready(bytes, _) => Ok(Piece::Data(mem::take(bytes))),
            Self::Begun(..) => {
                let Self::Begun(begun, rest) = mem::replace(self, Self::Ready(Bytes::new(), HeaderMap::new())) else {
                    return Err(Broken::Off);
                };
                *self = *rest;
                begun.map(Piece::Data)
            }
            Self::Http1(body) => body.next().await,
            Self::Http2(body) => body.next().await,
            Self::Through(body) => body.next().await,
        }
    }

    /// The same, of which the end is known if it is there already and nothing stands before it.
    pub async fn settled(mut self) -> Self {
        match self.next_now().await {
            None => self,
            Some(Ok(Piece::End(trailers))) => Self::Ready(Bytes::new(), trailers),
            Some(Ok(Piece::Data(data))) => Self::Begun(Ok(data), Box::new(self)),
            Some(Err(broken)) => Self::Begun(Err(broken), Box::new(self)),
        }
    }

    /// What stands behind an empty body, if that is known.
    pub fn ready_trailers(&self) -> Option<&HeaderMap> {
        match self {
            Self::Ready(bytes, trailers) if bytes.is_empty() => Some(trailers),
            _ => None,
        }
    }

    /// What comes next, if that is there already.
    pub async fn next_now(&mut self) -> Option<Result<Piece, Broken>> {
        let mut next = pin!(self.next());
        poll_fn(|context| match next.as_mut().poll(context) {
            Poll::Ready(piece) => Poll::Ready(Some(piece)),
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }

    /// How long it is, if that is known and it has no end of its own.
    pub fn ready_bytes(&self) -> Option<usize> {
        match self {
            Self::Ready(bytes, trailers) => trailers.is_empty().then_some(bytes.len()),
            Self::Begun(..) | Self::Http1(_) | Self::Http2(_) | Self::Through(_) => None,
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(..) => "Ready",
            Self::Begun(..) => "Begun",
            Self::Http1(_) => "Http1",
            Self::Http2(_) => "Http2",
            Self::Through(_) => "Through",
        })
    }
}
