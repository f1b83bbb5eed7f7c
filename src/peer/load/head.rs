//! Fields near the beginning of a frame, found without reading the frame.
//!
//! A generator that parses 43 KB of JSON for every job measures itself. Both schedulers and relays
//! put what a peer must know before the audio. It refuses to know JSON: escapes are not undone, and
//! a name inside a text is found like any other.

use memchr::memmem;

/// How far into a frame is looked, in bytes; the audio comes behind it.
const HEAD_BYTES: usize = 2_048;

/// What follows `pattern` in the head of the frame.
fn behind<'a>(frame: &'a str, pattern: &str) -> Option<&'a str> {
    let bytes = frame.as_bytes();
    let head = &bytes[..bytes.len().min(HEAD_BYTES)];
    frame.get(memmem::find(head, pattern.as_bytes())? + pattern.len()..)
}

/// The text behind `pattern`, which is a field's name with its colon and opening quote.
pub(super) fn text<'a>(frame: &'a str, pattern: &str) -> Option<&'a str> {
    let rest = behind(frame, pattern)?;
    rest.get(..memchr::memchr(b'"', rest.as_bytes())?)
}

/// The whole number behind `pattern`, which is a field's name with its colon.
pub(super) fn number(frame: &str, pattern: &str) -> Option<u64> {
    digits(behind(frame, pattern)?)
}

/// The same for a field that may be the last of a long frame.
pub(super) fn last_number(frame: &str, pattern: &str) -> Option<u64> {
    let at = memmem::rfind(frame.as_bytes(), pattern.as_bytes())?;
    digits(frame.get(at + pattern.len()..)?)
}

fn digits(rest: &str) -> Option<u64> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// What kind of message it is.
pub(super) fn kind(frame: &str) -> Option<&str> {
    text(frame, "\"type\":\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_and_what_is_not_there_is_nothing() {
        let frame = r#"{"type":"job_assign","job_id":"j-1","utterance_index":42,"x":"é","seq":7}"#;
        assert_eq!(kind(frame), Some("job_assign"));
        assert_eq!(text(frame, "\"job_id\":\""), Some("j-1"));
        assert_eq!(number(frame, "\"utterance_index\":"), Some(42));
        assert_eq!(last_number(frame, "\"seq\":"), Some(7));
        assert_eq!(number(frame, "\"job_id\":"), None);
        assert_eq!(text(frame, "\"nothing\":\""), None);
        for cut in (0..frame.len()).filter(|cut| frame.is_char_boundary(*cut)) {
            kind(&frame[..cut]);
            number(&frame[..cut], "\"utterance_index\":");
            last_number(&frame[..cut], "\"seq\":");
        }
        assert_eq!(text(r#"{"type":"open"#, "\"type\":\""), None);
    }
}
