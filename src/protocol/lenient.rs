//! Reading what real peers write: numbers as integers or floats, null for absent, one bad entry
//! among good ones.

use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::DecodeError;
use super::{limits, terse};

/// Reads a message without its speech, which leaves it `limits::HEAD_BYTES_MAX` bytes.
pub(super) fn parse<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, DecodeError> {
    if json.len() > limits::HEAD_BYTES_MAX {
        return Err(DecodeError::TooLong { field: "message", max: limits::HEAD_BYTES_MAX });
    }
    object(json)
}

/// Reads an object of any length: a derived reader would take a list of its fields' values for one.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T, DecodeError> {
    let message = terse::from_slice(json)?;
    match json.trim_ascii_start().first() {
        Some(b'{') => Ok(message),
        _ => Err(DecodeError::Malformed("a message is an object".to_owned())),
    }
}

/// An integer, however the peer wrote it: `1`, `1.0`, `-3`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Int(i128);

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct IntVisitor;
        impl Visitor<'_> for IntVisitor {
            type Value = Int;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a whole number")
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Int, E> {
                Ok(Int(v.into()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> Result<Int, E> {
                Ok(Int(v.into()))
            }
            fn visit_f64<E: de::Error>(self, v: f64) -> Result<Int, E> {
                // Beyond 2^53 a float no longer names one integer.
                if v.fract() == 0.0 && v.abs() <= 9_007_199_254_740_992.0 {
                    return Ok(Int(v as i128));
                }
                Err(E::invalid_value(de::Unexpected::Float(v), &self))
            }
        }
        d.deserialize_any(IntVisitor)
    }
}

fn ranged<T: TryFrom<i128>, E: de::Error>(int: Int) -> Result<T, E> {
    T::try_from(int.0).map_err(|_| E::custom(format!("{} is out of range", int.0)))
}

/// A required integer.
pub(super) fn int<'de, D: Deserializer<'de>, T: TryFrom<i128>>(d: D) -> Result<T, D::Error> {
    ranged(Int::deserialize(d)?)
}

/// An optional integer; null is absent.
pub(super) fn opt_int<'de, D: Deserializer<'de>, T: TryFrom<i128>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    Option::<Int>::deserialize(d)?.map(ranged).transpose()
}

/// Any value of the wanted form, else none: for fields of which nothing depends on being there.
pub(super) fn opt_any<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    d: D,
) -> Result<Option<T>, D::Error> {
    Ok(terse::from_str(<&RawValue>::deserialize(d)?.get()).ok())
}

/// The entries of a list that have the wanted form, at most `N`; anything else counts as an empty
/// list.
pub(super) fn entries<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    d: D,
) -> Result<Vec<T>, D::Error> {
    Ok(Entries::<T, N>::deserialize(d)?.read)
}

/// A list of which no more than `N` entries are kept, whatever they are.
pub(super) fn opt_list<'de, D: Deserializer<'de>, T: Deserialize<'de>, const N: usize>(
    d: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<List<T, N>>::deserialize(d)?.map(|list| list.0))
}

/// The entries of a list that have the wanted form, at most `N`, and how many there were in all.
/// Nothing is made of the others: as trees of values they would be many times as long as written.
pub(super) struct Entries<T, const N: usize> {
    /// Those that were read.
    pub(super) read: Vec<T>,
    /// All.
    pub(super) given: usize,
}

impl<T, const N: usize> Default for Entries<T, N> {
    fn default() -> Self {
        Self { read: Vec::new(), given: 0 }
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Entries<T, N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(d)?.get();
        let (mut read, mut given) = (Vec::new(), 0);
        if raw.starts_with('[') {
            // Counted first, for a list that grows is held twice.
            each(raw, |_| given += 1).map_err(de::Error::custom)?;
            read.reserve_exact(given.min(N));
            let keep = |entry: &'de RawValue| {
                if read.len() < N
                    && let Ok(entry) = terse::from_str(entry.get())
                {
                    read.push(entry);
                }
            };
            each(raw, keep).map_err(de::Error::custom)?;
        }
        Ok(Self { read, given })
    }
}

/// Visits the entries of a list as text.
fn each<'de>(list: &'de str, visit: impl FnMut(&'de RawValue)) -> serde_json::Result<()> {
    struct Each<F>(F);
    impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
        type Value = ();
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(entry) = list.next_element()? {
                self.0(entry);
            }
            Ok(())
        }
    }
    serde_json::Deserializer::from_str(list).deserialize_seq(Each(visit))
}

struct List<T, const N: usize>(Vec<T>);

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct ListVisitor<T, const N: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for ListVisitor<T, N> {
            type Value = List<T, N>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut kept = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if kept.len() < N {
                        kept.push(entry);
                    }
                }
                Ok(List(kept))
            }
        }
        d.deserialize_seq(ListVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Probe {
        #[serde(deserialize_with = "int")]
        a: u32,
        #[serde(default, deserialize_with = "opt_int")]
        b: Option<u64>,
        #[serde(default, deserialize_with = "entries::<_, _, 3>")]
        c: Vec<String>,
    }

    #[test]
    fn reads_ints_floats_nulls_and_mixed_lists() {
        let p: Probe =
            serde_json::from_str(r#"{"a":7.0,"b":null,"c":["x",1,"y",null,"z","w"]}"#).unwrap();
        assert_eq!((p.a, p.b, p.c), (7, None, vec!["x".into(), "y".into(), "z".into()]));
        let p: Probe = serde_json::from_str(r#"{"a":7,"b":9,"c":{}}"#).unwrap();
        assert_eq!((p.a, p.b, p.c.len()), (7, Some(9), 0));
    }

    #[test]
    fn refuses_what_is_no_whole_number_or_out_of_range() {
        for bad in [
            r#"{"a":1.5}"#,
            r#"{"a":-1}"#,
            r#"{"a":4294967296}"#,
            r#"{"a":"1"}"#,
            r#"{"a":1e300}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Probe>(bad).is_err(), "{bad}");
        }
    }
}
