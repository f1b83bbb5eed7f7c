//! What the server is run with: units, image, completions, manual pages, and its sign of life.

#![allow(clippy::print_stdout, reason = "what is skipped is told")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

fn utterd() -> Command {
    Command::new(env!("CARGO_BIN_EXE_utterd"))
}

/// What the program prints when it is run with these arguments, and ends well.
fn printed(arguments: &[&str]) -> String {
    let ended = utterd().args(arguments).output().unwrap();
    assert!(ended.status.success(), "{arguments:?}: {ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

/// A unit: the values of each key, by `Section.Key`.
fn unit(name: &str) -> BTreeMap<String, Vec<String>> {
    let (mut all, mut section) = (BTreeMap::<String, Vec<String>>::new(), String::new());
    for line in read(&format!("docs/deploy/{name}")).lines() {
        if let Some(head) = line.strip_prefix('[') {
            section = head.strip_suffix(']').unwrap().to_owned();
        } else if !line.is_empty() && !line.starts_with('#') {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
            all.entry(format!("{section}.{key}")).or_default().push(value.to_owned());
        }
    }
    all
}

#[test]
fn the_unit_runs_a_command_that_exists_with_exit_codes_that_are_told() {
    let service = unit("utterd.service");
    let is = |key: &str, value: &str| assert_eq!(service[key], [value], "{key}");
    is("Service.Type", "notify");
    is("Service.NotifyAccess", "main");
    is("Service.RestartPreventExitStatus", "2 65");
    let command: Vec<&str> = service["Service.ExecStart"][0].split(' ').collect();
    assert_eq!(command[..2], ["/usr/local/bin/utterd", "serve"]);
    let help = printed(&["serve", "--help"]);
    for flag in command.iter().filter(|word| word.starts_with("--")) {
        assert!(help.contains(flag), "serve has no {flag}");
    }
    for code in ["2", "65", "75"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(&format!("{code} "))));
    }
    // Longer than a stop may take, so that systemd never cuts one short.
    let stop: u64 = service["Service.TimeoutStopSec"][0].parse().unwrap();
    assert!(Duration::from_secs(stop) > utterd::server::STOP_MAX);
}

#[test]
fn the_unit_may_do_only_what_the_server_needs() {
    let service = unit("utterd.service");
    for key in [
        "DynamicUser",
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateDevices",
        "PrivateUsers",
        "ProtectHome",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectControlGroups",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "LockPersonality",
        "MemoryDenyWriteExecute",
    ] {
        assert_eq!(service[&format!("Service.{key}")], ["yes"], "{key}");
    }
    assert_eq!(service["Service.ProtectSystem"], ["strict"]);
    assert_eq!(service["Service.CapabilityBoundingSet"], [""]);
    // The only place it may write is where it is told to keep its data.
    let state = format!("--data /var/lib/{}", service["Service.StateDirectory"][0]);
    assert!(service["Service.ExecStart"][0].ends_with(&state));
    assert!(!service.contains_key("Service.ReadWritePaths"));
}

#[test]
fn the_sockets_have_names_that_the_server_knows_and_addresses_it_defaults_to() {
    let defaults = utterd::config::Config::default();
    for (name, descriptor) in [("utterd.socket", "client"), ("utterd-node.socket", "node")] {
        let socket = unit(name);
        assert_eq!(socket["Socket.FileDescriptorName"], [descriptor]);
        assert_eq!(socket["Socket.Service"], ["utterd.service"]);
    }
    assert_eq!(unit("utterd.socket")["Socket.ListenStream"], [defaults.server.listen]);
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["utterd.service", "utterd.socket", "utterd-node.socket"] {
        let text = read(&format!("docs/deploy/{name}"));
        // Verified where it is: the program is not installed here.
        let text = text.replace("/usr/local/bin/utterd", env!("CARGO_BIN_EXE_utterd"));
        fs::write(dir.path().join(name), text).unwrap();
    }
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "utterd.service", "utterd.socket", "utterd-node.socket"])
        .current_dir(dir.path())
        .output();
    match verify {
        Ok(said) => {
            let faults = String::from_utf8(said.stderr).unwrap();
            assert!(said.status.success() && !faults.contains("utterd"), "{faults}");
        }
        Err(error) => println!("skipped: no systemd-analyze ({error})"),
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::copy(from, to).unwrap();
    }
}

/// No image is built here; what can be tried without one is.
#[test]
fn the_image_is_built_of_all_the_build_needs_and_runs_as_nobody() {
    let text = read("docs/deploy/Dockerfile");
    let ignored = read(".dockerignore");
    let (build, run) = text.split_once("\nFROM scratch\n").expect("nothing but the program in it");
    let dir = tempfile::tempdir().unwrap();
    let copied = build.lines().filter_map(|line| line.strip_prefix("COPY "));
    let sources = copied.flat_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        words[..words.len() - 1].to_vec()
    });
    for source in sources {
        assert!(ignored.lines().any(|line| line == format!("!{source}")), "{source} is left out");
        copy(&root().join(source), &dir.path().join(source));
    }
    // Asked for a program that is not there, cargo looks whether all it knows of is there, and
    // then builds nothing.
    let cargo = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--locked", "--bin", "none", "--target-dir", "target"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&cargo.stderr);
    assert!(said.contains("no bin target named `none`") && said.contains("    utterd"), "{said}");
    let manifest = read("Cargo.toml");
    let sources = manifest.lines().filter_map(|line| line.strip_prefix("path = \"src/"));
    for source in sources.map(|rest| format!("src/{}", rest.trim_end_matches('"'))) {
        assert!(dir.path().join(&source).exists(), "{source} is not copied");
    }
    assert!(dir.path().join("Cargo.lock").exists(), "it is built with --locked");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    assert!(build.contains(&format!("rust:{}-", version.trim_matches('"'))), "another compiler");
    let user = run.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(user.split(':').all(|id| id.parse::<u32>().unwrap() > 0), "{user}");
    // Its settings are settings.
    let (_, variables) = run.split_once("ENV ").unwrap();
    let variables = variables.split("\nSTOPSIGNAL").next().unwrap().replace("\\\n", " ");
    let variables = variables.split_whitespace().map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    let config = utterd::config::Config::load(None, variables).unwrap();
    assert!(config.server.allow_remote && config.server.node_listen.is_some());
    let health = run.split("CMD [").nth(1).unwrap().split(']').next().unwrap();
    let words: Vec<&str> = health.split(", ").map(|word| word.trim_matches('"')).collect();
    assert!(printed(&["top", "--help"]).contains("--once"));
    assert_eq!(words[1..3], ["top", "--once"]);
}

#[test]
fn shells_and_man_are_told_every_verb() {
    let help = printed(&["--help"]);
    let (_, verbs) = help.split_once("Commands:\n").unwrap();
    let verbs: Vec<&str> = verbs
        .lines()
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert!(verbs.len() > 14 && verbs.contains(&"explain"), "{verbs:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = printed(&["completions", shell]);
        for verb in &verbs {
            assert!(script.contains(verb), "{shell} is not told of {verb}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    printed(&["man", "--dir", dir.path().to_str().unwrap()]);
    for verb in verbs.iter().filter(|verb| **verb != "help") {
        let page = fs::read_to_string(dir.path().join(format!("utterd-{verb}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    assert!(printed(&["man"]).contains("utterd\\-explain(1)"));
    let serve = printed(&["man", "serve"]);
    for part in ["rising order of rank", "Exit codes:", "SIGHUP", "\\-\\-config"] {
        assert!(serve.contains(part), "no {part} in\n{serve}");
    }
    let unknown = utterd().args(["man", "juggle"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
}

/// Each shell reads its script without complaint, where it is installed.
#[test]
fn shells_take_their_scripts() {
    let dir = tempfile::tempdir().unwrap();
    for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
        let file = dir.path().join(shell);
        fs::write(&file, printed(&["completions", shell])).unwrap();
        match Command::new(shell).arg(check).arg(&file).output() {
            Ok(read) => assert!(read.status.success(), "{shell}: {read:?}"),
            Err(error) => println!("skipped: no {shell} ({error})"),
        }
    }
}

#[test]
fn a_server_that_is_watched_gives_signs_of_life_until_it_stops() {
    let dir = tempfile::tempdir().unwrap();
    let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let told = || {
        let mut state = [0; 64];
        let length = manager.recv(&mut state).unwrap();
        String::from_utf8(state[..length].to_vec()).unwrap()
    };
    let mut server = utterd()
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(dir.path().join("data"))
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .env("WATCHDOG_USEC", "100000")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(told(), "READY=1");
    let began = Instant::now();
    for _ in 0..4 {
        assert_eq!(told(), "WATCHDOG=1");
    }
    assert!(began.elapsed() >= Duration::from_millis(100), "twice in the time, not all at once");
    let pid = rustix::process::Pid::from_child(&server);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    while told() != "STOPPING=1" {}
    assert!(server.wait().unwrap().success());
}
