//! The targets over what is kept, and over changes to it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use super::bodies::{TARGETS, Target};

/// Changed inputs of one target: a taste of what a fuzzer does, not instead of it.
const CHANGED: u64 = 300;
/// How long one input may take: this runs unoptimised, beside other tests.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest changed input, in bytes: this runs unoptimised.
const CHANGED_BYTES_MAX: usize = 4_096;

thread_local! {
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// A panic in a task is caught by the runtime: it is counted where it happens.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
}

pub fn folder(kind: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind).join(target)
}

/// The files of a folder in order, without what a fuzzer found here and nobody kept.
pub fn kept(kind: &str, target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let found_by_fuzzer = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let entries = std::fs::read_dir(folder(kind, target)).into_iter().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| !found_by_fuzzer(path));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

fn hold((name, run): Target, what: &str, input: &[u8]) {
    count_panics();
    let (done, outcome) = std::sync::mpsc::sync_channel(1);
    let taken = input.to_vec();
    std::thread::spawn(move || {
        let ran = catch_unwind(AssertUnwindSafe(|| run(&taken))).is_ok();
        done.send(ran && PANICS.get() == 0)
    });
    let how = match outcome.recv_timeout(PATIENCE) {
        Ok(true) => return,
        Ok(false) => "fails on",
        Err(_) => "does not come to an end with",
    };
    let file = std::env::temp_dir().join(format!("utterd-fuzz-{name}"));
    std::fs::write(&file, input).unwrap();
    panic!("{name} {how} {what}; the input is in {}", file.display());
}

fn replay(name: &str) {
    let target = *TARGETS.iter().find(|(known, _)| *known == name).expect("a target");
    let mut inputs = kept("corpus", name);
    assert!(!inputs.is_empty(), "{name} has no corpus");
    inputs.extend(kept("regressions", name));
    hold(target, "nothing", &[]);
    for (path, input) in &inputs {
        hold(target, &path.display().to_string(), input);
    }
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..changes() {
        let (path, input) = &inputs[rng.usize(..inputs.len())];
        let input = changed(input, &mut rng);
        hold(target, &format!("a change of {}", path.display()), &input);
    }
}

fn changes() -> u64 {
    let asked = std::env::var("UTTERD_FUZZ_CHANGES").ok();
    asked.map_or(CHANGED, |number| number.parse().expect("a number"))
}

fn changed(input: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = input[..input.len().min(CHANGED_BYTES_MAX)].to_vec();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..=bytes.len());
        match rng.u8(..5) {
            0 if at < bytes.len() => bytes[at] = rng.u8(..),
            1 => bytes.insert(at, rng.u8(..)),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            _ => {
                let copied = bytes[at..].iter().take(rng.usize(..32)).copied().collect::<Vec<_>>();
                bytes.splice(at..at, copied);
            }
        }
    }
    bytes
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed_and_has_a_binary() {
            let mut names = [$(stringify!($name)),*];
            names.sort_unstable();
            assert_eq!(names.as_slice(), TARGETS.map(|(name, _)| name));
            let manifest = std::fs::read_to_string(
                Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml"),
            );
            let manifest = manifest.unwrap();
            for name in names {
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not built");
                let kind = |kind: &str| {
                    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(kind);
                    std::fs::read_dir(dir).into_iter().flatten().flatten()
                        .map(|entry| entry.file_name().to_string_lossy().into_owned())
                        .filter(|name| !name.starts_with('.'))
                        .collect::<Vec<_>>()
                };
                for folder in kind("corpus").into_iter().chain(kind("regressions")) {
                    assert!(names.contains(&&*folder), "{folder} is for no target");
                }
            }
        }
    };
}

replays! {
    audio config connection credentials http_upgrade jobs node_frames order outbox pools segmenter
    server session session_frames store_records wav
}
