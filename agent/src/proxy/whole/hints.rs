//! What an endpoint says before its answer (103 Early Hints and its like, RFC 8297), on its way to the client: beside the request that is asked, so
//! that whoever waits for the answer can pass it on meanwhile.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use http::{StatusCode, response};

use crate::decode::http2;

/// Most that wait for a client that takes nothing: what comes then is for nobody, as nobody needs it.
const WAITING_MAX: usize = 16;

/// Interim responses that have come and were not passed on.
#[derive(Clone, Debug, Default)]
pub struct Hints(Rc<RefCell<VecDeque<response::Parts>>>);

impl Hints {
    /// One has come. That the body is wanted, or that protocols are switched, is nothing that its client has asked the endpoint.
    pub fn add(&self, mut parts: response::Parts) {
        let is_hint = !matches!(parts.status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS);
        let mut waiting = self.0.borrow_mut();
        if is_hint && waiting.len() < WAITING_MAX && http2::response(parts.status.as_u16(), &mut parts.headers).is_ok()
        {
            waiting.push_back(parts);
        }
    }

    /// The one that came first.
    pub fn next(&self) -> Option<response::Parts> {
        self.0.borrow_mut().pop_front()
    }
}
