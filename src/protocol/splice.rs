//! Writing a JSON object with one long string moved in as it is.

use serde::Serialize;

/// Appends `head` (which must serialise to an object) with the further field `key`, whose string
/// value `write` appends and which must need no escaping (base64).
pub(super) fn write<T: Serialize>(
    out: &mut Vec<u8>,
    head: &T,
    key: &str,
    value_len: usize,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    if serde_json::to_writer(&mut *out, head).is_err() {
        out.truncate(start);
        return;
    }
    assert_eq!(out.pop(), Some(b'}'), "the head is an object");
    out.reserve(key.len() + value_len + 6);
    if out.len() > start + 1 {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":\"");
    write(out);
    out.extend_from_slice(b"\"}");
}
