//! The configuration: a TOML text, and behind a zero byte lines of `NAME=value` as the environment
//! has them.

use utterd::config::Config;

use super::bounded::bounded_by;

pub fn run(input: &[u8]) {
    let (text, env) = match input.iter().position(|byte| *byte == 0) {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[][..]),
    };
    let text = String::from_utf8_lossy(text);
    let env = String::from_utf8_lossy(env);
    let pairs = || {
        let named = env.lines().filter_map(|line| line.split_once('='));
        named.map(|(name, value)| (format!("UTTERD_{name}"), value.to_owned()))
    };
    // A tree with the place of every key in it is many times its text, and each fault is a line.
    let read = bounded_by(512, 1 << 20, input.len(), || Config::parse(&text, pairs()));
    match read {
        Ok(config) => {
            assert!(config.check().is_ok(), "taken from a file, and refused from code");
            let again = Config::parse(&text, pairs()).expect("it was taken before");
            assert_eq!(format!("{config:?}"), format!("{again:?}"));
        }
        Err(faults) => {
            assert!(!faults.0.is_empty(), "refused without a fault");
            assert!(!faults.to_string().is_empty());
        }
    }
}
