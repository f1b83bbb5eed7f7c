//! The settings as an operator meets them: a file, variables, and everything that can be wrong.

use std::collections::BTreeSet;

use super::*;

fn no_env() -> std::iter::Empty<(String, String)> {
    std::iter::empty()
}

fn env(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
    let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect::<Vec<_>>().into_iter()
}

fn faults(text: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match Config::parse(text, env(variables)) {
        Ok(_) => Vec::new(),
        Err(Faults(faults)) => faults.iter().map(ToString::to_string).collect(),
    }
}

/// The one fault of a text, as it is shown.
fn fault(text: &str) -> String {
    let faults = faults(text, &[]);
    assert_eq!(faults.len(), 1, "{text}: {faults:#?}");
    faults.into_iter().next().unwrap()
}

#[test]
fn defaults_pass_their_own_checks() {
    let config = Config::default();
    assert_eq!(config.check(), Ok(()));
    assert_eq!(Config::parse("", no_env()), Ok(config.clone()));
    assert_eq!(Config::load(None, no_env()), Ok(config));
}

#[test]
fn the_example_sets_every_setting_to_its_default() {
    let example = example_toml();
    assert_eq!(Config::parse(&example, no_env()), Ok(Config::default()), "{example}");
    let table: toml::Table = example.parse().unwrap();
    for (section, key) in check::known_settings(&mut Config::default()) {
        let unset = example.contains(&format!("\n# {key} is unset\n"));
        let shown = table[section].get(key).is_some() || unset;
        assert!(shown, "{section}.{key} is not in the example");
    }
    assert!(example.lines().all(|line| line.chars().count() <= 100), "{example}");
}

#[test]
fn the_lists_of_the_example_can_be_uncommented() {
    let example = example_toml();
    let (_, lists) = example.split_once("# [[pools]]").unwrap();
    let (pool, tenant) = lists.split_once("# [[tenants]]").unwrap();
    let settings = |list: &str| -> String {
        let bare = list.lines().map(|l| l.trim_start_matches("# "));
        bare.filter(|line| line.contains(" = ")).map(|l| format!("{l}\n")).collect()
    };
    let text = format!("[[pools]]\n{}[[tenants]]\n{}", settings(pool), settings(tenant));
    let config = Config::parse(&text, no_env()).unwrap();
    assert_eq!(config.pools, [reference::example_pool()]);
    assert_eq!(config.tenants, [reference::example_tenant()]);
}

#[test]
fn every_setting_is_read_and_refuses_another_type() {
    let mut seen = 0;
    for (section, key) in check::known_settings(&mut Config::default()) {
        let text = format!("[{section}]\n{key} = 1979-05-27\n");
        let fault = fault(&text);
        let begins = format!("{section}.{key}: wrong type, given 1979-05-27, allowed: ");
        assert!(fault.starts_with(&begins), "{fault}");
        assert!(fault.ends_with(" (line 2)"), "{fault}");
        seen += 1;
    }
    assert!(seen > 70, "{seen}");
}

#[test]
fn every_bound_is_inclusive_and_enforced() {
    let mut config = Config::default();
    let mut bounds = Vec::new();
    for section in config.sections() {
        let name = section.name();
        section.each(&mut |field, _| {
            if let Allowed::Whole(low, high) = field.allowed {
                bounds.push((name, field.key, low, high));
            }
        });
    }
    assert!(bounds.len() > 50);
    for (section, key, low, high) in bounds {
        let path = format!("{section}.{key}: out of range");
        let refused = |n: i128| {
            faults(&format!("[{section}]\n{key} = {n}\n"), &[])
                .iter()
                .any(|fault| fault.starts_with(&path))
        };
        let [low, high] = [low, high].map(i128::from);
        assert!(!refused(low) && !refused(high), "{section}.{key} at its ends");
        assert!(refused(low - 1) && refused(high + 1), "{section}.{key} beyond its ends");
    }
}

/// A file in which much is wrong.
const BAD: &str = r#"top = 1

[server]
listen = "nowhere"
port = 5010
drain_ms = "soon"

[segmenter]
pause_ms = -1
pcm_silence_rms = 1.5
padding_auto_ms = 4294967296
max_bites = 10

[session]
delivery = "eventually"

[job]
lease_min_ms = 50_000
lease_max_ms = 40_000
node_deaths_max = 4
live_max = 19_999

[node]
failure_window = 33
require_gpu = "yes"
slots_default = 8
slots_max = 4

[log]
level = "inof"

[sesion]
jobs_max = 3

[scheduler.job_timeout]
pending_timeout_seconds = 10
unheard_of = 1

[[pools]]
name = "a b"
pairs = ["zh:en", "zhen", "x:y:z"]

[[pools]]
name = "twin"
pairs = ["*:*"]
weight = 0

[[pools]]
name = "twin"
pairs = []
tenants = [7]
wait = 1

[[pools]]

[[tenants]]
name = "acme"
wieght = 3

[[tenants]]
name = "acme"
weight = 0
jobs_max = -1

[[tenants]]
name = "other"

[tenant]
messages_per_second = "some"
"#;

/// What is told of it; an indented line goes on with the one before.
const TOLD: &str = r#"
top: no such section, allowed: server, transport, tls, auth, segmenter, session, room, gateway,
    tenant, job, node, store, console, log, telemetry, pools, tenants (line 1)
server.listen: not accepted, given "nowhere", allowed: text (HOST:PORT, such as 127.0.0.1:5010,
    [::1]:5010 or localhost:0) (line 4)
server.port: no such setting, given 5_010, here it is server.listen (line 5)
server.drain_ms: wrong type, given "soon", allowed: integer, 0 to 20_000 ms (line 6)
segmenter.pause_ms: out of range, given -1, allowed: integer, 0 to 600_000 ms (line 9)
segmenter.pcm_silence_rms: out of range, given 1.5, allowed: number, 0 to 1 of full scale (line
    10)
segmenter.padding_auto_ms: out of range, given 4_294_967_296, allowed: integer, 0 to 10_000 ms
    (line 11)
segmenter.max_bites: no such setting, given 10, did you mean max_bytes (line 12)
session.delivery: not accepted, given "eventually", allowed: durable or fast (line 15)
job.lease_min_ms: contradicts job.lease_max_ms, given 50_000 against 40_000, allowed: at most as
    much (line 18)
job.node_deaths_max: contradicts job.attempts_max, given 4 against 3, allowed: at most as much
    (line 20)
job.queue_max: contradicts job.live_max, given 20_000 against 19_999, allowed: at most as much
    (line 21)
node.failure_window: out of range, given 33, allowed: integer, 1 to 32 jobs (line 24)
node.require_gpu: wrong type, given "yes", allowed: true or false (line 25)
node.slots_default: contradicts node.slots_max, given 8 against 4, allowed: at most as much (line
    26)
log.level: not accepted, given "inof", allowed: text (levels off, error, warn, info, debug, trace,
    or TARGET=LEVEL, split by commas) (line 30)
sesion: no such section, did you mean session (line 32)
scheduler: no such section, allowed: server, transport, tls, auth, segmenter, session, room,
    gateway, tenant, job, node, store, console, log, telemetry, pools, tenants (line 35)
scheduler.job_timeout.pending_timeout_seconds: no such setting, given 10, here it is
    job.pending_ms (line 36)
pools[0].name: not accepted, given "a b", allowed: text (1 to 64 of A-Z a-z 0-9 _ . -) (line 40)
pools[0].pairs: "zhen" and "x:y:z" are not pairs, given ["zh:en", "zhen", "x:y:z"], allowed: list
    of pairs (one or more of "zh:en", "*:en", "zh:*", "*:*") (line 41)
pools[1].weight: out of range, given 0, allowed: integer, 1 to 1_000 (line 46)
pools[2].name: already the name of pools[1], given "twin", allowed: names all different (line 49)
pools[2].pairs: not accepted, given [], allowed: list of pairs (one or more of "zh:en", "*:en",
    "zh:*", "*:*") (line 50)
pools[2].tenants: wrong type, given [7], allowed: list of text (names that are not empty) (line
    51)
pools[2].wait: no such setting, given 1 (line 52)
pools[3].name: missing, allowed: text (1 to 64 of A-Z a-z 0-9 _ . -) (line 54)
pools[3].pairs: missing, allowed: list of pairs (one or more of "zh:en", "*:en", "zh:*", "*:*")
    (line 54)
tenants[0].wieght: no such setting, given 3, did you mean weight (line 58)
tenants[1].name: already the name of tenants[0], given "acme", allowed: names all different (line
    61)
tenants[1].weight: out of range, given 0, allowed: integer, 1 to 1_000 (line 62)
tenants[1].jobs_max: out of range, given -1, allowed: integer, 0 to 10_000_000 jobs (line 63)
tenants[2].name: not accepted, given "other", allowed: text (1 to 128 bytes that are not all blank;
    not `other`) (line 66)
tenant.messages_per_second: wrong type, given "some", allowed: integer, 0 to 100_000 messages (line
    69)
"#;

#[test]
fn every_fault_of_a_bad_file_is_told_at_once() {
    let told = TOLD.replace("\n    ", " ");
    let told: Vec<&str> = told.trim().lines().collect();
    assert_eq!(faults(BAD, &[]), told);
}

#[test]
fn each_tie_between_settings_is_enforced_at_its_edge() {
    let ties = [
        ("transport.node_outbox_bytes_max", "transport.session_message_bytes_max", 8_000_000, 1),
        ("transport.node_outbox_bytes_max", "segmenter.max_bytes", 8_000_000, 2),
        ("transport.node_outbox_bytes_max", "gateway.recording_bytes_max", 8_000_000, 2),
        (
            "transport.sessions_outbox_bytes_max",
            "transport.session_outbox_bytes_max",
            30_000_000,
            1,
        ),
        ("job.lease_max_ms", "job.lease_min_ms", 20_000, 1),
        ("job.attempts_max", "job.node_deaths_max", 7, 1),
        ("job.live_max", "job.queue_max", 77, 1),
        ("node.slots_max", "node.slots_default", 9, 1),
        ("node.quarantine_max_ms", "node.quarantine_ms", 900, 1),
    ];
    for (large, small, n, times) in ties {
        let text = |more: u64| {
            let [large, small] = [large, small].map(|path| path.split_once('.').unwrap());
            let (n, m) = (n, n / times + more);
            match large.0 == small.0 {
                true => format!("[{}]\n{} = {n}\n{} = {m}\n", large.0, large.1, small.1),
                false => {
                    format!("[{}]\n{} = {n}\n[{}]\n{} = {m}\n", large.0, large.1, small.0, small.1)
                }
            }
        };
        assert_eq!(faults(&text(0), &[]), [""; 0], "{large} and {small} at the edge");
        let told = fault(&text(1));
        assert!(told.contains("contradicts") && told.contains(small), "{told}");
    }
    for key in ["failure_count", "failure_consecutive"] {
        assert_eq!(faults(&format!("[node]\n{key} = 5\n"), &[]), [""; 0]);
        let told = fault(&format!("[node]\n{key} = 6\n"));
        assert!(
            told.starts_with(&format!("node.{key}: contradicts node.failure_window")),
            "{told}"
        );
    }
}

#[test]
fn an_address_others_can_reach_must_be_allowed() {
    let listen = |address: &str, more: &str| format!("[server]\nlisten = \"{address}\"\n{more}");
    for address in ["127.0.0.1:0", "127.8.8.8:80", "[::1]:5010", "localhost:1", "LocalHost:1"] {
        assert_eq!(faults(&listen(address, ""), &[]), [""; 0], "{address}");
    }
    for address in ["0.0.0.0:5010", "[::]:5010", "192.168.1.1:1", "gpu-box.lan:5010"] {
        let told = fault(&listen(address, ""));
        assert!(told.contains("or server.allow_remote = true"), "{told}");
        assert_eq!(faults(&listen(address, "allow_remote = true\n"), &[]), [""; 0], "{address}");
    }
    for address in ["5010", ":5010", "localhost", "1.2.3:80", "999.1.1.1:80", "a b:1", "x:65536"] {
        assert!(
            fault(&listen(address, "")).starts_with("server.listen: not accepted"),
            "{address}"
        );
    }
}

#[test]
fn the_nodes_own_address_is_judged_like_the_other() {
    let text = "[server]\nnode_listen = \"0.0.0.0:5011\"\n";
    let told = faults(text, &[]).join(" ");
    assert!(told.contains("server.node_listen"), "{told}");
    assert_eq!(faults(&format!("{text}allow_remote = true\n"), &[]), [""; 0]);
    assert_eq!(faults("[server]\nnode_listen = \"[::1]:5011\"\n", &[]), [""; 0]);
}

#[test]
fn a_log_filter_is_levels_and_targets_and_no_misspelt_level() {
    let level = |level: &str| faults(&format!("[log]\nlevel = \"{level}\"\n"), &[]);
    for good in ["info", "OFF", "warn,utterd=debug", "utterd::store=trace", "a[span{k=1}]=debug"] {
        assert_eq!(level(good), [""; 0], "{good}");
    }
    for bad in ["", "inof", "utterd", "info,", "utterd=loud", "a=b=c"] {
        assert_eq!(level(bad).len(), 1, "{bad:?}");
    }
}

#[test]
fn the_environment_wins_over_the_file_in_every_type() {
    let text = "[server]\ndrain_ms = 1\nlisten = \"127.0.0.1:1\"\n[store]\nenabled = \"broken\"\n";
    let variables = [
        ("UTTERD_SERVER_DRAIN_MS", "2_000"),
        ("UTTERD_SERVER_DATA", "/var/lib/utterd"),
        ("UTTERD_STORE_ENABLED", "false"),
        ("UTTERD_SESSION_DELIVERY", "fast"),
        ("UTTERD_SEGMENTER_PCM_SILENCE_RMS", "0.5"),
        ("UTTERD_CONFIG", "/etc/utterd.toml"),
        ("UTTERDX", "not ours"),
        ("PATH", "/bin"),
    ];
    let mut expected = Config::default();
    expected.server.listen = "127.0.0.1:1".to_owned();
    expected.server.drain_ms = 2_000;
    expected.server.data = "/var/lib/utterd".into();
    expected.store.enabled = false;
    expected.session.delivery = Delivery::Fast;
    expected.segmenter.pcm_silence_rms = 0.5;
    assert_eq!(Config::parse(text, env(&variables)), Ok(expected));
}

#[test]
fn a_variable_at_fault_is_named() {
    let variables = [
        ("UTTERD_SEGMENTER_PAUS_MS", "1"),
        ("UTTERD_JOB_QUEUE_MAX", "many"),
        ("UTTERD_NODE_CPU_THRESHOLD_PERCENT", "NaN"),
        ("UTTERD_JOB_LEASE_MIN_MS", "60001"),
        ("UTTERD_POOLS", "[]"),
        ("UTTERD_TENANTS", "[]"),
        ("UTTERD_QQ", ""),
    ];
    let expected = [
        "job.lease_min_ms: contradicts job.lease_max_ms, given 60_001 against 60_000, \
         allowed: at most as much (variable UTTERD_JOB_LEASE_MIN_MS)",
        "job.queue_max: wrong type, given \"many\", allowed: integer, 1 to 10_000_000 jobs \
         (variable UTTERD_JOB_QUEUE_MAX)",
        "node.cpu_threshold_percent: out of range, given NaN, allowed: number, 0 to 100 percent \
         (variable UTTERD_NODE_CPU_THRESHOLD_PERCENT)",
        "UTTERD_POOLS: names no setting, pools are set in the file",
        "UTTERD_QQ: names no setting",
        "UTTERD_SEGMENTER_PAUS_MS: names no setting, did you mean UTTERD_SEGMENTER_PAUSE_MS",
        "UTTERD_TENANTS: names no setting, tenants are set in the file",
    ];
    assert_eq!(faults("", &variables), expected);
}

#[test]
fn every_setting_has_a_variable_of_its_own() {
    let mut config = Config::default();
    let known = check::known_settings(&mut config);
    let names: BTreeSet<String> = known.iter().map(|(s, k)| check::variable(s, k)).collect();
    assert_eq!(names.len(), known.len());
    assert!(names.contains("UTTERD_TRANSPORT_PING_INTERVAL_MS"), "{names:?}");
}

#[test]
fn a_file_that_is_no_toml_is_one_fault_with_its_place() {
    let Err(Faults(faults)) = Config::parse("[server]\ndrain_ms = = 3\n", no_env()) else {
        panic!("taken for TOML");
    };
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!((faults[0].key.as_str(), &faults[0].place), ("toml", &Place::Column(2, 12)));
    assert!(faults[0].to_string().ends_with(" (line 2, column 12)"), "{}", faults[0]);
}

#[test]
fn what_can_be_read_beside_what_is_no_toml_is_judged_too() {
    let text = "[server]\ndrain_ms = = 3\n[job]\nqueue_max = \"many\"\n[segmenter]\npause_ms = ?\n";
    let Err(faults) = Config::parse(text, no_env()) else { panic!("taken for TOML") };
    let told: Vec<_> = faults.0.iter().map(|fault| (&*fault.key, &fault.place)).collect();
    assert_eq!(
        told,
        [
            ("toml", &Place::Column(2, 12)),
            ("job.queue_max", &Place::Line(4)),
            ("toml", &Place::Column(6, 12)),
        ],
        "{faults}"
    );
}

#[test]
fn a_change_takes_over_what_may_change_and_names_the_rest() {
    let now = Config::parse("[job]\nqueue_max = 11\n", no_env()).unwrap();
    let text =
        "[job]\nqueue_max = 12\nhistory_max = 1\n[[pools]]\nname = \"a\"\npairs = [\"*:*\"]\n";
    let new = Config::load_placed(None, no_env()).unwrap();
    assert_eq!(Change::between(&Config::default(), new).unwrap().changed, []);
    let config = Config::parse(text, no_env()).unwrap();
    let change = Change::between(&now, config.into()).unwrap();
    let one = |setting: &str, from: Option<&str>, to: &str| Changed {
        setting: setting.to_owned(),
        from: from.map(str::to_owned),
        to: Some(to.to_owned()),
    };
    let pool = one("pools.a", None, "a table");
    assert_eq!(change.changed, [one("job.queue_max", Some("11"), "12"), pool]);
    assert_eq!(change.needs_restart, [one("job.history_max", Some("10_000"), "1")]);
    let effective = change.effective.config;
    assert_eq!((effective.job.queue_max, effective.job.history_max), (12, 10_000));
    assert_eq!(effective.pools.len(), 1);
    assert!(is_untold("webhook_secret") && !is_untold("session_keys_required"));
}

#[test]
fn sections_that_are_no_tables_are_named() {
    assert_eq!(fault("job = 3\n"), "job: wrong type, given 3, allowed: a table, [job] (line 1)");
    let pools =
        "pools: wrong type, given a table, allowed: tables, each begun by [[pools]] (line 1)";
    assert_eq!(fault("[pools]\nname = \"x\"\n"), pools);
    let item = "pools[0]: wrong type, given 3, allowed: tables, each begun by [[pools]] (line 1)";
    assert_eq!(fault("pools = [3]\n"), item);
}

#[test]
fn a_file_is_read_and_a_missing_one_is_a_fault() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("utterd.toml");
    let Err(Faults(faults)) = Config::load(Some(&path), no_env()) else { panic!("no such file") };
    assert_eq!(faults[0].key, path.display().to_string());
    std::fs::write(&path, "[job]\npending_ms = 7\n").unwrap();
    assert_eq!(Config::load(Some(&path), no_env()).unwrap().job.pending_ms, 7);
}

#[test]
fn pools_are_read_from_the_file() {
    let text = "[[pools]]\nname = \"a\"\npairs = [\"zh:*\"]\nrequired_services = [\"asr\"]\n\
                tenants = [\"t\"]\nweight = 5\npending_ms = 9\n[[pools]]\nname = \"b\"\n\
                pairs = [\"*:*\"]\n";
    let zh = PairPattern { src: Some("zh".parse().unwrap()), tgt: None };
    let first = Pool {
        name: "a".to_owned(),
        pairs: vec![zh],
        required_services: vec!["asr".to_owned()],
        tenants: vec!["t".to_owned()],
        weight: 5,
        pending_ms: Some(9),
        lease_base_ms: None,
        attempts_max: None,
    };
    let second = Pool { name: "b".to_owned(), pairs: vec![PairPattern::ANY], ..Pool::default() };
    assert_eq!(Config::parse(text, no_env()).unwrap().pools, [first, second]);
}

#[test]
fn tenants_are_read_from_the_file_and_follow_the_defaults_where_they_say_nothing() {
    let text = "[tenant]\njobs_max = 7\nsessions_max = 5\n[[tenants]]\nname = \"a b\"\n\
                weight = 3\njobs_max = 0\naudio_seconds_per_minute = 90\n";
    let config = Config::parse(text, no_env()).unwrap();
    assert_eq!(config.check(), Ok(()));
    let [listed] = &config.tenants[..] else { panic!("{:?}", config.tenants) };
    let expected = Tenant {
        name: "a b".to_owned(),
        weight: 3,
        sessions_max: Some(5),
        jobs_max: Some(0),
        messages_per_second: Some(0),
        audio_seconds_per_minute: Some(90),
    };
    assert_eq!(config.tenant.complete(listed), expected);
    let stranger = config.tenant.terms("x");
    assert_eq!((stranger.weight, stranger.jobs_max, stranger.sessions_max), (1, Some(7), Some(5)));
    let twice = Config { tenants: vec![listed.clone(), listed.clone()], ..Config::default() };
    assert_eq!(twice.check().unwrap_err().0.len(), 1);
    for bad in ["", "  ", "other", &"x".repeat(129)] {
        let told = faults(&format!("[[tenants]]\nname = \"{bad}\"\n"), &[]);
        assert_eq!(told.len(), 1, "{bad:?}: {told:?}");
    }
}

#[test]
fn pools_from_json_are_judged_like_those_from_the_file() {
    let good = r#"[{"name":"a","pairs":["zh:en"]},{"name":"b","pairs":["*:*"],"weight":1000}]"#;
    let pools: Vec<Pool> = serde_json::from_str(good).unwrap();
    let again: Vec<Pool> = serde_json::from_str(&serde_json::to_string(&pools).unwrap()).unwrap();
    assert_eq!(check_pools(pools.clone()), Ok(again));

    let bad = r#"[{"name":"a","pairs":[]},{"name":"a","pairs":["*:*"],"weight":1001,
        "attempts_max":0,"tenants":[" "]},{"pairs":["zh:en"]}]"#;
    let Err(Faults(faults)) = check_pools(serde_json::from_str(bad).unwrap()) else {
        panic!("bad pools were taken");
    };
    let keys: Vec<&str> = faults.iter().map(|fault| fault.key.as_str()).collect();
    let expected = [
        "pools[0].pairs",
        "pools[1].attempts_max",
        "pools[1].name",
        "pools[1].tenants",
        "pools[1].weight",
        "pools[2].name",
    ];
    assert_eq!(keys, expected);
    for refused in [r#"{"name":"a","pairs":["zhen"]}"#, r#"{"name":"a","wait":1}"#] {
        assert!(serde_json::from_str::<Pool>(refused).is_err(), "{refused}");
    }
    let mut config = Config { pools, ..Config::default() };
    assert_eq!(config.check(), Ok(()));
    config.pools[0].weight = 0;
    config.job.queue_max = config.job.live_max + 1;
    assert_eq!(config.check().unwrap_err().0.len(), 2);
}

#[test]
fn the_manual_has_a_row_for_every_setting() {
    let manual = reference_markdown();
    for (section, key) in check::known_settings(&mut Config::default()) {
        let (_, after) = manual.split_once(&format!("### `[{section}]`\n")).unwrap();
        let table = after.split("\n### ").next().unwrap();
        assert!(table.contains(&format!("\n| `{key}` | ")), "{section}.{key}");
    }
    let row = "| `session_message_bytes_max` | integer | `1_048_576` (1 MiB) | bytes | \
               4_096 to 67_108_864 | at a restart | Largest message a session may send. |\n";
    assert!(manual.contains(row), "{manual}");
    assert!(manual.contains("### `[[pools]]`\n") && manual.contains("### `[[tenants]]`\n"));
    assert!(manual.contains("| `name` | text | required | "), "{manual}");
    let rows = manual.lines().filter(|line| line.starts_with('|'));
    assert!(rows.clone().all(|row| row.replace("\\|", "").matches('|').count() == 8), "{manual}");
}

#[test]
fn foreign_keys_lead_to_settings_that_exist() {
    let known: BTreeSet<String> = check::known_settings(&mut Config::default())
        .iter()
        .map(|(section, key)| format!("{section}.{key}"))
        .collect();
    let mut theirs = BTreeSet::new();
    for (foreign, ours, note) in reference_keys() {
        assert!(theirs.insert(foreign), "{foreign} stands twice");
        assert!(ours.is_empty() || known.contains(*ours), "{foreign} leads to {ours}");
        assert!(!note.is_empty(), "{foreign} has no note");
    }
}

#[test]
fn certificates_come_with_their_keys_and_where_they_have_a_use() {
    let of = |text: &str| faults(text, &[]);
    let alone = of("[tls]\ncert = \"c\"\n");
    assert_eq!(alone.len(), 1, "{alone:#?}");
    let begins = "tls.cert: contradicts tls.key, given \"c\" against unset, allowed: both or";
    assert!(alone[0].starts_with(begins), "{alone:#?}");
    assert!(of("[tls]\nnode_key = \"k\"\n")[0].starts_with("tls.node_cert: contradicts"));
    let pair = "[tls]\ncert = \"c\"\nkey = \"k\"\n";
    assert_eq!(of(pair), [] as [String; 0]);
    // Sessions would have to show a certificate too.
    let shared = of(&format!("{pair}node_client_ca = \"ca\"\n"));
    assert_eq!(shared.len(), 1, "{shared:#?}");
    assert!(shared[0].starts_with("tls.node_client_ca: contradicts server.node_listen"));
    let apart = "[server]\nnode_listen = \"127.0.0.1:0\"\n";
    assert_eq!(of(&format!("{apart}{pair}node_client_ca = \"ca\"\n")), [] as [String; 0]);
    let plain = of(&format!("{apart}[tls]\nnode_client_ca = \"ca\"\n"));
    assert!(plain[0].starts_with("tls.node_client_ca: contradicts tls.cert"), "{plain:#?}");
    let own = "[tls]\nnode_cert = \"c\"\nnode_key = \"k\"\n";
    assert!(of(own)[0].starts_with("tls.node_cert: contradicts server.node_listen"));
    assert_eq!(of(&format!("{apart}{own}node_client_ca = \"ca\"\n")), [] as [String; 0]);
}

#[test]
fn an_origin_is_written_as_browsers_write_it() {
    for origin in ["https://a.example", "HTTP://localhost:8080", "http://[::1]:1", "app://talk"] {
        assert!(check::is_origin(origin), "{origin}");
    }
    for other in [
        "",
        "null",
        "a.example",
        "https://",
        "://a.example",
        "https://a.example/",
        "https://a.example/page",
        "https://*.example",
        "https://a b",
        "https://me@a.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://ä.example",
    ] {
        assert!(!check::is_origin(other), "{other}");
    }
    let listed = [("UTTERD_TRANSPORT_ALLOWED_ORIGINS", "https://a.example, http://localhost:1")];
    let config = Config::parse("", env(&listed)).unwrap();
    assert_eq!(config.transport.allowed_origins, ["https://a.example", "http://localhost:1"]);
    let none = [("UTTERD_TRANSPORT_ALLOWED_ORIGINS", "")];
    let text = "[transport]\nallowed_origins = [\"https://a.example\"]\n";
    assert_eq!(Config::parse(text, env(&none)).unwrap(), Config::default());
}

#[test]
fn traces_go_to_a_collector_over_plain_http() {
    for endpoint in ["http://10.0.0.2:4318/v1/traces", "http://collector/v1/traces"] {
        let text = format!("[telemetry]\notlp_endpoint = \"{endpoint}\"\n");
        assert_eq!(faults(&text, &[]), [""; 0], "{endpoint}");
    }
    for endpoint in ["", "collector:4318", "https://collector/v1/traces", "http://", "/v1/traces"] {
        let text = format!("[telemetry]\notlp_endpoint = \"{endpoint}\"\n");
        assert_eq!(faults(&text, &[]).len(), 1, "{endpoint}");
    }
}
