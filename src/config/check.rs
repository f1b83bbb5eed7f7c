//! Whether what was written can be meant, with every fault named at once.
//!
//! Takes loose entries, fills the typed sections from them, and judges values one by one and
//! against each other. It refuses to know the settings themselves, save for the rules that tie two
//! of them together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::raw::{self, Entry, Given};
use super::setting::{Allowed, Field, Misread, Section, Value};
use super::{Config, Loaded, OTHER_VARIABLES, Pool, VARIABLE_PREFIX, reference_keys};
use crate::protocol::limits::ID_BYTES_MAX;

/// Everything that is wrong with a configuration, in the order of its places. Never empty when
/// returned as an error.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Faults(pub Vec<Fault>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The setting as `section.key`, or the section, variable or file that is at fault.
    pub key: String,
    /// What is wrong with it.
    pub wrong: String,
    /// What was written, cut short when long.
    pub given: Option<String>,
    /// What would be taken instead, or what was probably meant.
    pub allowed: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// Where something was written; places sort by line, then variables by name.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Line of the file, from 1.
    Line(usize),
    /// Line and column of the file, from 1.
    Column(usize, usize),
    /// Environment variable.
    Variable(String),
    /// Nowhere: a default, or a value that came from code.
    Nowhere,
}

impl Place {
    fn order(&self) -> (u8, usize, usize, &str) {
        match self {
            Self::Line(line) => (0, *line, 0, ""),
            Self::Column(line, column) => (0, *line, *column, ""),
            Self::Variable(name) => (1, 0, 0, name),
            Self::Nowhere => (2, 0, 0, ""),
        }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            let newline = if i == 0 { "" } else { "\n" };
            write!(f, "{newline}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.wrong)?;
        if let Some(given) = &self.given {
            write!(f, ", given {given}")?;
        }
        if let Some(allowed) = &self.allowed {
            write!(f, ", {allowed}")?;
        }
        match &self.place {
            Place::Line(line) => write!(f, " (line {line})"),
            Place::Column(line, column) => write!(f, " (line {line}, column {column})"),
            Place::Variable(name) if *name != self.key => write!(f, " (variable {name})"),
            Place::Variable(_) | Place::Nowhere => Ok(()),
        }
    }
}

/// What the file holds as lists of tables.
const LISTS: [&str; 2] = ["pools", "tenants"];

/// Two settings that must agree.
struct Rule {
    /// The setting blamed, and the one it disagrees with.
    keys: [&'static str; 2],
    /// Whether they agree.
    agree: fn(&Config) -> bool,
    /// What would agree, in words.
    wanted: &'static str,
}

/// Every tie between two settings.
const RULES: &[Rule] = &[
    Rule {
        keys: ["server.listen", "server.allow_remote"],
        agree: |c| c.server.listens_on_loopback() || c.server.allow_remote,
        wanted: "a loopback address, or server.allow_remote = true to let other machines in",
    },
    Rule {
        keys: ["server.node_listen", "server.allow_remote"],
        agree: |c| c.server.node_listens_on_loopback() || c.server.allow_remote,
        wanted: "a loopback address, or server.allow_remote = true to let other machines in",
    },
    Rule {
        keys: ["tls.cert", "tls.key"],
        agree: |c| c.tls.cert.is_some() == c.tls.key.is_some(),
        wanted: "both or neither",
    },
    Rule {
        keys: ["tls.node_cert", "tls.node_key"],
        agree: |c| c.tls.node_cert.is_some() == c.tls.node_key.is_some(),
        wanted: "both or neither",
    },
    Rule {
        keys: ["tls.node_cert", "server.node_listen"],
        agree: |c| c.tls.node_cert.is_none() || c.server.node_listen.is_some(),
        wanted: "only with an address of their own for nodes",
    },
    Rule {
        keys: ["tls.node_client_ca", "server.node_listen"],
        agree: |c| c.tls.node_client_ca.is_none() || c.server.node_listen.is_some(),
        wanted: "only with an address of their own for nodes, or sessions would need one too",
    },
    Rule {
        keys: ["tls.node_client_ca", "tls.cert"],
        agree: |c| {
            let shown = c.tls.cert.is_some() || c.tls.node_cert.is_some();
            c.tls.node_client_ca.is_none() || shown
        },
        wanted: "only with a certificate of the server, in tls.cert or tls.node_cert",
    },
    Rule {
        keys: ["transport.node_outbox_bytes_max", "transport.session_message_bytes_max"],
        agree: |c| c.transport.node_outbox_bytes_max >= c.transport.session_message_bytes_max,
        wanted: "at least as much, or a session's message could never reach a node",
    },
    Rule {
        keys: ["transport.session_outbox_bytes_max", "transport.node_message_bytes_max"],
        agree: |c| {
            c.transport.session_outbox_bytes_max >= c.transport.node_message_bytes_max + (2 << 20)
        },
        wanted: "at least 2 MiB more, or a node's result could never reach a session",
    },
    Rule {
        keys: ["transport.sessions_outbox_bytes_max", "transport.session_outbox_bytes_max"],
        agree: |c| c.transport.sessions_outbox_bytes_max >= c.transport.session_outbox_bytes_max,
        wanted: "at least as much: it is what all sessions may have together",
    },
    Rule {
        keys: ["transport.node_outbox_bytes_max", "segmenter.max_bytes"],
        agree: |c| c.transport.node_outbox_bytes_max / 2 >= c.segmenter.max_bytes,
        wanted: "at least twice as much, or an encoded utterance could never reach a node",
    },
    Rule {
        keys: ["transport.node_outbox_bytes_max", "gateway.recording_bytes_max"],
        agree: |c| c.transport.node_outbox_bytes_max / 2 >= c.gateway.recording_bytes_max,
        wanted: "at least twice as much, or an encoded recording could never reach a node",
    },
    Rule {
        keys: ["job.lease_min_ms", "job.lease_max_ms"],
        agree: |c| c.job.lease_min_ms <= c.job.lease_max_ms,
        wanted: "at most as much",
    },
    Rule {
        keys: ["job.node_deaths_max", "job.attempts_max"],
        agree: |c| c.job.node_deaths_max <= c.job.attempts_max,
        wanted: "at most as much",
    },
    Rule {
        keys: ["job.queue_max", "job.live_max"],
        agree: |c| c.job.queue_max <= c.job.live_max,
        wanted: "at most as much",
    },
    Rule {
        keys: ["node.slots_default", "node.slots_max"],
        agree: |c| c.node.slots_default <= c.node.slots_max,
        wanted: "at most as much",
    },
    Rule {
        keys: ["node.failure_count", "node.failure_window"],
        agree: |c| c.node.failure_count <= c.node.failure_window,
        wanted: "at most as much",
    },
    Rule {
        keys: ["node.failure_consecutive", "node.failure_window"],
        agree: |c| c.node.failure_consecutive <= c.node.failure_window,
        wanted: "at most as much",
    },
    Rule {
        keys: ["node.quarantine_ms", "node.quarantine_max_ms"],
        agree: |c| c.node.quarantine_ms <= c.node.quarantine_max_ms,
        wanted: "at most as much",
    },
];

/// Reads a file's text and the environment into a configuration without faults.
pub(super) fn read(
    text: &str,
    env: impl Iterator<Item = (String, String)>,
) -> Result<Loaded, Faults> {
    let mut judge = Judge::default();
    let mut config = Config::default();
    let (mut written, faults) = raw::parse(text);
    judge.faults.extend(faults);
    judge.overlay(&mut written, env, &mut config);
    for section in config.sections() {
        let name = section.name();
        let (entries, place) = judge.take_table(&mut written, name);
        judge.section(section, name, entries, place);
    }
    config.pools = judge.list(&mut written, "pools");
    judge.names("pools", config.pools.iter().map(|pool| &*pool.name));
    config.tenants = judge.list(&mut written, "tenants");
    judge.names("tenants", config.tenants.iter().map(|tenant| &*tenant.name));
    for entry in written {
        judge.unknown_section(&entry, &mut config);
    }
    judge.rules(&mut config);
    judge.leave_out_what_follows_from_no_toml();
    let places = judge.places.clone();
    judge.verdict(Loaded { config, places })
}

/// Judges a configuration made in code.
pub(super) fn judge(config: &Config) -> Result<(), Faults> {
    let mut judge = Judge::default();
    let mut config = config.clone();
    for section in config.sections() {
        let name = section.name();
        judge.section(section, name, Vec::new(), Place::Nowhere);
    }
    judge.pools(&mut config.pools);
    for (i, tenant) in config.tenants.iter_mut().enumerate() {
        judge.section(tenant, &format!("tenants[{i}]"), Vec::new(), Place::Nowhere);
    }
    judge.names("tenants", config.tenants.iter().map(|tenant| &*tenant.name));
    judge.rules(&mut config);
    judge.verdict(())
}

/// Judges a list of pools, such as one sent to the admin API, and hands it back when there is no
/// fault in it.
pub fn check_pools(mut pools: Vec<Pool>) -> Result<Vec<Pool>, Faults> {
    let mut judge = Judge::default();
    judge.pools(&mut pools);
    judge.verdict(pools)
}

/// Whether a text is a host and a port.
pub(super) fn is_host_port(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok() {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let digits = |c: char| c.is_ascii_digit() || c == '.';
    let number = host.chars().all(digits) && host.parse::<Ipv4Addr>().is_err();
    let name = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    !number
        && !host.is_empty()
        && host.chars().all(name)
        && port.chars().all(|c| c.is_ascii_digit())
        && port.parse::<u16>().is_ok()
}

/// Whether a text is an origin as a browser writes it: no path, and no port that is the scheme's.
pub(super) fn is_collector(text: &str) -> bool {
    let Ok(uri) = text.parse::<hyper::Uri>() else { return false };
    uri.scheme_str() == Some("http") && uri.host().is_some_and(|host| !host.is_empty())
}

pub(super) fn is_origin(text: &str) -> bool {
    let Some((scheme, place)) = text.split_once("://") else { return false };
    let usual = match scheme.to_ascii_lowercase().as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let host = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '?' | '#' | '@' | ',' | '*');
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(word)
        && !place.is_empty()
        && place.chars().all(host)
        && (usual.is_empty() || !place.ends_with(usual))
}

/// Whether a text can filter the log. A bare word must be a level: as a target it would silence all
/// others.
pub(super) fn is_log_filter(text: &str) -> bool {
    let bare = |part: &str| !part.contains(['=', '[', ']', '{', '}']);
    let fine = |part: &str| {
        !part.trim().is_empty() && (!bare(part) || LevelFilter::from_str(part.trim()).is_ok())
    };
    text.split(',').all(fine) && EnvFilter::try_new(text).is_ok()
}

/// Whether a text can name a pool.
pub(super) fn is_pool_name(text: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    (1..=64).contains(&text.len()) && text.bytes().all(fine)
}

/// Whether a text can name a tenant. The longest is the longest that a session may name; `other`
/// stands for all that are not listed.
pub(super) fn is_tenant_name(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= ID_BYTES_MAX && text != "other"
}

/// The faults found so far, and where each setting was written.
#[derive(Default)]
struct Judge {
    faults: Vec<Fault>,
    places: BTreeMap<String, Place>,
}

impl Judge {
    fn verdict<T>(mut self, value: T) -> Result<T, Faults> {
        if self.faults.is_empty() {
            return Ok(value);
        }
        self.faults.sort_by(|a, b| (a.place.order(), &a.key).cmp(&(b.place.order(), &b.key)));
        Err(Faults(self.faults))
    }

    /// Of a line that is no TOML only the first fault says anything: what could be read of it is
    /// not what was meant.
    fn leave_out_what_follows_from_no_toml(&mut self) {
        let line = |fault: &Fault| match fault.place {
            Place::Line(line) | Place::Column(line, _) => Some(line),
            Place::Variable(_) | Place::Nowhere => None,
        };
        let no_toml = self.faults.iter().filter(|fault| fault.key == raw::NO_TOML);
        let mut unread: BTreeMap<usize, bool> =
            no_toml.filter_map(line).map(|line| (line, false)).collect();
        self.faults.retain(|fault| {
            let told = line(fault).and_then(|line| unread.get_mut(&line));
            told.is_none_or(|told| fault.key == raw::NO_TOML && !std::mem::replace(told, true))
        });
    }

    fn fault(
        &mut self,
        key: impl Into<String>,
        wrong: impl Into<String>,
        given: Option<String>,
        allowed: Option<String>,
        place: Place,
    ) {
        let (key, wrong, given) = (key.into(), wrong.into(), given.map(|text| shortened(&text)));
        self.faults.push(Fault { key, wrong, given, allowed, place });
    }

    /// Lays the variables over what the file says; those that name no setting are faults.
    fn overlay(
        &mut self,
        written: &mut Vec<Entry>,
        env: impl Iterator<Item = (String, String)>,
        config: &mut Config,
    ) {
        let known = known_settings(config);
        for (name, value) in env {
            if !name.starts_with(VARIABLE_PREFIX) || OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let place = Place::Variable(name.clone());
            let setting = known.iter().find(|(section, key)| variable(section, key) == name);
            let Some((section, key)) = setting else {
                let names = known.iter().map(|(section, key)| variable(section, key));
                let hint = match nearest(&name, names) {
                    Some(near) => Some(format!("did you mean {near}")),
                    None => LISTS
                        .iter()
                        .find(|list| name == variable(list, "").trim_end_matches('_'))
                        .map(|list| format!("{list} are set in the file")),
                };
                self.fault(name, "names no setting", None, hint, place);
                continue;
            };
            let given = Given::Variable(value);
            let entry = Entry { key: (*key).to_owned(), given, place: place.clone() };
            let same = written.iter_mut().find(|table| table.key == *section);
            match same.map(|table| &mut table.given) {
                Some(Given::Table(entries)) => {
                    entries.retain(|old| old.key != *key);
                    entries.push(entry);
                }
                // Not a table: a fault of its own, found when the section is read.
                Some(_) => {}
                None => {
                    let given = Given::Table(vec![entry]);
                    written.push(Entry { key: (*section).to_owned(), given, place });
                }
            }
        }
    }

    /// Takes a section out of what was written; no entries when it is not there or no table.
    fn take_table(&mut self, written: &mut Vec<Entry>, name: &str) -> (Vec<Entry>, Place) {
        let Some(at) = written.iter().position(|entry| entry.key == name) else {
            return (Vec::new(), Place::Nowhere);
        };
        let Entry { given, place, .. } = written.remove(at);
        match given {
            Given::Table(entries) => (entries, place),
            other => {
                let allowed = format!("allowed: a table, [{name}]");
                let given = Some(other.to_string());
                self.fault(name, "wrong type", given, Some(allowed), place.clone());
                (Vec::new(), place)
            }
        }
    }

    /// Fills a section from its entries and judges each value of it.
    fn section(
        &mut self,
        section: &mut dyn Section,
        path: &str,
        mut entries: Vec<Entry>,
        home: Place,
    ) {
        let mut keys = Vec::new();
        section.each(&mut |field, value| {
            keys.push(field.key);
            let at = entries.iter().position(|entry| entry.key == field.key);
            let entry = at.map(|at| entries.remove(at));
            self.setting(path, field, value, entry, &home);
        });
        for entry in entries {
            let key = format!("{path}.{}", entry.key);
            let hint = hint(&key, &entry.key, &keys);
            let given = Some(entry.given.to_string());
            self.fault(key, "no such setting", given, hint, entry.place);
        }
    }

    /// Fills and judges one setting.
    fn setting(
        &mut self,
        path: &str,
        field: &Field,
        value: &mut dyn Value,
        entry: Option<Entry>,
        home: &Place,
    ) {
        let key = format!("{path}.{}", field.key);
        let allowed = Some(format!("allowed: {}", allowed_words(field, value.kind())));
        let missing = entry.is_none() && *home != Place::Nowhere;
        let place = entry.as_ref().map_or_else(|| home.clone(), |entry| entry.place.clone());
        if let Some(entry) = entry {
            let wrong = match value.read(&entry.given) {
                Ok(()) => None,
                Err(Misread::Type) => Some("wrong type".to_owned()),
                Err(Misread::Range) => Some(refusal(&field.allowed).to_owned()),
                Err(Misread::Part(words)) => Some(words),
            };
            if let Some(wrong) = wrong {
                return self.fault(key, wrong, Some(entry.given.to_string()), allowed, place);
            }
            self.places.insert(key.clone(), place.clone());
        }
        if value.fits(&field.allowed) {
            return;
        }
        match missing {
            true => self.fault(key, "missing", None, allowed, place),
            false => {
                let wrong = refusal(&field.allowed);
                self.fault(key, wrong, Some(value.show()), allowed, place)
            }
        }
    }

    /// Judges pools made in code.
    fn pools(&mut self, pools: &mut [Pool]) {
        for (i, pool) in pools.iter_mut().enumerate() {
            self.section(pool, &format!("pools[{i}]"), Vec::new(), Place::Nowhere);
        }
        self.names("pools", pools.iter().map(|pool| &*pool.name));
    }

    /// Reads every `[[name]]` table.
    fn list<T: Section + Default>(&mut self, written: &mut Vec<Entry>, name: &str) -> Vec<T> {
        let Some(at) = written.iter().position(|entry| entry.key == name) else {
            return Vec::new();
        };
        let Entry { given, place, .. } = written.remove(at);
        let allowed = || Some(format!("allowed: tables, each begun by [[{name}]]"));
        let Given::List(items) = given else {
            self.fault(name, "wrong type", Some(given.to_string()), allowed(), place);
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (i, item) in items.into_iter().enumerate() {
            let path = format!("{name}[{i}]");
            let mut table = T::default();
            match item.given {
                Given::Table(entries) => self.section(&mut table, &path, entries, item.place),
                other => {
                    self.fault(path, "wrong type", Some(other.to_string()), allowed(), item.place)
                }
            }
            tables.push(table);
        }
        tables
    }

    /// No two of a list may be called alike.
    fn names<'a>(&mut self, list: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeMap::new();
        for (i, name) in names.enumerate().filter(|(_, name)| !name.is_empty()) {
            let key = format!("{list}[{i}].name");
            if let Some(first) = seen.get(name) {
                let place = self.places.get(&key).cloned().unwrap_or(Place::Nowhere);
                let wrong = format!("already the name of {list}[{first}]");
                let given = Some(format!("{name:?}"));
                self.fault(key, wrong, given, Some("allowed: names all different".into()), place);
            } else {
                seen.insert(name, i);
            }
        }
    }

    /// A top-level entry that is no section: named itself, and so is every key in it that has a
    /// name here.
    fn unknown_section(&mut self, entry: &Entry, config: &mut Config) {
        let mut names: Vec<&str> = config.sections().iter().map(|section| section.name()).collect();
        names.extend(LISTS);
        let hint = nearest(&entry.key, names.iter().map(ToString::to_string))
            .map(|near| format!("did you mean {near}"))
            .unwrap_or_else(|| format!("allowed: {}", names.join(", ")));
        self.fault(&entry.key, "no such section", None, Some(hint), entry.place.clone());
        self.foreign_keys(&entry.key, &entry.given);
    }

    fn foreign_keys(&mut self, path: &str, given: &Given) {
        let Given::Table(entries) = given else { return };
        for entry in entries {
            let key = format!("{path}.{}", entry.key);
            if let Some(hint) = foreign(&key) {
                let given = Some(entry.given.to_string());
                self.fault(&key, "no such setting", given, Some(hint), entry.place.clone());
            }
            self.foreign_keys(&key, &entry.given);
        }
    }

    /// Judges settings against each other; a setting already at fault is left alone.
    fn rules(&mut self, config: &mut Config) {
        let faulty: BTreeSet<String> = self.faults.iter().map(|fault| fault.key.clone()).collect();
        for rule in RULES {
            let [key, other] = rule.keys;
            if rule.keys.iter().any(|key| faulty.contains(*key)) || (rule.agree)(config) {
                continue;
            }
            let place = rule.keys.iter().find_map(|key| self.places.get(*key)).cloned();
            let given = format!("{} against {}", shown(config, key), shown(config, other));
            let wrong = format!("contradicts {other}");
            let allowed = Some(format!("allowed: {}", rule.wanted));
            self.fault(key, wrong, Some(given), allowed, place.unwrap_or(Place::Nowhere));
        }
    }
}

/// The type and the range of a setting in words; a choice is described by its words alone.
fn allowed_words(field: &Field, kind: &str) -> String {
    let range = field.allowed.describe(field.unit);
    match field.allowed {
        Allowed::Any => kind.to_owned(),
        Allowed::OneOf(_) => range,
        Allowed::Text(..) | Allowed::List(..) => format!("{kind} ({range})"),
        Allowed::Whole(..) | Allowed::Real(..) => format!("{kind}, {range}"),
    }
}

/// What to say of a value that is of the type and not allowed.
fn refusal(allowed: &Allowed) -> &'static str {
    match allowed {
        Allowed::Whole(..) | Allowed::Real(..) => "out of range",
        _ => "not accepted",
    }
}

/// Every setting that a variable can name, as section and key.
pub(super) fn known_settings(config: &mut Config) -> Vec<(&'static str, &'static str)> {
    let mut known = Vec::new();
    for section in config.sections() {
        let name = section.name();
        section.each(&mut |field, _| known.push((name, field.key)));
    }
    known
}

/// Name of the variable of a setting.
pub(super) fn variable(section: &str, key: &str) -> String {
    format!("{VARIABLE_PREFIX}{section}_{key}").to_ascii_uppercase()
}

/// The value of `section.key` as it would be written; `unset` if there is none.
fn shown(config: &mut Config, path: &str) -> String {
    let mut text = String::new();
    for section in config.sections() {
        let name = section.name();
        section.each(&mut |field, value| {
            if path == format!("{name}.{}", field.key) {
                text = value.show();
            }
        });
    }
    if text.is_empty() { "unset".to_owned() } else { text }
}

/// What was probably meant by an unknown key: its name in the system it came from, or the nearest
/// name here.
fn hint(path: &str, key: &str, keys: &[&str]) -> Option<String> {
    foreign(path).or_else(|| {
        let near = nearest(key, keys.iter().map(ToString::to_string));
        near.map(|near| format!("did you mean {near}"))
    })
}

fn foreign(path: &str) -> Option<String> {
    let (_, ours, _) = reference_keys().iter().find(|(theirs, ..)| *theirs == path)?;
    (!ours.is_empty()).then(|| format!("here it is {ours}"))
}

/// The name nearest to what was written, when one is near at all.
fn nearest(written: &str, names: impl Iterator<Item = String>) -> Option<String> {
    let bare = |name: &str| name.strip_prefix(VARIABLE_PREFIX).unwrap_or(name).to_owned();
    let written = bare(written);
    let near = |name: &String| distance(&written, &bare(name));
    let best = names.min_by_key(near)?;
    (near(&best) <= (written.len() / 3).max(1)).then_some(best)
}

/// Letters to insert, delete or replace to get from one text to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = corner + usize::from(x != *y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// At most 80 characters of a text.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
