//! How one setting is declared, and what every setting can do: be read, be judged, be shown.
//!
//! A setting is written down once, in a `section!` block; its field, its default, its TOML key, its
//! environment variable, its check and its line in the manual all come from there. This module
//! knows kinds of values; it refuses to know any particular setting.

use std::path::PathBuf;

use super::PairPattern;
use super::raw::Given;

/// What the manual and the checks know of one setting.
pub(super) struct Field {
    /// Key inside its section.
    pub(super) key: &'static str,
    /// Unit of the value, `none` where there is none.
    pub(super) unit: &'static str,
    /// One or two sentences of meaning.
    pub(super) doc: &'static str,
    /// The values that are taken.
    pub(super) allowed: Allowed,
    /// When a changed value has effect.
    pub(super) when: When,
}

/// When a changed value of a setting has effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    /// As soon as the configuration is read again.
    Live,
    /// With the next start.
    Restart,
}

/// A setting whose value is another than before.
pub(super) struct Differs {
    /// Key inside its section.
    pub(super) key: &'static str,
    /// The value before, as TOML; empty if it was unset.
    pub(super) from: String,
    /// The value now, in the same way.
    pub(super) to: String,
    /// When that has effect.
    pub(super) when: When,
}

/// The values a setting takes, beyond being of its type.
#[derive(Clone, Copy)]
pub(super) enum Allowed {
    /// All of the type.
    Any,
    /// Whole numbers, both ends included.
    Whole(u64, u64),
    /// Numbers, both ends included.
    Real(f64, f64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Text that passes a test, and the test in words.
    Text(&'static str, fn(&str) -> bool),
    /// A list whose items all pass, and holds at least so many; the items in words.
    List(&'static str, usize, fn(&str) -> bool),
}

/// Why a written value was not taken.
pub(super) enum Misread {
    /// It is not of the setting's type.
    Type,
    /// It is of the type, and no value of the setting.
    Range,
    /// It is partly right; the words say which part is not.
    Part(String),
}

/// A value that can be read from what was written and shown as it would be written.
pub(super) trait Value {
    /// Name of the type for people.
    fn kind(&self) -> &'static str;
    /// Takes the written value over; on failure the value stays as it was.
    fn read(&mut self, given: &Given) -> Result<(), Misread>;
    /// Whether the value held is allowed.
    fn fits(&self, allowed: &Allowed) -> bool;
    /// The value as TOML; empty when there is none.
    fn show(&self) -> String;
}

/// A table of settings.
pub(super) trait Section {
    /// Name of the table in the file.
    fn name(&self) -> &'static str;
    /// What the section is about, in a sentence or two.
    fn about(&self) -> &'static str;
    /// Visits every setting in the order of its declaration.
    fn each(&mut self, visit: &mut dyn FnMut(&Field, &mut dyn Value));
}

/// A table of settings that can be told from another and take over from it.
pub(super) trait Renewable {
    /// What is another in `new`, in the order of the declaration.
    fn differences(&self, new: &Self) -> Vec<Differs>;
    /// Takes over what may change while the server runs.
    fn renew(&mut self, new: &Self);
}

/// Declares a section: the struct, its defaults and the description of each setting. A changed
/// value has effect when the head of the section says, unless its own line says otherwise.
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident in $section:literal $usual:ident $(with $(#[$attr:meta])+)? {
            $($(#[doc = $doc:literal])+
            $key:ident: $type:ty = $default:expr, $unit:literal, $allowed:expr $(, $when:ident)?;)+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Serialize)]
        $($(#[$attr])+)?
        pub struct $name {
            $(
                $(#[doc = $doc])+
                #[doc = ""]
                #[doc = concat!("Unit: ", $unit, "; default: `", stringify!($default), "`.")]
                pub $key: $type,
            )+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default),+ }
            }
        }

        impl $crate::config::setting::Section for $name {
            fn name(&self) -> &'static str {
                $section
            }

            fn about(&self) -> &'static str {
                concat!($($about),+).trim_ascii()
            }

            fn each(
                &mut self,
                visit: &mut dyn FnMut(
                    &$crate::config::setting::Field,
                    &mut dyn $crate::config::setting::Value,
                ),
            ) {
                $(
                    let field = $crate::config::setting::Field {
                        key: stringify!($key),
                        unit: $unit,
                        doc: concat!($($doc),+).trim_ascii(),
                        allowed: $allowed,
                        when: $crate::config::setting::when!($usual $($when)?),
                    };
                    visit(&field, &mut self.$key);
                )+
            }
        }

        impl $crate::config::setting::Renewable for $name {
            fn differences(&self, new: &Self) -> Vec<$crate::config::setting::Differs> {
                use $crate::config::setting::Value as _;
                let mut found = Vec::new();
                $(
                    if self.$key != new.$key {
                        found.push($crate::config::setting::Differs {
                            key: stringify!($key),
                            from: self.$key.show(),
                            to: new.$key.show(),
                            when: $crate::config::setting::when!($usual $($when)?),
                        });
                    }
                )+
                found
            }

            fn renew(&mut self, new: &Self) {
                $(
                    let when = $crate::config::setting::when!($usual $($when)?);
                    if when == $crate::config::setting::When::Live && self.$key != new.$key {
                        self.$key = new.$key.clone();
                    }
                )+
            }
        }
    };
}
pub(super) use section;

/// When a changed value has effect, in the words of a declaration.
macro_rules! when {
    (live) => {
        $crate::config::setting::When::Live
    };
    (restart) => {
        $crate::config::setting::When::Restart
    };
    ($usual:ident $own:ident) => {
        $crate::config::setting::when!($own)
    };
}
pub(super) use when;

/// Declares a setting's type that is one of a few words.
macro_rules! choices {
    (
        $(#[$about:meta])+
        $name:ident { $($(#[$doc:meta])+ $variant:ident = $word:literal,)+ }
    ) => {
        $(#[$about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
        pub enum $name {
            $($(#[$doc])+ #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every word, as it is written.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word of this choice.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::setting::Value for $name {
            fn kind(&self) -> &'static str {
                "word"
            }

            fn read(
                &mut self,
                given: &$crate::config::raw::Given,
            ) -> Result<(), $crate::config::setting::Misread> {
                *self = match given.text() {
                    $(Some($word) => Self::$variant,)+
                    Some(_) => return Err($crate::config::setting::Misread::Range),
                    None => return Err($crate::config::setting::Misread::Type),
                };
                Ok(())
            }

            fn fits(&self, _: &$crate::config::setting::Allowed) -> bool {
                true
            }

            fn show(&self) -> String {
                format!("{:?}", self.as_str())
            }
        }
    };
}
pub(super) use choices;

impl Allowed {
    /// The allowed values in words; empty when the type says it all.
    pub(super) fn describe(&self, unit: &str) -> String {
        let unit = if unit == "none" { String::new() } else { format!(" {unit}") };
        match self {
            Self::Any => String::new(),
            Self::Whole(low, high) => {
                format!("{} to {}{unit}", grouped(&low.to_string()), grouped(&high.to_string()))
            }
            Self::Real(low, high) => format!("{low} to {high}{unit}"),
            Self::OneOf(words) => words.join(" or "),
            Self::Text(what, _) | Self::List(what, ..) => (*what).to_owned(),
        }
    }

    fn takes_whole(&self, n: u64) -> bool {
        match self {
            Self::Whole(low, high) => (*low..=*high).contains(&n),
            _ => true,
        }
    }

    fn takes_text(&self, text: &str) -> bool {
        match self {
            Self::Text(_, fits) => fits(text),
            Self::OneOf(words) => words.contains(&text),
            _ => true,
        }
    }

    fn takes_list(&self, items: &[String]) -> bool {
        match self {
            Self::List(_, least, fits) => items.len() >= *least && items.iter().all(|i| fits(i)),
            _ => true,
        }
    }
}

/// A decimal number with `_` between its thousands.
pub(super) fn grouped(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |rest| ("-", rest));
    let mut out = String::from(sign);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push('_');
        }
        out.push(c);
    }
    out
}

macro_rules! whole_numbers {
    ($($type:ty),+) => {$(
        impl Value for $type {
            fn kind(&self) -> &'static str {
                "integer"
            }

            fn read(&mut self, given: &Given) -> Result<(), Misread> {
                let n = given.whole().ok_or(Misread::Type)?;
                *self = <$type>::try_from(n).map_err(|_| Misread::Range)?;
                Ok(())
            }

            fn fits(&self, allowed: &Allowed) -> bool {
                u64::try_from(*self).is_ok_and(|n| allowed.takes_whole(n))
            }

            fn show(&self) -> String {
                grouped(&self.to_string())
            }
        }
    )+};
}
whole_numbers!(u32, u64, usize);

impl Value for f32 {
    fn kind(&self) -> &'static str {
        "number"
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        *self = given.real().ok_or(Misread::Type)? as f32;
        Ok(())
    }

    fn fits(&self, allowed: &Allowed) -> bool {
        match allowed {
            Allowed::Real(low, high) => (*low..=*high).contains(&f64::from(*self)),
            _ => self.is_finite(),
        }
    }

    fn show(&self) -> String {
        format!("{self:?}")
    }
}

impl Value for bool {
    fn kind(&self) -> &'static str {
        "true or false"
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        *self = given.truth().ok_or(Misread::Type)?;
        Ok(())
    }

    fn fits(&self, _: &Allowed) -> bool {
        true
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn kind(&self) -> &'static str {
        "text"
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        *self = given.text().ok_or(Misread::Type)?.to_owned();
        Ok(())
    }

    fn fits(&self, allowed: &Allowed) -> bool {
        allowed.takes_text(self)
    }

    fn show(&self) -> String {
        toml::Value::from(self.as_str()).to_string()
    }
}

impl Value for PathBuf {
    fn kind(&self) -> &'static str {
        "path"
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        *self = PathBuf::from(given.text().ok_or(Misread::Type)?);
        Ok(())
    }

    fn fits(&self, allowed: &Allowed) -> bool {
        allowed.takes_text(&self.to_string_lossy())
    }

    fn show(&self) -> String {
        toml::Value::from(self.to_string_lossy().as_ref()).to_string()
    }
}

/// A setting that may be left to a default elsewhere; unset is always fine.
impl<T: Value + Default> Value for Option<T> {
    fn kind(&self) -> &'static str {
        T::default().kind()
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        let mut value = T::default();
        value.read(given)?;
        *self = Some(value);
        Ok(())
    }

    fn fits(&self, allowed: &Allowed) -> bool {
        self.as_ref().is_none_or(|value| value.fits(allowed))
    }

    fn show(&self) -> String {
        self.as_ref().map(Value::show).unwrap_or_default()
    }
}

impl Value for Vec<String> {
    fn kind(&self) -> &'static str {
        "list of text"
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        *self = given.texts().ok_or(Misread::Type)?;
        Ok(())
    }

    fn fits(&self, allowed: &Allowed) -> bool {
        allowed.takes_list(self)
    }

    fn show(&self) -> String {
        toml::Value::from(self.clone()).to_string()
    }
}

impl Value for Vec<PairPattern> {
    fn kind(&self) -> &'static str {
        "list of pairs"
    }

    fn read(&mut self, given: &Given) -> Result<(), Misread> {
        let texts = given.texts().ok_or(Misread::Type)?;
        let (mut pairs, mut bad) = (Vec::new(), Vec::new());
        for text in &texts {
            match text.parse() {
                Ok(pair) => pairs.push(pair),
                Err(_) => bad.push(format!("{text:?}")),
            }
        }
        if bad.is_empty() {
            *self = pairs;
            return Ok(());
        }
        let noun = if bad.len() == 1 { "is not a pair" } else { "are not pairs" };
        Err(Misread::Part(format!("{} {noun}", bad.join(" and "))))
    }

    fn fits(&self, allowed: &Allowed) -> bool {
        let texts: Vec<String> = self.iter().map(ToString::to_string).collect();
        allowed.takes_list(&texts)
    }

    fn show(&self) -> String {
        toml::Value::from(self.iter().map(ToString::to_string).collect::<Vec<_>>()).to_string()
    }
}
