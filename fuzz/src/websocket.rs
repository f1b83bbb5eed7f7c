//! WebSocket frames by hand: written as a client writes them, read as RFC 6455 has them.

/// One message of a client in one frame.
pub fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    raw_frame(0x80 | opcode, true, payload)
}

/// A frame with this first byte, masked or not.
pub fn raw_frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let mask_bit = if masked { 0x80 } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        len @ ..=125 => frame.push(mask_bit | len as u8),
        len @ 126..=0xFFFF => {
            frame.push(mask_bit | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(mask_bit | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    if masked {
        frame.extend_from_slice(&mask);
    }
    let masking = |(at, byte): (usize, &u8)| if masked { byte ^ mask[at % 4] } else { *byte };
    frame.extend(payload.iter().enumerate().map(masking));
    frame
}

/// One frame.
#[derive(Debug, PartialEq)]
pub struct Frame {
    pub first: u8,
    pub masked: bool,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn opcode(&self) -> u8 {
        self.first & 0x0F
    }
}

/// The first frame of these bytes and its length, if all of it is there. None as well if the frame
/// says that it is longer than `most`.
pub fn first_frame(bytes: &[u8], most: u64) -> Option<(Frame, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let masked = second & 0x80 != 0;
    let (len, mut at) = match second & 0x7F {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        len => (u64::from(len), 2),
    };
    if len > most {
        return None;
    }
    let mut mask = [0; 4];
    if masked {
        mask = bytes.get(at..at + 4)?.try_into().ok()?;
        at += 4;
    }
    let end = at + len as usize;
    let payload = bytes.get(at..end)?;
    let payload = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
    Some((Frame { first, masked, payload }, end))
}
