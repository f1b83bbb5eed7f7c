//! Values of the store: `store::codec`, for every row there is.
//!
//! The first byte says which row. A value is tried as it is, and once more as the payload of a
//! value whose header and checksum are right, which is all that keeps chance bytes from the codec
//! below.

use std::fmt::Debug;

use utterd::store::codec::{Record, decode, encode};
use utterd::store::{
    CodecError, DeadLetterRow, IdemRow, JobRow, KeyRow, MetaRow, NodeRow, OutboxRow, PoolConfigRow,
    RoomRow, SessionRow, TerminalRow,
};

use super::bounded::{bounded, bounded_by};

type Try = fn(&[u8]);

/// The rows, in the order of the first byte.
pub const ROWS: [Try; 11] = [
    one::<MetaRow>,
    one::<SessionRow>,
    one::<JobRow>,
    one::<TerminalRow>,
    one::<OutboxRow>,
    one::<IdemRow>,
    one::<NodeRow>,
    one::<PoolConfigRow>,
    one::<RoomRow>,
    one::<KeyRow>,
    one::<DeadLetterRow>,
];

pub fn run(input: &[u8]) {
    let Some((row, value)) = input.split_first() else { return };
    ROWS[usize::from(*row) % ROWS.len()](value);
}

fn one<T: Record + Debug + PartialEq>(value: &[u8]) {
    let decoded = bounded(value.len(), || decode::<T>(value));
    match decoded {
        Ok(row) => same_again(&row),
        Err(fault) => assert_eq!(fault == CodecError::Checksum, is_framed_wrong(value), "{fault}"),
    }
    let sealed = sealed(T::KIND, T::VERSION, value);
    // Behind a right checksum a length is believed, within the tiers of the codec: up to 64 times
    // the 64 KiB below which a payload is one of the middle.
    let base = if value.len() <= 1_024 { 128 << 10 } else { 8 << 20 };
    let decoded = bounded_by(64, base, sealed.len(), || decode::<T>(&sealed));
    match decoded {
        Ok(row) => same_again(&row),
        Err(fault) => assert!(
            matches!(fault, CodecError::Payload(_) | CodecError::Trailing(_)),
            "{fault} of a value whose frame is right"
        ),
    }
}

/// A row that was read is read again from what it is written as.
fn same_again<T: Record + Debug + PartialEq>(row: &T) {
    let written = encode(row);
    assert_eq!(decode::<T>(&written).as_ref(), Ok(row));
    let mut torn = written;
    torn.pop();
    assert!(decode::<T>(&torn).is_err(), "a value that lost its last byte was believed");
}

/// Whether it is long enough for a frame, and its checksum is not that of what is before it.
fn is_framed_wrong(value: &[u8]) -> bool {
    let Some((body, crc)) = value.split_last_chunk::<4>() else { return false };
    body.len() >= 6 && crc32c::crc32c(body).to_le_bytes() != *crc
}

/// A value as the store writes it.
fn sealed(kind: u8, version: u8, payload: &[u8]) -> Vec<u8> {
    let mut value = vec![version, kind];
    value.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    value.extend_from_slice(payload);
    let crc = crc32c::crc32c(&value);
    value.extend_from_slice(&crc.to_le_bytes());
    value
}
