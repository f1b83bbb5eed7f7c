//! How many instructions an utterance takes between the sockets, counted by callgrind.
//!
//! Time differs from run to run, a count hardly does: what makes an utterance dearer by a
//! twentieth is seen, and so is a needless pass over the audio. `benches/utterance.rs` is built
//! as a release is and says 200 and then 1,200 utterances; a thousandth of the difference is one.
//!
//! It builds the whole program once more, so it runs only where it is asked for, by
//! `UTTERD_INSTRUCTIONS=1`, and then needs valgrind. Two runs differ by one instruction in 50,000
//! (hashers are seeded anew each time), so the margin is for what lies between two machines: the
//! numbers are of x86-64, Rust 1.95, glibc 2.36 and valgrind 3.19. glibc copies long blocks byte
//! by byte with `rep movsb` where the processor is good at that, which counts one for each byte;
//! elsewhere a copy counts less, and one too many may stay under the number.

use std::path::PathBuf;
use std::process::Command;

/// Utterances that are said in the two runs.
const FEW: u64 = 200;
const MANY: u64 = 1_200;
/// Instructions of an utterance with 43 KB of audio.
const ONE_SECOND: u64 = 166_240;
/// Instructions that each further KiB of audio takes: 1,024 to copy it, the rest to look at it.
const FURTHER_KIB: u64 = 1_681;
/// How much more either may become before somebody has to look, in percent.
const MARGIN_PERCENT: u64 = 5;

/// Bytes of audio in a second, and as base64.
const SECOND_BYTES: u64 = 32_000;
const SECOND_BASE64_BYTES: u64 = 42_668;

#[test]
#[allow(clippy::print_stderr, clippy::print_stdout, reason = "it is skipped, or counts")]
fn an_utterance_takes_no_more_instructions_than_before() {
    if std::env::var_os("UTTERD_INSTRUCTIONS").is_none() {
        eprintln!("skipped: not asked for by UTTERD_INSTRUCTIONS=1");
        return;
    }
    let program = build();
    let one = per_utterance(&program, SECOND_BYTES);
    let ten = per_utterance(&program, 10 * SECOND_BYTES);
    let further = (ten - one) * 1_024 / (9 * SECOND_BASE64_BYTES);
    println!("{one} instructions with 43 KB of audio, {further} for each further KiB");
    for (what, is, was) in
        [("an utterance of 43 KB", one, ONE_SECOND), ("a further KiB", further, FURTHER_KIB)]
    {
        let most = was + was * MARGIN_PERCENT / 100;
        assert!(is <= most, "{what} takes {is} instructions, and {was} when that was written");
        if is < was - was * MARGIN_PERCENT / 100 {
            println!("{what} takes only {is} instructions: write that down");
        }
    }
}

/// Builds the program that says utterances; what is built already is built once.
fn build() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--locked", "--profile", "instructions", "--bench", "utterance"])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let said = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "the program could not be built:\n{said}");
    let messages = String::from_utf8_lossy(&built.stdout);
    let program = messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == "utterance")
            .then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    program.expect("cargo says where it put the program")
}

fn per_utterance(program: &PathBuf, speech_bytes: u64) -> u64 {
    let count = |utterances| instructions(program, utterances, speech_bytes);
    (count(MANY) - count(FEW)) / (MANY - FEW)
}

fn instructions(program: &PathBuf, utterances: u64, speech_bytes: u64) -> u64 {
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .env("UTTERD_UTTERANCES", utterances.to_string())
        .env("UTTERD_SPEECH_BYTES", speech_bytes.to_string())
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    collected.and_then(|count| count.trim().parse().ok()).expect("callgrind says how many")
}
