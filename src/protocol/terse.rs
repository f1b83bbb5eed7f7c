//! Reading JSON with errors that do not repeat what they are about.
//!
//! The error of a text where a number belongs quotes the text, escaped, and the error of an unknown
//! name quotes the name: of a message of 64 KiB that is some hundred KiB, made to be cut to a line.
//! Here whoever reads a text is given an error type that keeps the beginning only, and every
//! reader further in is reached through the same wrapper.

use std::fmt::{self, Display, Write};

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};

use super::limits;

/// Bytes of an error that are kept.
const ERROR_BYTES_MAX: usize = 256;

/// Reads one JSON value. Its error is no longer than a few hundred bytes, nor ever was.
pub(super) fn from_slice<'a, T: Deserialize<'a>>(json: &'a [u8]) -> serde_json::Result<T> {
    read(serde_json::Deserializer::from_slice(json))
}

/// The same of text.
pub(super) fn from_str<'a, T: Deserialize<'a>>(json: &'a str) -> serde_json::Result<T> {
    read(serde_json::Deserializer::from_str(json))
}

fn read<'a, R, T>(mut json: serde_json::Deserializer<R>) -> serde_json::Result<T>
where
    R: serde_json::de::Read<'a>,
    T: Deserialize<'a>,
{
    let value = T::deserialize(Terse(&mut json))?;
    json.end()?;
    Ok(value)
}

/// The beginning of an error.
#[derive(Debug)]
struct Short(String);

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let part = limits::clip(text, ERROR_BYTES_MAX - self.0.len());
        self.0.push_str(part);
        // What follows would be formatted for nothing.
        if part.len() == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Short {}

impl de::Error for Short {
    fn custom<T: Display>(error: T) -> Self {
        let mut short = Self(String::new());
        // An error here says that there is more than is kept.
        let _ = write!(short, "{error}");
        short
    }
}

/// A part of a reader, and everything it hands on, with short errors.
struct Terse<T>(T);

macro_rules! reads {
    (any: $($name:ident($($type:ty),*))*) => {$(
        fn $name<V: Visitor<'de>>(self, $(_: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.deserialize_any(Terse(visitor))
        }
    )*};
    (as asked: $($name:ident($($arg:ident: $type:ty),*))*) => {$(
        fn $name<V: Visitor<'de>>(self, $($arg: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$name($($arg,)* Terse(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Terse<D> {
    type Error = D::Error;
    // Asked for one type and finding another, the parser makes the error itself. Asked for any, it
    // leaves that to the visitor, and JSON says by itself what it is.
    reads! { any:
        deserialize_any() deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32()
        deserialize_i64() deserialize_i128() deserialize_u8() deserialize_u16() deserialize_u32()
        deserialize_u64() deserialize_u128() deserialize_f32() deserialize_f64() deserialize_char()
        deserialize_str() deserialize_string() deserialize_bytes() deserialize_byte_buf()
        deserialize_unit() deserialize_seq() deserialize_map() deserialize_identifier()
        deserialize_unit_struct(&'static str)
        deserialize_tuple(usize)
        deserialize_tuple_struct(&'static str, usize)
        deserialize_struct(&'static str, &'static [&'static str])
    }
    reads! { as asked:
        deserialize_option() deserialize_ignored_any()
        deserialize_newtype_struct(name: &'static str)
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }
    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visits {
    (as it is: $($name:ident($type:ty))*) => {$(
        fn $name<E: de::Error>(self, v: $type) -> Result<V::Value, E> {
            self.0.$name(v)
        }
    )*};
    (shortened: $($name:ident($type:ty))*) => {$(
        fn $name<E: de::Error>(self, v: $type) -> Result<V::Value, E> {
            self.0.$name::<Short>(v).map_err(E::custom)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Terse<V> {
    type Value = V::Value;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
    visits! { as it is:
        visit_bool(bool) visit_i64(i64) visit_i128(i128) visit_u64(u64) visit_u128(u128)
        visit_f64(f64)
    }
    visits! { shortened:
        visit_str(&str) visit_borrowed_str(&'de str) visit_string(String)
        visit_bytes(&[u8]) visit_borrowed_bytes(&'de [u8]) visit_byte_buf(Vec<u8>)
    }
    fn visit_none<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }
    fn visit_unit<E: de::Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Terse(d))
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, d: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Terse(d))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Terse(seq))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Terse(map))
    }
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Terse(data))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Terse<S> {
    type Value = S::Value;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Terse(d))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Terse<A> {
    type Error = A::Error;
    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Terse(seed))
    }
    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Terse<A> {
    type Error = A::Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(Terse(seed))
    }
    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(Terse(seed))
    }
    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Terse<A> {
    type Error = A::Error;
    type Variant = Terse<A::Variant>;
    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.0.variant_seed(Terse(seed))?;
        Ok((value, Terse(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Terse<A> {
    type Error = A::Error;
    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Terse(seed))
    }
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, v: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(len, Terse(v))
    }
    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        v: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, Terse(v))
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    enum Kind {
        #[serde(rename = "one")]
        One,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        count: Option<u64>,
    }

    #[derive(Debug, Deserialize)]
    struct Message<'a> {
        kind: Kind,
        inner: Vec<Inner>,
        #[serde(borrow)]
        raw: &'a RawValue,
    }

    #[test]
    fn what_is_good_is_read_as_ever() {
        let json = r#"{"kind":"one","inner":[{"count":3},{"count":null},{}],"raw":{"a":[1]}} "#;
        let message: Message<'_> = from_str(json).unwrap();
        assert!(matches!(message.kind, Kind::One));
        let counts: Vec<_> = message.inner.iter().map(|inner| inner.count).collect();
        assert_eq!(counts, [Some(3), None, None]);
        assert_eq!(message.raw.get(), r#"{"a":[1]}"#);
        assert!(from_str::<u8>("1 2").is_err(), "something follows");
    }

    #[test]
    fn an_error_quotes_the_beginning_only() {
        let long = "\u{200b}".repeat(20_000);
        for json in [
            format!(r#"{{"kind":"\u0122{long}","inner":[],"raw":1}}"#),
            format!(r#"{{"kind":"one","inner":[{{"count":"{long}"}}],"raw":1}}"#),
            format!(r#"{{"kind":"one","inner":["{long}"],"raw":1}}"#),
            format!(r#"{{"kind":"one","inner":"{long}","raw":1}}"#),
            format!(r#""{long}""#),
        ] {
            let mut error = None;
            let held = allocation_counter::measure(|| {
                error = from_str::<Message<'_>>(&json).err();
            });
            let text = error.expect("it is wrong").to_string();
            assert!(text.len() < ERROR_BYTES_MAX + 64, "{} bytes", text.len());
            let most = 2 * json.len() as u64 + 4_096;
            assert!(held.bytes_max < most, "{} of {most} bytes", held.bytes_max);
        }
    }

    #[test]
    fn a_short_error_is_what_it_would_be() {
        for json in [r#"{"kind":"two"}"#, r#"{"kind":1}"#, r#"{"inner":["x"]}"#, "[", "{}", "7"] {
            let words = |error: serde_json::Error| {
                let text = error.to_string();
                text.split_once(" at line").map_or(text.clone(), |(words, _)| words.to_owned())
            };
            let plain = words(serde_json::from_str::<Message<'_>>(json).unwrap_err());
            assert_eq!(words(from_str::<Message<'_>>(json).unwrap_err()), plain, "{json}");
        }
    }
}
