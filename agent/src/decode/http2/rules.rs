//! Rules of frames that the library which reads them keeps otherwise than RFC 9113 says: it tells a peer of every broken one that it is a
//! PROTOCOL_ERROR, and overlooks some.

/// The code with which a connection ends on which a rule was broken (RFC 9113 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// PROTOCOL_ERROR.
    #[error("a frame that no client may send here")]
    Protocol = 0x1,
    /// FLOW_CONTROL_ERROR.
    #[error("a window that is too large")]
    FlowControl = 0x3,
    /// STREAM_CLOSED.
    #[error("a frame on a stream that its sender has ended")]
    StreamClosed = 0x5,
    /// FRAME_SIZE_ERROR.
    #[error("a frame of a length that its kind cannot have")]
    FrameSize = 0x6,
}

/// The head of a frame (RFC 9113 section 4.1).
#[derive(Clone, Copy, Debug)]
pub struct FrameHead {
    /// Bytes behind it.
    pub length: usize,
    /// What it is.
    pub kind: u8,
    flags: u8,
    /// Whose it is; 0: the connection's.
    pub stream: u32,
}

impl FrameHead {
    /// Bytes of a head.
    pub const BYTES: usize = 9;

    /// As it was received.
    pub fn of(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = bytes;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        // The highest bit is to be ignored.
        Self { length, kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff }
    }

    /// Whether it says what its sender wants, and does not acknowledge what the other side does.
    pub fn is_settings(self) -> bool {
        self.kind == kind::SETTINGS && self.flags & FLAG == 0
    }
}

/// Kinds of frames (RFC 9113 section 6).
pub mod kind {
    pub const DATA: u8 = 0x0;
    pub const HEADERS: u8 = 0x1;
    pub const PRIORITY: u8 = 0x2;
    pub const RST_STREAM: u8 = 0x3;
    pub const SETTINGS: u8 = 0x4;
    pub const PUSH_PROMISE: u8 = 0x5;
    pub const PING: u8 = 0x6;
    pub const GOAWAY: u8 = 0x7;
    pub const WINDOW_UPDATE: u8 = 0x8;
    pub const CONTINUATION: u8 = 0x9;
}

/// END_STREAM of DATA and HEADERS, and ACK of SETTINGS.
const FLAG: u8 = 0x1;
/// Of HEADERS and CONTINUATION: the head ends with it.
const END_HEADERS: u8 = 0x4;
/// Of how many streams it is remembered that their sender has ended them. A power of two.
const ENDED_MAX: usize = 64;
const SETTING_BYTES: usize = 6;
const INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

/// What one client has sent, as far as its next frames are judged by it.
#[derive(Debug)]
pub struct Rules {
    /// Streams that the client has ended or taken back, each where its number says.
    ended: [u32; ENDED_MAX],
    /// The stream of a head that goes on with the next frame.
    unfinished: Option<u32>,
    /// Whether the payload under way is settings.
    are_settings: bool,
    setting: [u8; SETTING_BYTES],
    setting_bytes: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            ended: [0; ENDED_MAX],
            unfinished: None,
            are_settings: false,
            setting: [0; SETTING_BYTES],
            setting_bytes: 0,
        }
    }
}

impl Rules {
    /// Judges a frame by its head.
    pub fn frame(&mut self, head: FrameHead) -> Result<(), Broken> {
        let FrameHead { length, kind, flags, stream } = head;
        (self.are_settings, self.setting_bytes) = (kind == kind::SETTINGS, 0);
        let is_acknowledged = kind == kind::SETTINGS && flags & FLAG != 0;
        let fits = match kind {
            kind::PRIORITY => length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => length == 4,
            kind::SETTINGS if is_acknowledged => length == 0,
            kind::SETTINGS => length.is_multiple_of(SETTING_BYTES),
            kind::PING => length == 8,
            kind::GOAWAY => length >= 8,
            kind::PUSH_PROMISE => return Err(Broken::Protocol),
            _ => true,
        };
        if !fits {
            return Err(Broken::FrameSize);
        }
        // Section 4.3: nothing comes between the frames of one head.
        if self.unfinished.is_some_and(|unfinished| (kind, stream) != (kind::CONTINUATION, unfinished)) {
            return Err(Broken::Protocol);
        }
        if matches!(kind, kind::HEADERS | kind::CONTINUATION) {
            self.unfinished = (flags & END_HEADERS == 0).then_some(stream);
        }
        let place = (stream >> 1) as usize % ENDED_MAX;
        let is_message = matches!(kind, kind::DATA | kind::HEADERS);
        if is_message && stream != 0 && self.ended[place] == stream {
            return Err(Broken::StreamClosed);
        }
        if kind == kind::RST_STREAM || (is_message && flags & FLAG != 0) {
            self.ended[place] = stream;
        }
        Ok(())
    }

    /// Whether a head goes on with the next frame.
    pub fn is_within_head(&self) -> bool {
        self.unfinished.is_some()
    }

    /// Judges what has come of the payload behind the last head.
    pub fn payload(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        if !self.are_settings {
            return Ok(());
        }
        for byte in bytes {
            self.setting[self.setting_bytes] = *byte;
            self.setting_bytes = (self.setting_bytes + 1) % SETTING_BYTES;
            // Section 6.5.2: no window is larger than 2^31 - 1.
            if self.setting_bytes == 0 && self.setting.starts_with(&INITIAL_WINDOW_SIZE) && self.setting[2] & 0x80 != 0
            {
                return Err(Broken::FlowControl);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(length: usize, kind: u8, flags: u8, stream: u32) -> FrameHead {
        FrameHead { length, kind, flags, stream }
    }

    #[test]
    fn frames_have_the_length_of_their_kind() {
        let judge = |length, kind, flags| Rules::default().frame(head(length, kind, flags, 0));
        for (kind, right, wrong) in [
            (kind::PRIORITY, 5, 4),
            (kind::RST_STREAM, 4, 5),
            (kind::SETTINGS, 12, 7),
            (kind::PING, 8, 6),
            (kind::GOAWAY, 20, 7),
            (kind::WINDOW_UPDATE, 4, 3),
        ] {
            assert_eq!(judge(right, kind, 0), Ok(()), "{kind}");
            assert_eq!(judge(wrong, kind, 0), Err(Broken::FrameSize), "{kind}");
        }
        assert_eq!(judge(6, kind::SETTINGS, FLAG), Err(Broken::FrameSize));
        assert_eq!(judge(4, kind::PUSH_PROMISE, 0), Err(Broken::Protocol));
        assert_eq!(judge(77, 0xff, 0), Ok(()), "kinds that nobody knows are nobody's");
    }

    #[test]
    fn nothing_follows_the_end_of_a_stream_but_what_concerns_its_other_half() {
        for end in [
            head(0, kind::HEADERS, FLAG | END_HEADERS, 1),
            head(9, kind::DATA, FLAG, 1),
            head(4, kind::RST_STREAM, 0, 1),
        ] {
            let mut rules = Rules::default();
            rules.frame(head(9, kind::HEADERS, END_HEADERS, 1)).unwrap();
            rules.frame(head(9, kind::DATA, 0, 1)).unwrap();
            rules.frame(end).unwrap();
            for after in [head(4, kind::WINDOW_UPDATE, 0, 1), head(4, kind::RST_STREAM, 0, 1)] {
                rules.frame(after).unwrap();
            }
            assert_eq!(rules.frame(head(9, kind::DATA, 0, 1)), Err(Broken::StreamClosed));
            assert_eq!(rules.frame(head(9, kind::HEADERS, END_HEADERS, 1)), Err(Broken::StreamClosed));
            assert_eq!(rules.frame(head(9, kind::HEADERS, END_HEADERS, 3)), Ok(()));
        }
        let mut rules = Rules::default();
        (0..10_000).for_each(|number| rules.frame(head(0, kind::HEADERS, FLAG | END_HEADERS, 2 * number + 1)).unwrap());
    }

    #[test]
    fn nothing_comes_between_the_frames_of_a_head() {
        let begun = || {
            let mut rules = Rules::default();
            rules.frame(head(9, kind::HEADERS, FLAG, 1)).unwrap();
            rules.frame(head(9, kind::CONTINUATION, 0, 1)).unwrap();
            rules
        };
        for between in [head(9, kind::DATA, 0, 1), head(8, kind::PING, 0, 0), head(9, kind::CONTINUATION, 0, 3)] {
            assert_eq!(begun().frame(between), Err(Broken::Protocol), "{between:?}");
        }
        let mut whole = begun();
        whole.frame(head(9, kind::CONTINUATION, END_HEADERS, 1)).unwrap();
        whole.frame(head(8, kind::PING, 0, 0)).unwrap();
    }

    #[test]
    fn a_window_is_judged_wherever_its_setting_is_torn() {
        let settings = [0, 3, 0xff, 0xff, 0xff, 0xff, 0, 4, 0x7f, 0xff, 0xff, 0xff, 0, 4, 0x80, 0, 0, 0];
        for cut in 0..settings.len() {
            let mut rules = Rules::default();
            rules.frame(head(settings.len(), kind::SETTINGS, 0, 0)).unwrap();
            assert_eq!(rules.payload(&settings[..cut]), Ok(()), "cut at {cut}");
            assert_eq!(rules.payload(&settings[cut..]), Err(Broken::FlowControl), "cut at {cut}");
        }
        let mut rules = Rules::default();
        rules.frame(head(settings.len(), kind::DATA, 0, 1)).unwrap();
        assert_eq!(rules.payload(&settings), Ok(()));
    }
}
