//! A failure that was ordered, in whatever protocol its request came: what comes of it is what comes of an endpoint's.

use std::rc::Rc;

use super::{
    Cluster, Hop,
    guard::{Guard, Leave, StandingIn, seems},
    http::Reply,
};
use crate::filter::End;

/// What becomes of a request that has suffered one.
pub(super) enum Suffered {
    /// Another service is asked.
    Asks(Rc<Cluster>, StandingIn),
    /// It is answered.
    Answered(Reply),
    /// It is reset.
    Reset,
}

impl Hop {
    /// Tells breakers of a failure that was ordered, and who stands in for it, if somebody does.
    pub(super) fn suffered(
        &self,
        end: End,
        is_grpc: bool,
        guard: Option<&Rc<Guard>>,
        leave: Option<&Leave>,
    ) -> Suffered {
        let (counter, why) = seems(&end, is_grpc);
        if let Some(leave) = leave {
            leave.told(counter, None);
        }
        if let Some((guard, why)) = guard.zip(why) {
            if let Some((cluster, standing_in)) = self.stand_in(guard, why) {
                return Suffered::Asks(cluster, standing_in);
            }
            if guard.replaces(why) {
                return Suffered::Answered(Reply::failed(counter));
            }
        }
        match end {
            End::Answer(local) => Suffered::Answered(Reply::filtered(local)),
            End::Reset => Suffered::Reset,
        }
    }
}
