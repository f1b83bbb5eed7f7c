//! What a node says for clients, and nobody reads here.
//!
//! It is kept as the text it came as: as a tree of values it would be many times as long, by the
//! choice of who wrote it. So that a client can read it, it is looked through once.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::terse;

/// JSON that is passed on as it came.
#[derive(Clone)]
pub struct Passed(Box<RawValue>);

impl Passed {
    /// Keeps the text of a value; none if a strict reader could not read it.
    pub(super) fn read(raw: &RawValue) -> Option<Self> {
        terse::from_str::<Readable>(raw.get()).ok()?;
        Some(Self(raw.to_owned()))
    }

    /// A value of ours.
    pub(super) fn of(value: &impl Serialize) -> Option<Self> {
        serde_json::value::to_raw_value(value).ok().map(Self)
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// Whether it is text, and which.
    pub fn as_str(&self) -> Option<Cow<'_, str>> {
        terse::from_str(self.get()).ok().map(Cow::<str>::Owned)
    }

    /// Whether it is an object.
    pub(super) fn is_object(&self) -> bool {
        self.get().starts_with('{')
    }

    /// Whether it is text.
    pub(super) fn is_string(&self) -> bool {
        self.get().starts_with('"')
    }

    /// Whether it is a number.
    pub(super) fn is_number(&self) -> bool {
        self.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
    }

    /// Whether it is a list of texts.
    pub(super) fn is_strings(&self) -> bool {
        terse::from_str::<Texts>(self.get()).is_ok()
    }
}

impl fmt::Debug for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

impl Serialize for Passed {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(s)
    }
}

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(d)?;
        Self::read(raw).ok_or_else(|| D::Error::custom("not readable"))
    }
}

type Fits = fn(&Passed) -> bool;

/// Keys of a node's `extra` that reach clients, each with the test its value must pass.
const EXTRA_KEYS: [(&str, Fits); 7] = [
    ("emotion", Passed::is_string),
    ("speech_rate", Passed::is_number),
    ("voice_style", Passed::is_string),
    ("service_timings", Passed::is_object),
    ("language_probability", Passed::is_number),
    ("language_probabilities", Passed::is_object),
    ("reason", Passed::is_string),
];

/// What of a node's `extra` reaches clients.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Extra(pub BTreeMap<&'static str, Passed>);

impl<'de> Deserialize<'de> for Extra {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ExtraVisitor;
        impl<'de> Visitor<'de> for ExtraVisitor {
            type Value = Extra;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Extra, A::Error> {
                let mut kept = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, &RawValue>()? {
                    let Some((key, fits)) = EXTRA_KEYS.iter().find(|(known, _)| *known == key)
                    else {
                        continue;
                    };
                    kept.remove(key);
                    kept.extend(Passed::read(value).filter(fits).map(|value| (*key, value)));
                }
                Ok(Extra(kept))
            }
        }
        d.deserialize_map(ExtraVisitor)
    }
}

/// Any object; nothing in it is looked at.
#[derive(Debug)]
pub(super) struct AnyObject;

impl<'de> Deserialize<'de> for AnyObject {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(d)?;
        let is_object = raw.get().starts_with('{');
        is_object.then_some(Self).ok_or_else(|| D::Error::custom("not an object"))
    }
}

/// Any value, looked at in every part and kept in none: texts have their characters, numbers are
/// in range, and nothing is deeper than the parser follows.
struct Readable;

impl<'de> Deserialize<'de> for Readable {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Readable;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_str<E>(self, _: &str) -> Result<Readable, E> {
        Ok(Readable)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Readable, A::Error> {
        while list.next_element::<Readable>()?.is_some() {}
        Ok(Readable)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Readable, A::Error> {
        while map.next_entry::<Readable, Readable>()?.is_some() {}
        Ok(Readable)
    }
}

/// A list of texts, of which none is kept.
struct Texts;

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct TextsReader;
        impl<'de> Visitor<'de> for TextsReader {
            type Value = Texts;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Texts, A::Error> {
                while let Some(raw) = list.next_element::<&RawValue>()? {
                    if !raw.get().starts_with('"') {
                        return Err(A::Error::custom("not a text"));
                    }
                }
                Ok(Texts)
            }
        }
        d.deserialize_seq(TextsReader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_strict_reader_could_not_read_is_not_passed_on() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for bad in ["1e999", r#""\ud800""#, r#"{"a":["\udc00"]}"#, &deep] {
            assert!(serde_json::from_str::<Passed>(bad).is_err(), "{bad}");
        }
        for good in [r#"{"a":[1,-2.5,null,true,"\u00e9"]}"#, "7", r#""""#] {
            assert_eq!(serde_json::from_str::<Passed>(good).unwrap().get(), good);
        }
    }
}
