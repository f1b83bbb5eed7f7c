//! Finds one long string in a JSON object without parsing it.
//!
//! A frame with speech in it is a few hundred bytes of fields around tens of kilobytes of base64.
//! The scanner skips from quote to quote, so the base64 is passed over at memory speed and stays
//! where it is; everything around it goes to the ordinary parser. Whatever looks unusual gives
//! `None`, and the caller parses the whole frame.

use std::ops::Range;

/// Byte range of the value of top-level `key`, without its quotes, if it is there exactly once,
/// is a string, and has no escapes. The text around the range is not checked: parse it.
pub(super) fn top_level_string(json: &[u8], key: &str) -> Option<Range<usize>> {
    let mut found = None;
    let mut depth = 0_usize;
    let mut at = 0;
    while at < json.len() {
        match json[at] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b'"' => {
                let (end, _) = string_end(json, at + 1)?;
                let after = skip_space(json, end + 1);
                let is_key = depth == 1 && json.get(after) == Some(&b':');
                if is_key && &json[at + 1..end] == key.as_bytes() {
                    let value = skip_space(json, after + 1);
                    if found.is_some() || json.get(value) != Some(&b'"') {
                        return None;
                    }
                    let (value_end, escaped) = string_end(json, value + 1)?;
                    if escaped {
                        return None;
                    }
                    found = Some(value + 1..value_end);
                    at = value_end;
                } else {
                    at = end;
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Index of the quote that ends the string begun before `from`, and whether an escape came before
/// it.
fn string_end(json: &[u8], from: usize) -> Option<(usize, bool)> {
    let mut at = from;
    let mut escaped = false;
    loop {
        let step = memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        at += step;
        if json[at] == b'"' {
            return Some((at, escaped));
        }
        escaped = true;
        at += 2;
    }
}

fn skip_space(json: &[u8], from: usize) -> usize {
    let space = json.get(from..).unwrap_or_default().iter().take_while(|b| b.is_ascii_whitespace());
    from + space.count()
}

/// The frame with the bytes of `hole` left out, for the ordinary parser.
pub(super) fn without(json: &[u8], hole: &Range<usize>) -> Vec<u8> {
    let mut rest = Vec::with_capacity(json.len() - hole.len());
    rest.extend_from_slice(&json[..hole.start]);
    rest.extend_from_slice(&json[hole.end..]);
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(json: &str, key: &str) -> Option<String> {
        top_level_string(json.as_bytes(), key).map(|r| json[r].to_owned())
    }

    #[test]
    fn finds_the_top_level_value_only() {
        assert_eq!(value(r#"{"a":"x","audio":"QUJD"}"#, "audio").as_deref(), Some("QUJD"));
        assert_eq!(
            value(r#"{"a":{"audio":"no"},"audio" : "yes"}"#, "audio").as_deref(),
            Some("yes")
        );
        assert_eq!(value(r#"{"a":"\"audio\":\"no\"","b":1}"#, "audio"), None);
        assert_eq!(value(r#"{"x":"audio","audio":"y"}"#, "audio").as_deref(), Some("y"));
    }

    #[test]
    fn unusual_frames_are_left_to_the_parser() {
        for json in [
            r#"{"audio":"a","audio":"b"}"#,
            r#"{"audio":null}"#,
            r#"{"audio":"a\u0041"}"#,
            r#"{"audio":"#,
            r#"{"audio":"abc"#,
            r#"}{"audio":"abc"}"#,
            "",
        ] {
            assert_eq!(value(json, "audio"), None, "{json}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_parser(text in "[A-Za-z0-9+/=]{0,64}", other in ".{0,24}", first: bool) {
            let mut map = [("audio", text.clone()), ("other", other)];
            if !first { map.reverse(); }
            let quoted = |v: &String| serde_json::to_string(v).unwrap();
            let fields: Vec<String> =
                map.iter().map(|(k, v)| format!("{k:?}: {}", quoted(v))).collect();
            let json = format!("{{{}}}", fields.join(" , "));
            prop_assert_eq!(value(&json, "audio"), Some(text));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            if let Some(range) = top_level_string(&bytes, "audio") {
                prop_assert!(range.end <= bytes.len());
                without(&bytes, &range);
            }
        }
    }
}
