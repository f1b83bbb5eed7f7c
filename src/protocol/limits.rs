//! Every bound of the wire, in one place, related to each other by assertions at build time.
//!
//! What an operator may want to change is configuration and lives there; these are the bounds of
//! the words themselves.

/// Longest id, trace id, platform or version text a peer may choose, in bytes.
pub const ID_BYTES_MAX: usize = 128;
/// Longest free text kept from a peer outside of results (reasons, messages), in bytes.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;
/// Longest `text_asr` or `text_translated`, in bytes; more is refused with the result.
pub const RESULT_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Languages read from one list of a node.
pub const LANGUAGES_MAX: usize = 128;
/// Directed pairs one node may serve.
pub const PAIRS_PER_NODE_MAX: usize = LANGUAGES_MAX * LANGUAGES_MAX;
/// Services read from one report of a node.
pub const SERVICES_MAX: usize = 256;
/// Attempts read from each list of a node's hello.
pub const HELLO_ENTRIES_MAX: usize = 1_024;
/// Candidate languages of a session whose source is `auto`.
pub const AUTO_LANGS_MAX: usize = 16;
/// Longest Opus packet taken for one, in bytes: RFC 6716 allows 1,275 a frame and 48 frames of
/// 2.5 ms a packet, and senders here put one 20 ms frame in a packet.
pub const OPUS_PACKET_BYTES_MAX: usize = 1_275 * 6;
/// Length of one Opus packet of these senders, in milliseconds.
pub const OPUS_PACKET_MS: u32 = 20;
/// Sample rate of chunk streams, in hertz.
pub const SAMPLE_RATE: u32 = 16_000;
/// Highest sample rate an `utterance` may name, in hertz.
pub const SAMPLE_RATE_MAX: u32 = 192_000;
/// Depth of JSON nesting that the parser follows before it refuses.
pub const JSON_DEPTH_MAX: usize = 128;
/// Bytes of a message outside its audio: what is parsed field by field.
pub const HEAD_BYTES_MAX: usize = 256 * 1024;

const _: () = assert!(TEXT_BYTES_MAX < RESULT_TEXT_BYTES_MAX);
const _: () = assert!(RESULT_TEXT_BYTES_MAX * 2 < HEAD_BYTES_MAX);
// An attempt takes less than 96 bytes as JSON; a quarter is left for the rest of a registration.
const _: () = assert!(2 * HELLO_ENTRIES_MAX * 96 <= HEAD_BYTES_MAX / 4 * 3);
const _: () = assert!(OPUS_PACKET_BYTES_MAX <= u16::MAX as usize);

/// Longest time after which a peer is asked to come back when the server goes down, in
/// milliseconds.
pub const RECONNECT_AFTER_MS_MAX: u64 = 5_000;

/// When one peer may come back, in milliseconds: by chance, for all of them at once would be a
/// flood.
pub fn reconnect_after_ms() -> u64 {
    fastrand::u64(..=RECONNECT_AFTER_MS_MAX)
}

/// The longest prefix of `text` within `bytes_max` bytes that ends on a character.
pub fn clip(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let mut end = bytes_max;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    #[test]
    fn clipping_never_splits_a_character() {
        for max in 0..12 {
            let clipped = super::clip("a\u{4f60}\u{597d}\u{1f600}b", max);
            assert!(clipped.len() <= max);
        }
        assert_eq!(super::clip("\u{4f60}\u{597d}", 5), "\u{4f60}");
    }
}
