//! Memory that a parser asks for, held against the length of what it parses.

use allocation_counter::measure;

/// Bytes that any input may cost.
const BASE_BYTES: u64 = 64 * 1024;

/// Runs `parse` on an input of so many bytes. Panics if at any moment it held more than four times
/// as many bytes, and 64 KiB.
pub fn bounded<R>(input_bytes: usize, parse: impl FnOnce() -> R) -> R {
    bounded_by(4, BASE_BYTES, input_bytes, parse)
}

/// The same with another bound, for what by its nature is longer than it was written.
pub fn bounded_by<R>(
    times: u64,
    base_bytes: u64,
    input_bytes: usize,
    parse: impl FnOnce() -> R,
) -> R {
    let mut parsed = None;
    let held = measure(|| parsed = Some(parse())).bytes_max;
    let most = times * input_bytes as u64 + base_bytes;
    assert!(held <= most, "{held} bytes held for {input_bytes} bytes of input, at most {most}");
    parsed.expect("it ran")
}
