//! The rules of the architecture, held by reading the sources as text.
//!
//! Each rule is one function from sources to faults and one test. The test first shows the rule
//! small bad sources, which it must report, and then the real ones, which must be clean. A rule
//! that has an exception names it in a table with the reason; an exception nobody needs any more
//! is a fault too.

mod sources;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use sources::{
    Function, Named, Source, Token, begins, closing, functions, own_paths, paths, reach, sources,
};

/// Who may import whom, from the top to the bottom: an arrow never points up this table. A module
/// that is not here may neither import nor be imported.
const IMPORTS: [(&str, &str); 16] = [
    ("lib", ""),
    ("main", "cli"),
    ("cli", "server sim peer session job tenant node store telemetry config protocol"),
    ("server", "session job tenant node store transport telemetry config protocol"),
    ("sim", "session job tenant node store telemetry config protocol"),
    ("peer", "transport protocol"),
    ("session", "store telemetry config protocol"),
    ("job", "tenant node store telemetry config protocol atomics"),
    ("tenant", "store telemetry config protocol"),
    ("node", "store telemetry config protocol atomics"),
    ("store", "protocol atomics"),
    ("transport", "telemetry config protocol"),
    ("telemetry", "config"),
    ("config", "protocol"),
    ("protocol", ""),
    ("atomics", ""),
];

/// The modules that decide. Of `store` they see only the types of its rows.
const CORE: [&str; 4] = ["session", "job", "tenant", "node"];

/// The modules that may see the whole configuration; others are given their section.
const SEES_CONFIG: [&str; 4] = ["cli", "server", "sim", "config"];

/// What the core does not name, and what to do instead.
const NOT_IN_CORE: [(&str, &str); 20] = [
    ("async", "return effects; the shell awaits"),
    ("await", "return effects; the shell awaits"),
    ("tokio", "return effects; the shell performs them"),
    ("futures_util", "return effects; the shell performs them"),
    ("spawn", "return an effect; the shell spawns"),
    ("spawn_blocking", "return an effect; the shell spawns"),
    ("sleep", "arm a deadline; the shell waits for it"),
    ("Instant", "take `now: Now` as an argument"),
    ("SystemTime", "take `now: Now` as an argument"),
    ("Mutex", "use an atomic, papaya or arc_swap"),
    ("RwLock", "use an atomic, papaya or arc_swap"),
    ("Condvar", "return an effect; the shell wakes"),
    ("parking_lot", "use an atomic, papaya or arc_swap"),
    ("mpsc", "return effects; the shell sends them"),
    ("print", "use tracing"),
    ("println", "use tracing"),
    ("eprint", "use tracing"),
    ("eprintln", "use tracing"),
    ("TcpStream", "return effects; the shell owns sockets"),
    ("fs", "return effects; the store owns files"),
];

/// Models of the program's own files have to name them; a test that is a directory, what it shares
/// with the others; a test of what a bench measures, what it shares with the bench; the replay of
/// the fuzz targets, what they do.
const NAMES_FILES: [&str; 4] =
    ["tests/loom.rs", "tests/whole_stack/main.rs", "tests/allocations.rs", "tests/fuzz/main.rs"];

/// Where an utterance passes: no lock of ours in these modules, or in the core.
const LOCK_FREE: [&str; 5] = ["protocol", "server", "transport", "store", "telemetry"];

/// An exception: where, what, how often, and why.
type Allowed = (&'static str, &'static str, usize, &'static str);

const LOCKS: [Allowed; 5] = [
    ("src/store/disk.rs", "Mutex", 3, "a disk in memory, for simulations and tests"),
    ("src/store/disk.rs", "MutexGuard", 2, "a disk in memory, for simulations and tests"),
    ("src/store/disk.rs", "lock in disk", 1, "a disk in memory, for simulations and tests"),
    ("src/store/mod.rs", "Mutex", 4, "the handle of the writer's thread, taken at shutdown"),
    ("src/store/mod.rs", "lock in shutdown", 1, "the handle of the writer's thread"),
];

/// A queue held in a field and made in a constructor is named twice.
const UNBOUNDED: [Allowed; 3] = [
    ("src/job/mod.rs", "SegQueue", 2, "bounded by the jobs admitted or taken back"),
    ("src/transport/outbox.rs", "SegQueue", 2, "`level` bounds it in frames and in bytes"),
    (
        "src/server/shared.rs",
        "SegQueue",
        6,
        "bounded by the jobs admitted and the reports read; mail by its count",
    ),
];

/// Enums outside the modules of data that are shown by name.
const SERDE: [Allowed; 1] = [("src/node/state.rs", "State", 1, "shown by the console")];

/// Where data is described, and serde derives are at home.
const SERDE_HOMES: [&str; 6] =
    ["src/protocol/", "src/config/", "src/store/", "src/peer/", "src/cli/", "src/server/console"];

/// Longest file, function and line; and the files and functions that were longer when the rule
/// came. These may only shrink.
const FILE_LINES: usize = 800;
const FN_LINES: usize = 70;
const COLUMNS: usize = 100;
const LONGER: [Allowed; 4] = [
    ("tests/limits.rs", "refused_by_sessions", 85, "a list of bad frames"),
    ("tests/wire.rs", "http_answers_operators", 99, "one request after the other"),
    ("tests/recovery.rs", "a_restart_under_load_goes_on_where_it_was", 80, "one story"),
    (
        "tests/recovery.rs",
        "a_kill_loses_nothing_that_was_accepted_and_repeats_nothing_that_ended",
        85,
        "one story",
    ),
];

/// Names that say nothing about what is inside.
const EMPTY_NAMES: [&str; 9] =
    ["common", "core", "utils", "util", "helper", "helpers", "managers", "services", "types"];

/// All there is at the top of the repository, besides names that begin with a dot.
const TOP: [&str; 9] =
    ["Cargo.toml", "Cargo.lock", "src", "benches", "tests", "fuzz", "docs", "README.md", "LICENSE"];

#[test]
fn imports_follow_the_table() {
    let rule = imports;
    sees(rule, "src/job/x.rs", "use crate::server::Server;", &[1]);
    sees(rule, "src/job/x.rs", "use crate::{\n protocol::JobId,\n session,\n};", &[3]);
    sees(rule, "src/session/x.rs", "fn f() {\n crate::job::submit();\n}", &[2]);
    sees(rule, "src/node/x.rs", "use super::super::job::Job;", &[1]);
    sees(rule, "src/node/x.rs", "mod a {\n fn f() { super::super::super::job::f() }\n}", &[2]);
    sees(rule, "src/node/x.rs", "use super::super::*;\nuse crate::{self as c};", &[1, 2]);
    sees(rule, "src/peer/x.rs", "use crate::config::Setting;", &[1]);
    sees(rule, "src/cli/x.rs", "use crate::transport::Outbox;", &[1]);
    sees(rule, "src/protocol/x.rs", "type T = ::std::vec::Vec<crate::config::Pool>;", &[1]);
    sees(rule, "src/main.rs", "use std::io;\nfn main() { utterd::server::run() }", &[2]);
    sees(rule, "src/lib.rs", "pub use server::Server;", &[1]);
    sees(rule, "src/new/mod.rs", "use crate::protocol;", &[1]);
    sees(rule, "src/job/x.rs", "use crate::store::JobRow;\nuse crate::store::Store;", &[2]);
    sees(rule, "src/job/x.rs", "macro_rules! m { ($m:ident) => { $crate::$m::X } }", &[1]);
    sees(rule, "src/server/x.rs", "use crate::{config::Config, job::Job, peer};", &[1]);
    sees(rule, "src/node/x.rs", "// crate::job\n#[cfg(test)] mod t { use crate::job; }", &[]);
    sees(rule, "src/node/x.rs", "pub(super) fn f() -> &'static str { \"crate::job\" }", &[]);
    let row = |name: &str| IMPORTS.iter().position(|(module, _)| *module == name);
    for (from, to) in IMPORTS {
        let up = to.split_whitespace().find(|to| row(to) <= row(from));
        assert_eq!(up, None, "the table has an arrow up, from {from}");
    }
    hold(imports(&SOURCES));
}

#[test]
fn the_whole_configuration_stays_in_the_shell() {
    let rule = whole_config;
    sees(rule, "src/job/x.rs", "use crate::config::{Queue, Config};", &[1]);
    sees(rule, "src/job/x.rs", "use crate::config;\nfn f(c: &config::Config) {}", &[2]);
    sees(rule, "src/job/x.rs", "use crate::config as c;\nuse c::*;", &[2]);
    sees(rule, "src/server/x.rs", "use crate::config::Config;", &[]);
    sees(rule, "src/job/x.rs", "use crate::config::Queue;", &[]);
    hold(whole_config(&SOURCES));
}

#[test]
fn the_core_only_decides() {
    let rule = core_only_decides;
    sees(rule, "src/job/x.rs", "fn f() {\n g().await;\n}", &[2]);
    sees(rule, "src/tenant/mod.rs", "fn f() { std::time::Instant::now(); }", &[1]);
    sees(rule, "src/node/x.rs", "use std::sync::{Arc,\n Mutex};", &[2]);
    sees(rule, "src/session.rs", "fn f() {\n\n println!(\"x\") }", &[3]);
    sees(rule, "src/session/x.rs", "use std::thread::spawn;", &[1]);
    sees(rule, "src/server/x.rs", "async fn f() {}", &[]);
    sees(rule, "src/job/x.rs", "// await\nfn f() { g(\"await\"); }", &[]);
    hold(core_only_decides(&SOURCES));
}

#[test]
fn no_lock_of_ours_on_the_path_of_an_utterance() {
    let rule = |sources: &[Source]| locks(sources, &[]);
    sees(rule, "src/server/perform.rs", "fn f() {}\nstatic M: Mutex<()> = x;", &[2]);
    sees(rule, "src/transport/x.rs", "use tokio::sync::RwLockReadGuard;", &[1]);
    sees(rule, "src/store/x.rs", "fn f() {\n self.m.lock();\n}", &[2]);
    sees(rule, "src/cli/x.rs", "use std::sync::Mutex;", &[]);
    let rule = |sources: &[Source]| locks(sources, &[("src/server/x.rs", "Mutex", 1, "why")]);
    sees(rule, "src/server/x.rs", "use std::sync::Mutex;", &[]);
    sees(rule, "src/server/x.rs", "use std::sync::Mutex;\ntype M = Mutex<u8>;", &[1, 2]);
    sees(rule, "src/server/y.rs", "", &[0]);
    hold(locks(&SOURCES, &LOCKS));
}

#[test]
fn every_file_is_reachable() {
    sees(unreachable, "src/lost.rs", "", &[1]);
    sees(unreachable, "src/lib.rs", "#[path = \"x.rs\"]\nmod y;\ninclude!(\"z\");", &[1, 3]);
    let file = |path: &str, text: &str| Source::new(path, text);
    let tree = [
        file("src/lib.rs", "mod a; mod b { mod c; }"),
        file("src/a/mod.rs", "#[cfg(test)] mod d;"),
        file("src/a/d.rs", ""),
        file("src/b/c.rs", ""),
    ];
    assert_eq!(unreachable(&tree), []);
    assert_eq!(unreachable(&[tree[0].clone(), tree[2].clone()]).len(), 1);
    hold(unreachable(&SOURCES));
}

#[test]
fn names_say_what_is_inside() {
    sees(empty_names, "src/job/utils.rs", "", &[1]);
    sees(empty_names, "tests/common/mod.rs", "", &[1]);
    sees(empty_names, "src/job/x.rs", "fn f() {}\nmod types {}", &[2]);
    sees(empty_names, "src/job/place.rs", "// mod types\nfn utils() {}", &[]);
    hold(empty_names(&SOURCES));
}

#[test]
fn nothing_is_left_unfinished() {
    sees(unfinished, "src/x.rs", "fn f() {\n todo!()\n}", &[2]);
    sees(unfinished, "src/x.rs", "fn f() { unimplemented!(\"soon\"); dbg!(1); }", &[1, 1]);
    sees(unfinished, "src/x.rs", "unsafe fn f() {}", &[1]);
    sees(unfinished, "tests/x.rs", "#[test]\n#[ignore]\nfn f() {}", &[2]);
    sees(unfinished, "src/x.rs", "// let x = f(a);\n//     }\n// if a {", &[1, 2, 3]);
    sees(unfinished, "src/x.rs", "#![forbid(unsafe_code)]\n#[ignore = \"slow\"]\nfn f() {}", &[]);
    sees(unfinished, "src/x.rs", "// Use this; let it be.\n/// let x = 1;\n// if we must;", &[]);
    hold(unfinished(&SOURCES));
}

#[test]
fn files_functions_and_lines_are_short() {
    let rule = |sources: &[Source]| sizes(sources, &[]);
    sees(rule, "src/x.rs", &"\n".repeat(801), &[801]);
    sees(rule, "src/x.rs", &format!("fn f(x: [u8; 2]) {{{}}}", "\n".repeat(70)), &[1]);
    sees(rule, "src/x.rs", &format!("\n// {}", "é".repeat(98)), &[2]);
    sees(rule, "src/x.rs", &format!("fn f() {{{}}}{}", "\n".repeat(69), "\n".repeat(730)), &[]);
    let rule = |sources: &[Source]| sizes(sources, &[("src/x.rs", "lines", 900, "older")]);
    sees(rule, "src/x.rs", &"\n".repeat(900), &[]);
    sees(rule, "src/x.rs", &"\n".repeat(901), &[901]);
    sees(rule, "src/x.rs", "", &[0]);
    hold(sizes(&SOURCES, &LONGER));
}

#[test]
fn queues_are_bounded() {
    let rule = |sources: &[Source]| unbounded(sources, &[]);
    sees(rule, "src/x.rs", "fn f() { let (a, b) = mpsc::unbounded_channel(); }", &[1]);
    sees(rule, "src/x.rs", "use x::SegQueue;\nstruct S(SegQueue<u8>);", &[2]);
    sees(rule, "src/x.rs", "fn f(q: &SegQueue<u8>) {\n SegQueue::default() }", &[2]);
    sees(rule, "src/x.rs", "fn f() { std::sync::mpsc::channel::<u8>() }", &[1]);
    sees(rule, "src/x.rs", "use std::sync::mpsc::{Sender, channel};", &[1]);
    sees(rule, "src/x.rs", "fn f() { mpsc::channel(8); oneshot::channel(); }", &[]);
    hold(unbounded(&SOURCES, &UNBOUNDED));
}

#[test]
fn guards_do_not_cross_an_await() {
    sees(guards, "src/cli/x.rs", "fn f() { m.pin_owned() }", &[1]);
    sees(guards, "src/server/x.rs", "use arc_swap::ArcSwapOption;", &[1, 1]);
    sees(guards, "src/peer/x.rs", "type T = ArcSwap<u8>;", &[1]);
    sees(guards, "src/store/x.rs", "use arc_swap::X;\nasync fn f() {\n g().await }", &[2, 3]);
    sees(guards, "src/job/x.rs", "use arc_swap::Guard;", &[1]);
    sees(guards, "src/job/x.rs", "use arc_swap::ArcSwap;", &[]);
    hold(guards(&SOURCES));
}

#[test]
fn the_top_of_the_repository_is_short() {
    let names = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(strangers(names("src notes.md .gitignore")), ["notes.md"]);
    let found = strangers(top_of_repository());
    assert!(found.is_empty(), "at the top, and in none of its places: {found:?}");
}

#[test]
fn data_is_described_where_data_lives() {
    let rule = |sources: &[Source]| serde_derives(sources, &[]);
    sees(rule, "src/job/x.rs", "#[derive(Debug,\n serde::Serialize)]\nstruct S;", &[2]);
    sees(rule, "src/server/x.rs", "#[cfg_attr(a, derive(Deserialize))] enum E {}", &[1]);
    sees(rule, "src/protocol/x.rs", "#[derive(Serialize)]\nstruct S;", &[]);
    let rule = |sources: &[Source]| serde_derives(sources, &[("src/job/x.rs", "E", 1, "shown")]);
    sees(rule, "src/job/x.rs", "#[derive(Serialize)] pub enum E {}", &[]);
    sees(rule, "src/job/x.rs", "#[derive(Serialize)] pub struct E {}", &[0, 1]);
    hold(serde_derives(&SOURCES, &SERDE));
}

#[test]
fn the_reader_knows_what_is_code() {
    let words = |text: &str| {
        let live = Source::new("src/x.rs", text).live;
        live.iter().map(|token| token.text).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(words("a /* b /* c */ d */ e // f\n::g"), "a e :: g");
    assert_eq!(words("a(\"b \\\" c\", r#\"d\" e\"#, b'\\'', '\"', &'f g)"), {
        "a ( \" , \" , \" , \" , & ' f g )"
    });
    assert_eq!(words("#[cfg(test)]\n#[x]\npub(super) mod a { b! {} } c"), "c");
    assert_eq!(words("#[cfg(test)] use a::{b, c}; d"), "d");
    assert_eq!(words("#[cfg(test)] const fn a(x: [u8; 2]) -> u8 { 1 } b"), "b");
    assert_eq!(words("struct A { #[cfg(test)] b: (u8, u8), c: u8 }"), "struct A { c : u8 }");
    assert_eq!(words("#[cfg(not(test))] a"), "# [ cfg ( not ( test ) ) ] a");
    for source in SOURCES.iter() {
        let count = |mark: &str| source.all.iter().filter(|token| token.text == mark).count();
        for (open, close) in [("(", ")"), ("[", "]"), ("{", "}")] {
            assert_eq!(count(open), count(close), "{open}{close} in {}", source.path);
        }
    }
}

static SOURCES: LazyLock<Vec<Source>> = LazyLock::new(sources);

/// A place and what to do about it.
#[derive(Debug, PartialEq)]
struct Fault {
    path: &'static str,
    line: usize,
    say: String,
}

fn fault(source: &Source, line: usize, say: impl Into<String>) -> Fault {
    Fault { path: source.path, line, say: say.into() }
}

fn hold(faults: Vec<Fault>) {
    let mut list = String::new();
    for Fault { path, line, say } in &faults {
        writeln!(list, "{path}:{line}: {say}").unwrap();
    }
    assert!(faults.is_empty(), "{} faults:\n{list}", faults.len());
}

/// The rule reports exactly these lines of this text.
#[track_caller]
fn sees(rule: impl Fn(&[Source]) -> Vec<Fault>, path: &str, text: &str, lines: &[usize]) {
    let faults = rule(&[Source::new(path, text)]);
    let mut found: Vec<usize> = faults.iter().map(|fault| fault.line).collect();
    found.sort_unstable();
    assert_eq!(found, lines, "in {text:?}: {faults:?}");
}

/// Removes the faults that are allowed as often as they occur. An exception that is used more or
/// less often than it says leaves a fault.
fn except(mut found: Vec<(String, Fault)>, allowed: &[Allowed]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (path, what, times, _why) in allowed {
        let here = |(name, fault): &(String, Fault)| name == what && fault.path == *path;
        match found.iter().filter(|found| here(found)).count() {
            n if n == *times => found.retain(|found| !here(found)),
            n if n > *times => {}
            n => {
                let say =
                    format!("{what} is allowed {times} times and found {n}: correct the table");
                faults.push(Fault { path, line: 0, say });
                found.retain(|found| !here(found));
            }
        }
    }
    faults.extend(found.into_iter().map(|(_, fault)| fault));
    faults
}

fn imports(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        let from = source.module();
        let row = IMPORTS.iter().find(|(module, _)| *module == from);
        for Named { line, path, .. } in own_paths(source).filter(|named| !named.through_use) {
            let Some(to) = path.first().filter(|to| **to != "*") else {
                faults.push(fault(source, line, "names the root of the crate: name a module"));
                continue;
            };
            // At the root a name that is no module of ours is another crate.
            let is_ours = IMPORTS.iter().any(|(module, _)| module == to);
            if *to == from || (!is_ours && source.modules().is_empty()) {
                continue;
            }
            if !row.is_some_and(|(_, may)| may.split(' ').any(|may| may == *to)) {
                let say = format!("{from} may not import {to}: move the code, or pass a value");
                faults.push(fault(source, line, say));
            } else if *to == "store"
                && CORE.contains(&from.as_str())
                && !path.get(1).is_some_and(|name| name.ends_with("Row"))
            {
                let say = format!("{from} may import only rows of store: return an effect");
                faults.push(fault(source, line, say));
            }
        }
    }
    faults
}

fn whole_config(sources: &[Source]) -> Vec<Fault> {
    let is_blind = |source: &Source| {
        source.path.starts_with("src/") && !SEES_CONFIG.contains(&&*source.module())
    };
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| is_blind(source)) {
        for Named { line, path, .. } in own_paths(source) {
            if path.first() == Some(&"config") && path.iter().any(|n| ["Config", "*"].contains(n)) {
                faults.push(fault(source, line, "sees all of Config: take its section instead"));
            }
        }
    }
    faults
}

fn core_only_decides(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| CORE.contains(&&*source.module())) {
        for token in &source.live {
            if let Some((word, instead)) = NOT_IN_CORE.iter().find(|(word, _)| *word == token.text)
            {
                faults.push(fault(source, token.line, format!("{word} in the core: {instead}")));
            }
        }
    }
    faults
}

fn locks(sources: &[Source], allowed: &[Allowed]) -> Vec<Fault> {
    let mut found = Vec::new();
    let on_path = |source: &&Source| LOCK_FREE.contains(&&*source.module());
    for source in sources.iter().filter(on_path) {
        let functions = functions(&source.live);
        for (i, token) in source.live.iter().enumerate() {
            let name = if ["Mutex", "RwLock", "Condvar", "parking_lot"]
                .iter()
                .any(|l| token.text.contains(l))
            {
                token.text.to_owned()
            } else if begins(&source.live[i..], &[".", "lock", "("]) {
                let inside = functions.iter().rev().find(|f| (f.from..=f.to).contains(&token.line));
                format!("lock in {}", inside.map_or("no function", |f| f.name))
            } else {
                continue;
            };
            let say =
                format!("{name}: no lock where an utterance passes; use an atomic or a queue");
            found.push((name, fault(source, token.line, say)));
        }
    }
    except(found, allowed)
}

fn unreachable(sources: &[Source]) -> Vec<Fault> {
    let reached = reach(sources, |source| &source.all);
    let mut faults = Vec::new();
    for source in sources {
        if !reached.contains(source.path) {
            let say = "not reachable from a root: declare it with `mod`, or delete it";
            faults.push(fault(source, 1, say));
        }
        for (i, token) in source.all.iter().enumerate() {
            let rest = &source.all[i..];
            let named = begins(rest, &["[", "path", "="]) && !NAMES_FILES.contains(&source.path);
            if named || begins(rest, &["include", "!"]) {
                faults.push(fault(source, token.line, "a file is found by the name of its module"));
            }
        }
    }
    faults
}

fn empty_names(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let say = |name: &str| format!("a module called {name}: call it by what it holds");
    for source in sources {
        for name in source.path.trim_end_matches(".rs").split('/') {
            if EMPTY_NAMES.contains(&name) {
                faults.push(fault(source, 1, say(name)));
            }
        }
        for pair in source.all.windows(2) {
            if pair[0].text == "mod" && EMPTY_NAMES.contains(&pair[1].text) {
                faults.push(fault(source, pair[1].line, say(pair[1].text)));
            }
        }
    }
    faults
}

fn unfinished(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        for (i, token) in source.all.iter().enumerate() {
            let rest = &source.all[i..];
            let macros = ["todo", "unimplemented", "dbg"];
            if macros.contains(&token.text) && rest.get(1).is_some_and(|next| next.text == "!") {
                let say = format!("{}!: finish it, or do not begin it", token.text);
                faults.push(fault(source, token.line, say));
            }
            if token.text == "unsafe" {
                faults.push(fault(source, token.line, "unsafe: write it in safe Rust"));
            }
            if begins(rest, &["[", "ignore", "]"]) {
                let say = "a test ignored without a reason: write #[ignore = \"why\"]";
                faults.push(fault(source, token.line, say));
            }
        }
        for (line, comment) in &source.comments {
            if looks_like_code(comment) {
                faults.push(fault(source, *line, "code in a comment: delete it, git remembers"));
            }
        }
    }
    faults
}

/// Whether a plain comment is a line of code: it must begin and end as one, since prose is free to
/// do either.
fn looks_like_code(comment: &str) -> bool {
    let Some(text) = comment.strip_prefix("//").filter(|text| !text.starts_with(['/', '!'])) else {
        return false;
    };
    let text = text.trim();
    let closes = !text.is_empty() && text.chars().all(|c| ")}];,".contains(c)) && text != ",";
    let opens = |words: &[&str]| words.iter().any(|word| text.starts_with(word));
    closes
        || (text.ends_with('{') && opens(&["if ", "for ", "while ", "match ", "} else"]))
        || (text.ends_with([';', '{', '}'])
            && opens(&["let ", "pub ", "fn ", "impl ", "mod ", "struct ", "enum ", "#["]))
        || (text.ends_with(';') && text.starts_with("use ") && text.contains("::"))
        || (text.ends_with(");") && !text.contains(' ') && text.contains('('))
}

fn sizes(sources: &[Source], longer: &[Allowed]) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut needed = BTreeSet::new();
    for source in sources {
        let lines = source.text.lines().count();
        let mut measured = vec![("lines", lines, lines, FILE_LINES)];
        for Function { name, from, to } in functions(&source.all) {
            measured.push((name, from, to - from + 1, FN_LINES));
        }
        for (what, line, long, most) in measured.into_iter().filter(|m| m.2 > m.3) {
            let same = |entry: &&Allowed| (entry.0, entry.1) == (source.path, what);
            let most = longer.iter().find(same).map_or(most, |entry| entry.2);
            needed.insert((source.path, what));
            if long > most {
                let say = format!("{what}: {long} lines, at most {most}; divide what it does");
                faults.push(fault(source, line, say));
            }
        }
        for (at, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS {
                let say = format!("{columns} columns, at most {COLUMNS}; break the line");
                faults.push(fault(source, at + 1, say));
            }
        }
    }
    for (path, what, ..) in longer.iter().filter(|entry| !needed.contains(&(entry.0, entry.1))) {
        let say = format!("{what} is short by now: remove its line from the table");
        faults.push(Fault { path, line: 0, say });
    }
    faults
}

fn unbounded(sources: &[Source], allowed: &[Allowed]) -> Vec<Fault> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        let mut see = |name: &str, line: usize| {
            let say =
                format!("{name} has no bound: use a bounded queue, or list it with its budget");
            found.push((name.to_owned(), fault(source, line, say)));
        };
        for (i, token) in source.live.iter().enumerate() {
            let before = i.checked_sub(1).map_or("", |i| source.live[i].text);
            let after = source.live.get(i + 1).map_or("", |next| next.text);
            match token.text {
                "unbounded_channel" | "unbounded" | "Injector" => see(token.text, token.line),
                "SegQueue" if after == "::" || after == "<" && before != "&" => {
                    see("SegQueue", token.line);
                }
                _ => {}
            }
        }
        for Named { line, path, .. } in paths(source) {
            if path == ["std", "sync", "mpsc", "channel"] {
                see("std::sync::mpsc::channel", line);
            }
        }
    }
    except(found, allowed)
}

fn guards(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with("src/")) {
        let swaps = |token: &Token| token.text == "arc_swap" || token.text.starts_with("ArcSwap");
        let here = source.live.iter().any(swaps);
        let shell = ["server", "peer", "sim", "cli", "transport"].contains(&&*source.module());
        for token in &source.live {
            let say = match token.text {
                "pin_owned" => "pin_owned crosses an await: pin(), and take what you need out",
                _ if shell && swaps(token) => "arc_swap in the shell: put it behind a core method",
                "async" | "await" if here => "arc_swap beside async: its guard must not be awaited",
                "Guard" if here => "the guard of arc_swap stays where it is taken",
                _ => continue,
            };
            faults.push(fault(source, token.line, say));
        }
    }
    faults
}

fn serde_derives(sources: &[Source], allowed: &[Allowed]) -> Vec<Fault> {
    let mut found = Vec::new();
    let homeless = |s: &&Source| {
        s.path.starts_with("src/") && !SERDE_HOMES.iter().any(|home| s.path.starts_with(home))
    };
    for source in sources.iter().filter(homeless) {
        for (i, _) in source.live.iter().enumerate() {
            if !begins(&source.live[i..], &["derive", "("]) {
                continue;
            }
            let derived = &source.live[i..closing(&source.live, i + 1)];
            let serde = |token: &&Token| ["Serialize", "Deserialize"].contains(&token.text);
            let Some(trait_) = derived.iter().find(serde) else { continue };
            let kind = |pair: &&[Token]| ["struct", "enum", "union"].contains(&pair[0].text);
            let item = source.live[i..].windows(2).find(kind);
            let name = item
                .filter(|pair| pair[0].text == "enum")
                .map_or("not an enum", |pair| pair[1].text);
            let say = "serde outside the modules of data: make a view there, or list a small enum";
            found.push((name.to_owned(), fault(source, trait_.line, say)));
        }
    }
    except(found, allowed)
}

fn strangers(names: Vec<String>) -> Vec<String> {
    names.into_iter().filter(|name| !name.starts_with('.') && !TOP.contains(&&**name)).collect()
}

/// What git tracks at the top; without git, what is there but for data and what is built.
fn top_of_repository() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = Command::new("git").arg("ls-files").current_dir(root).output();
    let tracked = git.ok().filter(|out| out.status.success() && !out.stdout.is_empty());
    let names: BTreeSet<String> = match tracked {
        Some(out) => String::from_utf8_lossy(&out.stdout)
            .lines()
            .map(|path| path.split('/').next().unwrap_or(path).to_owned())
            .filter(|name| root.join(name).exists())
            .collect(),
        None => std::fs::read_dir(root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !["target", "data"].contains(&&**name))
            .collect(),
    };
    names.into_iter().collect()
}
