//! What frames are held against: plain readings of JSON and base64.

use bytes::Bytes;
use serde_json::Value;

/// The value written plainly: keys once and in order, no space.
pub fn canonical(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}

/// The same with its own `key` spelt with an escape, so that who looks for its letters misses it.
/// What is further in may be passed on as it is written, and is left alone.
pub fn escaped(value: &Value, key: &str) -> Bytes {
    let first = u32::from(key.as_bytes()[0]);
    let fields = value.as_object().expect("a message is an object").iter();
    let fields = fields.map(|(name, value)| match name == key {
        true => format!("\"\\u{first:04x}{}\":{value}", &key[1..]),
        false => format!("{}:{value}", Value::from(name.as_str())),
    });
    Bytes::from(format!("{{{}}}", fields.collect::<Vec<_>>().join(",")))
}

/// Whether a number in it is a float. Those may change in their last digit when written and read.
pub fn has_floats(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_floats),
        Value::Object(fields) => fields.values().any(has_floats),
        _ => false,
    }
}

/// The whole number that is written there.
pub fn whole(value: &Value) -> Option<i128> {
    let by_float = || {
        let float = value.as_f64().filter(|f| f.fract() == 0.0 && f.abs() <= (1_u64 << 53) as f64);
        float.map(|float| float as i128)
    };
    let signed = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
    signed.or_else(by_float)
}

/// The bytes that standard base64 with padding stands for; none if it is anything else.
pub fn base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let body = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for letter in body.bytes() {
        let six = ALPHABET.iter().position(|known| *known == letter)?;
        bits = bits << 6 | six as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    // What is left over of the last letter is to be zero, and there are less than six bits of it.
    (bits == 0 && held < 6).then_some(bytes)
}
