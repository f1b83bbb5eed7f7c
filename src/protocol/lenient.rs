//! Reading what real peers write: numbers as integers or floats, null for absent, one bad entry
//! among good ones.

use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, Visitor};
use serde_json::Value;

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
pub(super) fn opt_any<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    d: D,
) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(d)?).ok())
}

/// The entries of a list that have the wanted form, at most `N`; anything else counts as an empty
/// list.
pub(super) fn entries<'de, D: Deserializer<'de>, T: DeserializeOwned, const N: usize>(
    d: D,
) -> Result<Vec<T>, D::Error> {
    let Value::Array(items) = Value::deserialize(d)? else { return Ok(Vec::new()) };
    Ok(items.into_iter().filter_map(|v| serde_json::from_value(v).ok()).take(N).collect())
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
