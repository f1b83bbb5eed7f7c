//! The log on standard error: set up once, its filter exchangeable while running.
//!
//! Refuses to know what is logged.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::{Level, Metadata};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config;

/// The log could not be set up or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The text is no filter; the words say why.
    #[error("not a log filter: {0}")]
    Filter(String),
    /// Another part of the process set up a log of its own before.
    #[error("the log was set up elsewhere and cannot be changed")]
    Foreign,
}

/// A hold on the running log. Dropping it changes nothing.
#[derive(Clone, Debug)]
pub struct Handle {
    /// None when the log is not ours.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

/// The first handle made; later calls get the same log.
static RUNNING: OnceLock<Handle> = OnceLock::new();

/// Sends the log to standard error as configured.
///
/// A process has one log: called again, this changes its filter and keeps its format. Where another
/// subscriber is already set (in tests), that one stays and the handle says so.
pub fn init(log: &config::Log) -> Result<Handle, LogError> {
    let filter = parse(&log.level)?;
    let mut first = false;
    let handle = RUNNING.get_or_init(|| {
        first = true;
        start(log.format, filter)
    });
    if !first && handle.is_ours() {
        handle.set_level(&log.level)?;
    }
    Ok(handle.clone())
}

/// The log of this process, if it was set up here.
pub fn running() -> Option<Handle> {
    RUNNING.get().cloned()
}

impl Handle {
    /// Whether the log of this process is the one set up here.
    pub fn is_ours(&self) -> bool {
        self.filter.is_some()
    }

    /// Exchanges the filter; the same text as `log.level`.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let filter = parse(level)?;
        let held = self.filter.as_ref().ok_or(LogError::Foreign)?;
        held.reload(filter).map_err(|_| LogError::Foreign)
    }

    /// The filter in force; empty when the log is not ours.
    pub fn level(&self) -> String {
        let held = self.filter.as_ref();
        held.and_then(|held| held.with_current(EnvFilter::to_string).ok()).unwrap_or_default()
    }
}

/// These write what passes through them into the log, which may be what somebody said or a
/// credential. Whatever the filter asks for, of theirs only warnings are written.
const INDISCREET: [&str; 7] =
    ["tungstenite", "tokio_tungstenite", "hyper", "hyper_util", "rustls", "tokio_rustls", "toml"];

/// Whether an event may be written at all.
fn discreet(event: &Metadata<'_>) -> bool {
    let module = event.target().split("::").next().unwrap_or_default();
    *event.level() <= Level::WARN || !INDISCREET.contains(&module)
}

/// A text without what a terminal, or who reads a file of lines, would take for something else:
/// peers choose their names, and could write lines of ours.
fn harmless(text: &str) -> Cow<'_, str> {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let strange = |c: char| c.is_control() || turns(c) || matches!(c, '\u{2028}' | '\u{2029}');
    if !text.contains(strange) {
        return Cow::Borrowed(text);
    }
    let written = |c: char| match strange(c) {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    Cow::Owned(text.chars().map(written).collect())
}

fn parse(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::try_new(level).map_err(|error| LogError::Filter(error.to_string()))
}

fn start(format: config::LogFormat, filter: EnvFilter) -> Handle {
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        config::LogFormat::Pretty => {
            let fields = debug_fn(|out, field, value| match field.name() {
                "message" => write!(out, "{}", harmless(&format!("{value:?}"))),
                name => write!(out, "{name}={}", harmless(&format!("{value:?}"))),
            });
            let lines = lines.with_ansi(std::io::stderr().is_terminal()).compact();
            lines.fmt_fields(fields.delimited(" ")).boxed()
        }
        config::LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(filter_fn(discreet));
    let set = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Handle { filter: set.is_ok().then_some(handle) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_a_line_or_an_order_of_its_own_is_written_out() {
        assert!(matches!(harmless("node-1 äöü 你好"), Cow::Borrowed(_)));
        assert_eq!(harmless("a\r\nb\x1b[31m"), "a\\r\\nb\\u{1b}[31m");
        assert_eq!(harmless("\u{202e}x\u{2028}y"), "\\u{202e}x\\u{2028}y");
    }

    #[test]
    fn a_second_start_keeps_the_log_and_changes_its_filter() {
        let mut log = config::Log::default();
        let first = init(&log).unwrap();
        log.level = "warn,utterd=debug".to_owned();
        let second = init(&log).unwrap();
        if first.is_ours() {
            assert_eq!(first.level(), second.level());
            assert!(first.level().contains("utterd=debug"), "{}", first.level());
            assert_eq!(second.set_level("a=b=c"), Err(parse("a=b=c").unwrap_err()));
            second.set_level("off").unwrap();
            assert!(first.level().ends_with("off"), "{}", first.level());
        } else {
            assert_eq!(second.set_level("off"), Err(LogError::Foreign));
        }
    }
}
