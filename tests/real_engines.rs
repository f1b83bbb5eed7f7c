//! A human voice through the real binary and real engines: recognised, translated and spoken.
//!
//! Needs the Debian packages `pocketsphinx`, `pocketsphinx-en-us`, `pocketsphinx-testdata`,
//! `apertium`, `apertium-eng-spa` and `espeak-ng`; without them it says so and passes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use utterd::peer::wav;

/// "go forward ten meters", 16 kHz mono, 16 bit, without a header.
const RECORDING: &str = "/usr/share/pocketsphinx/test/data/goforward.raw";
const RECOGNISER: [&str; 5] =
    ["pocketsphinx_continuous", "-infile", "{wav}", "-logfn", "/dev/null"];
const TRANSLATOR: [&str; 3] = ["apertium", "-u", "eng-spa"];
const VOICE: [&str; 6] = ["espeak-ng", "-v", "{tgt}", "-w", "{wav}", "--stdin"];

/// Time for each thing that must happen.
const SOON: Duration = Duration::from_secs(30);

/// A process that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that skips must say so")]
fn a_human_voice_is_heard_translated_and_spoken() {
    if let Some(missing) = first_missing() {
        eprintln!("skipped: not installed: {missing}");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let voice = wav::pcm16_samples(&std::fs::read(RECORDING).unwrap());
    wav::write_wav(&file("voice.wav"), &voice).unwrap();
    std::fs::write(file("engine.toml"), engine_toml()).unwrap();

    // What each program says by itself is what must come out at the other end.
    let words = program(&filled(&RECOGNISER, &file("voice.wav")), "");
    let spanish = program(&TRANSLATOR.map(str::to_owned), &words);
    program(&filled(&VOICE, &file("alone.wav")), &spanish);
    let alone = wav::read_wav(&file("alone.wav")).unwrap();
    assert!(words.contains("forward"), "the recogniser heard {words:?}");
    assert!(!spanish.is_empty() && spanish != words, "the translator said {spanish:?}");

    let (_server, address) = serve(&file("data"));
    let _node = node(&address, &file("engine.toml"));
    wait_for_a_node(&address);
    let said = speak(&address, &file("voice.wav"), &file("out.wav"));
    assert!(said.contains(&words), "{words:?} is not in:\n{said}");
    assert!(said.contains(&spanish), "{spanish:?} is not in:\n{said}");
    let spoken = wav::read_wav(&file("out.wav")).unwrap();
    assert!(wav::rms(&spoken) > 300.0, "the answer is silent: {}", wav::rms(&spoken));
    let longer = spoken.len() as f64 / alone.len() as f64;
    assert!((0.95..1.05).contains(&longer), "{} samples, not {}", spoken.len(), alone.len());

    // The same by the README's own commands.
    if let Some(missing) = ["curl", "jq"].into_iter().find(|program| !is_there(program)) {
        eprintln!("skipped: the commands of the README for HTTP: not installed: {missing}");
        return;
    }
    std::fs::rename(file("voice.wav"), file("speech.wav")).unwrap();
    let printed = shell(&readme_commands().replace("127.0.0.1:5010", &address), directory.path());
    assert_eq!(printed.trim(), spanish);
    let answer = std::fs::read(file("answer.json")).unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["text"], words);
    assert_eq!(wav::read_wav(&file("answer.wav")).unwrap().len(), spoken.len());
}

/// The lines of the README that send a recording with curl and look at the answer.
fn readme_commands() -> String {
    let readme = include_str!("../README.md");
    let from = readme.find("curl -s -F audio=@speech.wav").expect("a command with curl");
    let length = readme[from..].find("```").expect("the end of the block");
    readme[from..from + length].to_owned()
}

/// What the commands print, run in that directory.
fn shell(commands: &str, directory: &Path) -> String {
    let mut sh = Command::new("sh");
    let output = sh.args(["-euc", commands]).current_dir(directory).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{commands}\n{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn first_missing() -> Option<String> {
    let programs = [RECOGNISER[0], TRANSLATOR[0], VOICE[0]];
    if let Some(program) = programs.into_iter().find(|program| !is_there(program)) {
        return Some(program.to_owned());
    }
    if !Path::new(RECORDING).is_file() {
        return Some(RECORDING.to_owned());
    }
    let modes = Command::new(TRANSLATOR[0]).arg("-l").output().unwrap();
    let has_mode = String::from_utf8_lossy(&modes.stdout).lines().any(|l| l.trim() == "eng-spa");
    (!has_mode).then(|| "apertium-eng-spa".to_owned())
}

fn engine_toml() -> String {
    format!(
        "[asr]\ncommand = {RECOGNISER:?}\nlanguages = [\"en\"]\n\n\
         [nmt]\npairs = {{ \"en:es\" = {TRANSLATOR:?} }}\n\n\
         [tts]\ncommand = {VOICE:?}\nlanguages = [\"es\"]\n"
    )
}

fn filled(template: &[&str], file: &Path) -> Vec<String> {
    let file = file.to_str().unwrap();
    template.iter().map(|word| word.replace("{wav}", file).replace("{tgt}", "es")).collect()
}

/// Runs one program alone; its answer with single blanks.
fn program(argv: &[String], stdin: &str) -> String {
    let mut child = Command::new(&argv[0])
        .args(&argv[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{argv:?}: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn utterd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_utterd"));
    command.stdin(Stdio::null());
    command
}

/// The server, and the address it says it listens on.
fn serve(data: &PathBuf) -> (Running, String) {
    let mut server = utterd();
    server.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    let mut server = Running(server.stdout(Stdio::piped()).spawn().unwrap());
    let mut stdout = BufReader::new(server.0.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("utterd listening on ");
    let address = address.unwrap_or_else(|| panic!("the server says {line:?}")).to_owned();
    // Whatever else it says must not fill the pipe.
    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    (server, address)
}

fn node(address: &str, config: &Path) -> Running {
    let mut node = utterd();
    node.args(["node", "--url", &format!("ws://{address}/ws/node"), "--engine", "command"]);
    Running(node.arg("--config").arg(config).stdout(Stdio::null()).spawn().unwrap())
}

/// Waits until the server has a ready node; should it never say so, speaking will show whether
/// there is one.
fn wait_for_a_node(address: &str) {
    let until = Instant::now() + SOON / 3;
    while Instant::now() < until {
        let nodes = get(address, "/api/v1/nodes").unwrap_or_default();
        let body = nodes.split("\r\n\r\n").nth(1).unwrap_or_default();
        let ready = serde_json::from_str::<serde_json::Value>(body)
            .is_ok_and(|body| body["nodes"][0]["state"] == "ready");
        if ready {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The speaker's whole standard output.
fn speak(address: &str, voice: &Path, out: &Path) -> String {
    let url = format!("ws://{address}/ws/session");
    let mut speaker = utterd();
    speaker.arg("speak").arg(voice).args(["--url", &url, "--from", "en", "--to", "es", "--chunks"]);
    let output = speaker.arg("--out").arg(out).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}:\n{said}", output.status);
    said
}
