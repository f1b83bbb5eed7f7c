//! Where one WebSocket message ends and the next begins, in bytes that only pass by.
//!
//! The codec does not say whether it holds half a message. Whoever wants to put it away has to
//! know, and the lengths in the frame headers (RFC 6455, section 5.2) are enough for that: no
//! payload is looked at, and nothing is judged, for the codec judges.

/// Follows the frames of one direction.
#[derive(Debug, Default)]
pub(super) struct Frames {
    at: At,
    /// A message of several frames has begun and its last one has not.
    in_pieces: bool,
    /// Frames that have begun, control frames among them.
    begun: u64,
    /// Pings, pongs and close frames among these.
    controls: u64,
}

/// What the next byte is.
#[derive(Debug, Default)]
enum At {
    /// The first of a frame: flags and opcode.
    #[default]
    Start,
    /// The second: whether there is a mask, and a length or how long the length is.
    Length,
    /// One of `left` bytes of a length, the higher ones of which are known.
    LongLength { left: u8, known: u64, masked: bool },
    /// The first of so many bytes, at least one, of mask and payload.
    Payload(u64),
}

impl At {
    fn payload(bytes: u64, masked: bool) -> Self {
        let mask = if masked { 4 } else { 0 };
        match bytes.saturating_add(mask) {
            0 => Self::Start,
            left => Self::Payload(left),
        }
    }
}

impl Frames {
    /// Takes note of the bytes that come next.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((&first, rest)) = bytes.split_first() {
            self.at = match self.at {
                At::Payload(left) => {
                    let passed = usize::try_from(left).map_or(bytes.len(), |l| l.min(bytes.len()));
                    bytes = &bytes[passed..];
                    self.at = At::payload(left - passed as u64, false);
                    continue;
                }
                At::Start => {
                    let is_control = first & 0x08 != 0;
                    self.begun += 1;
                    self.controls += u64::from(is_control);
                    if !is_control {
                        self.in_pieces = first & 0x80 == 0;
                    }
                    At::Length
                }
                At::Length => {
                    let masked = first & 0x80 != 0;
                    match first & 0x7f {
                        126 => At::LongLength { left: 2, known: 0, masked },
                        127 => At::LongLength { left: 8, known: 0, masked },
                        short => At::payload(short.into(), masked),
                    }
                }
                At::LongLength { left, known, masked } => {
                    let known = known << 8 | u64::from(first);
                    match left - 1 {
                        0 => At::payload(known, masked),
                        left => At::LongLength { left, known, masked },
                    }
                }
            };
            bytes = rest;
        }
    }

    /// Frames that have begun, and how many of them are pings, pongs and close frames.
    pub(super) fn count(&self) -> (u64, u64) {
        (self.begun, self.controls)
    }

    /// Whether all that passed is whole messages.
    pub(super) fn between_messages(&self) -> bool {
        matches!(self.at, At::Start) && !self.in_pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

    use super::*;

    /// A frame as the codec writes it.
    fn written(mut frame: Frame, masked: bool) -> Vec<u8> {
        if masked {
            frame.header_mut().mask = Some([1, 2, 3, 4]);
        }
        let mut wire = Vec::new();
        frame.format(&mut wire).expect("a vector takes everything");
        wire
    }

    proptest! {
        /// In whatever pieces the bytes come, and with pings between the frames of a message.
        #[test]
        fn messages_end_where_the_codec_ends_them(
            messages in prop::collection::vec(
                (prop::collection::vec((0_usize..140_000, any::<bool>()), 1..4), any::<bool>()),
                1..4,
            ),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut wire = Vec::new();
            let mut ends = vec![0];
            for (frames, masked) in messages {
                for (at, &(bytes, ping)) in frames.iter().enumerate() {
                    let data = if at == 0 { Data::Binary } else { Data::Continue };
                    let is_last = at + 1 == frames.len();
                    let frame = Frame::message(vec![0x7e; bytes], OpCode::Data(data), is_last);
                    wire.extend(written(frame, masked));
                    if ping && !is_last {
                        wire.extend(written(Frame::ping(vec![0x7e; 5]), masked));
                    }
                }
                ends.push(wire.len());
            }
            let mut stops: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            stops.extend(&ends);
            stops.sort_unstable();
            let (mut frames, mut from) = (Frames::default(), 0);
            for to in stops {
                frames.pass(&wire[from..to]);
                prop_assert_eq!(frames.between_messages(), ends.contains(&to), "at byte {}", to);
                from = to;
            }
        }
    }

    #[test]
    fn frames_are_counted_and_control_frames_apart() {
        let mut frames = Frames::default();
        frames.pass(&written(Frame::message(vec![1], OpCode::Data(Data::Text), false), true));
        frames.pass(&written(Frame::ping(vec![2; 5]), true));
        frames.pass(&written(Frame::message(vec![], OpCode::Data(Data::Continue), true), true));
        assert_eq!(frames.count(), (3, 1));
    }

    #[test]
    fn a_length_of_any_size_is_only_waited_for() {
        let mut frames = Frames::default();
        frames.pass(&[0x82, 0xff]);
        frames.pass(&[0xff; 8]);
        frames.pass(&[0; 1000]);
        assert!(!frames.between_messages());
    }
}
