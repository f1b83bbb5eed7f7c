#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| utterd_fuzz::pools::run(input));
