//! How long a request's body may be: by its declared length at once, otherwise as it comes.

use super::{Duty, Filter, Given, Local, Verdict};
use crate::{cluster::Outcome, route::Request};

/// What servers of gRPC say of a message that is too long: RESOURCE_EXHAUSTED.
const GRPC_STATUS: u8 = 8;

/// See the module.
#[derive(Debug)]
pub(super) struct BodyLimit {
    pub(super) bytes_max: u64,
}

impl Filter for BodyLimit {
    fn judge(&self, request: &Request<'_>, _: &Given<'_>) -> Verdict {
        let declared =
            request.header("content-length").and_then(|length| std::str::from_utf8(length).ok()?.parse().ok());
        if declared.is_some_and(|length: u64| length > self.bytes_max) {
            return Verdict::answer(Outcome::Refused, too_long(self.bytes_max));
        }
        Verdict { duty: Some(Duty::BodyMax(self.bytes_max)), ..Verdict::pass(Outcome::Passed) }
    }
}

/// What is said of a body that is longer.
pub fn too_long(bytes_max: u64) -> Local {
    let local = Local::because(413, &format!("the request's body is longer than {bytes_max} bytes"));
    Local { grpc: Some(GRPC_STATUS), ..local }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filter::tests::judged;

    #[test]
    fn a_declared_length_decides_at_once_and_what_has_none_is_measured() {
        for (field, refused) in [
            ("Content-Length: 10", false),
            ("Content-Length: 11", true),
            ("Content-Length: 18446744073709551615", true),
            ("Transfer-Encoding: chunked", false),
        ] {
            let verdict =
                judged(&BodyLimit { bytes_max: 10 }, &format!("POST / HTTP/1.1\r\n{field}"), 0, Duration::ZERO);
            assert_eq!(matches!(&verdict.end, Some(local) if local.status == 413), refused, "{field}");
            assert_eq!(verdict.duty, (!refused).then_some(Duty::BodyMax(10)), "{field}");
        }
    }
}
