//! What was written: the file and the environment as tables of loose values, each with its place.
//!
//! Reads TOML and remembers line numbers. It refuses to know which sections and keys exist, and
//! what they mean.

use std::fmt;

use toml::de::{DeTable, DeValue};

use super::check::{Fault, Place};
use super::setting::grouped;

/// A value before anybody knows what it should be.
#[derive(Debug)]
pub(super) enum Given {
    /// A TOML string.
    Text(String),
    /// A TOML integer; those beyond 128 bits are cut to the nearest.
    Whole(i128),
    /// A TOML float.
    Real(f64),
    /// A TOML boolean.
    Truth(bool),
    /// A TOML array.
    List(Vec<Entry>),
    /// A TOML table.
    Table(Vec<Entry>),
    /// A TOML date or time, which no setting wants.
    Moment(String),
    /// The text of an environment variable, to be read as whatever its setting needs.
    Variable(String),
}

/// A value under a key, and where it stands.
#[derive(Debug)]
pub(super) struct Entry {
    /// The key; empty for an item of a list.
    pub(super) key: String,
    /// The value.
    pub(super) given: Given,
    /// Where it was written.
    pub(super) place: Place,
}

/// What is at fault where a file is no TOML.
pub(super) const NO_TOML: &str = "toml";

/// Reads a TOML text into its top-level entries, as far as it can be read, with a fault for each
/// place where it is no TOML.
pub(super) fn parse(text: &str) -> (Vec<Entry>, Vec<Fault>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let fault = |error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        Fault {
            key: NO_TOML.to_owned(),
            wrong: error.message().to_owned(),
            given: None,
            allowed: None,
            place: Place::Column(line(text, at), column(text, at)),
        }
    };
    (entries(table.get_ref(), text), errors.into_iter().map(fault).collect())
}

fn entries(table: &DeTable<'_>, text: &str) -> Vec<Entry> {
    let mut entries: Vec<(usize, Entry)> = table
        .iter()
        .map(|(key, value)| {
            let at = key.span().start;
            let given = given(value.get_ref(), text);
            let place = Place::Line(line(text, at));
            (at, Entry { key: key.get_ref().to_string(), given, place })
        })
        .collect();
    entries.sort_by_key(|(at, _)| *at);
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn given(value: &DeValue<'_>, text: &str) -> Given {
    match value {
        DeValue::String(s) => Given::Text(s.to_string()),
        DeValue::Integer(n) => {
            let edge = if n.as_str().starts_with('-') { i128::MIN } else { i128::MAX };
            Given::Whole(i128::from_str_radix(n.as_str(), n.radix()).unwrap_or(edge))
        }
        DeValue::Float(n) => Given::Real(n.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(b) => Given::Truth(*b),
        DeValue::Datetime(d) => Given::Moment(d.to_string()),
        DeValue::Array(items) => Given::List(
            items
                .iter()
                .map(|item| Entry {
                    key: String::new(),
                    given: given(item.get_ref(), text),
                    place: Place::Line(line(text, item.span().start)),
                })
                .collect(),
        ),
        DeValue::Table(table) => Given::Table(entries(table, text)),
    }
}

/// Line of a byte offset, counted from 1.
fn line(text: &str, at: usize) -> usize {
    1 + text.as_bytes().iter().take(at).filter(|b| **b == b'\n').count()
}

/// Column of a byte offset in characters, counted from 1.
fn column(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or(text);
    1 + before.chars().rev().take_while(|c| *c != '\n').count()
}

impl Given {
    /// The value as text.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Variable(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a whole number.
    pub(super) fn whole(&self) -> Option<i128> {
        match self {
            Self::Whole(n) => Some(*n),
            Self::Variable(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        }
    }

    /// The value as a number.
    pub(super) fn real(&self) -> Option<f64> {
        match self {
            Self::Real(n) => Some(*n),
            Self::Whole(n) => Some(*n as f64),
            Self::Variable(text) => text.trim().replace('_', "").parse().ok(),
            _ => None,
        }
    }

    /// The value as true or false.
    pub(super) fn truth(&self) -> Option<bool> {
        match self {
            Self::Truth(b) => Some(*b),
            Self::Variable(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// The value as a list of texts; a variable has them split by commas.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        match self {
            Self::List(items) => {
                items.iter().map(|item| item.given.text().map(str::to_owned)).collect()
            }
            Self::Variable(text) => {
                let parts = text.split(',').map(|part| part.trim().to_owned());
                Some(parts.filter(|part| !part.is_empty()).collect())
            }
            _ => None,
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Variable(text) => write!(f, "{text:?}"),
            Self::Whole(n) => f.write_str(&grouped(&n.to_string())),
            Self::Real(n) => write!(f, "{n:?}"),
            Self::Truth(b) => write!(f, "{b}"),
            Self::Moment(text) => f.write_str(text),
            Self::Table(_) => f.write_str("a table"),
            Self::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    let comma = if i == 0 { "" } else { ", " };
                    write!(f, "{comma}{}", item.given)?;
                }
                f.write_str("]")
            }
        }
    }
}
