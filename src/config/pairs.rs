//! Which language pairs a pool serves: a pair whose sides may be left open.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::protocol::ids::{Lang, Pair};

/// A language pair with open sides, written `zh:en`, `*:en`, `zh:*` or `*:*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairPattern {
    /// Language spoken; none stands for every language.
    pub src: Option<Lang>,
    /// Language wanted; none stands for every language.
    pub tgt: Option<Lang>,
}

/// A text was not a pair pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a language pair such as zh:en, *:en, zh:* or *:*")]
pub struct BadPair(pub String);

impl PairPattern {
    /// The pattern that matches every pair.
    pub const ANY: PairPattern = PairPattern { src: None, tgt: None };

    /// Whether the pair is one of those meant. Tags are compared as written.
    pub fn matches(&self, pair: Pair) -> bool {
        self.src.is_none_or(|src| src == pair.src) && self.tgt.is_none_or(|tgt| tgt == pair.tgt)
    }
}

impl fmt::Display for PairPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |lang: &Option<Lang>| lang.as_ref().map_or("*".to_owned(), Lang::to_string);
        write!(f, "{}:{}", side(&self.src), side(&self.tgt))
    }
}

impl FromStr for PairPattern {
    type Err = BadPair;
    fn from_str(text: &str) -> Result<Self, BadPair> {
        let side = |side: &str| match side.trim() {
            "*" => Ok(None),
            tag => tag.parse().map(Some).map_err(|_| BadPair(text.to_owned())),
        };
        let (src, tgt) = text.split_once(':').ok_or_else(|| BadPair(text.to_owned()))?;
        Ok(Self { src: side(src)?, tgt: side(tgt)? })
    }
}

impl serde::Serialize for PairPattern {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for PairPattern {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_what_it_leaves_open_and_nothing_else() {
        let pair = |text: &str| text.parse::<Pair>().unwrap();
        let cases = [
            ("zh:en", "zh:en", true),
            ("zh:en", "en:zh", false),
            ("zh:en", "zh:ja", false),
            ("*:en", "ja:en", true),
            ("*:en", "en:ja", false),
            ("zh:*", "zh:fr", true),
            ("zh:*", "fr:zh", false),
            ("*:*", "auto:de", true),
            ("zh:en", "auto:en", false),
        ];
        for (pattern, text, matches) in cases {
            let pattern: PairPattern = pattern.parse().unwrap();
            assert_eq!(pattern.matches(pair(text)), matches, "{pattern} on {text}");
        }
    }

    #[test]
    fn the_text_form_survives_and_foreign_text_is_refused() {
        for text in ["zh:en", "*:en", "zh:*", "*:*"] {
            assert_eq!(text.parse::<PairPattern>().unwrap().to_string(), text);
        }
        for text in ["", "zh", ":", "zh:", ":en", "**:en", "zh:en:ja", "zh en", "*"] {
            assert_eq!(text.parse::<PairPattern>(), Err(BadPair(text.to_owned())), "{text:?}");
        }
    }
}
