//! What another configuration would change, setting by setting, and which of that can be done while
//! the server runs.
//!
//! It refuses to know the settings; which of them may change is said where they are declared.

use super::check::{Faults, judge};
use super::setting::{Differs, Renewable, When};
use super::{Config, Loaded, Pool, Tenant};

/// One setting that is another in a new configuration.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Changed {
    /// The setting as `section.key`, or `tenants.NAME.key`, or a whole table `tenants.NAME`.
    pub setting: String,
    /// The value before, as it would be written; none if there was none.
    pub from: Option<String>,
    /// The value now, in the same way.
    pub to: Option<String>,
}

/// The way from one configuration to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What is to be in force: the old configuration with all that may change while running.
    pub effective: Loaded,
    /// What that changes.
    pub changed: Vec<Changed>,
    /// What is written otherwise and has no effect before a restart.
    pub needs_restart: Vec<Changed>,
}

/// Ends of names whose values nobody is told.
const UNTOLD: [&str; 3] = ["secret", "token", "password"];

/// Whether the value of a setting of that key is left out wherever settings are shown.
pub fn is_untold(key: &str) -> bool {
    UNTOLD.iter().any(|end| key.ends_with(end))
}

impl Change {
    /// From what is in force to what was read. What may not change while the server runs stays as
    /// it is; the whole is judged again, for a new value may contradict an old one that stays.
    pub fn between(now: &Config, new: Loaded) -> Result<Change, Faults> {
        let mut differs = Vec::new();
        macro_rules! sections {
            ($($section:ident),+) => {$(
                let name = stringify!($section);
                for one in now.$section.differences(&new.config.$section) {
                    differs.push((name.to_owned(), one));
                }
            )+};
        }
        let mut effective = now.clone();
        macro_rules! renewed {
            ($($section:ident),+) => {{
                // Taking it apart makes a forgotten section a compile error.
                let Config { $($section,)+ pools, tenants } = &mut effective;
                $($section.renew(&new.config.$section);)+
                pools.clone_from(&new.config.pools);
                tenants.clone_from(&new.config.tenants);
            }};
        }
        macro_rules! every {
            ($then:ident) => {
                $then!(
                    server, transport, tls, auth, segmenter, session, room, gateway, tenant, job,
                    node, store, console, log, telemetry
                )
            };
        }
        every!(sections);
        every!(renewed);
        judge(&effective)?;
        let (mut changed, mut needs_restart) = (Vec::new(), Vec::new());
        for (path, one) in differs {
            let list = match one.when {
                When::Live => &mut changed,
                When::Restart => &mut needs_restart,
            };
            list.push(shown(&path, one));
        }
        changed.extend(listed("pools", (&now.pools, &new.config.pools), |pool: &Pool| &pool.name));
        let tenants = (&now.tenants[..], &new.config.tenants[..]);
        changed.extend(listed("tenants", tenants, |tenant: &Tenant| &tenant.name));
        let effective = Loaded { config: effective, places: new.places };
        Ok(Change { effective, changed, needs_restart })
    }
}

fn shown(path: &str, one: Differs) -> Changed {
    let told = |text: String| match text.is_empty() {
        true => None,
        false if is_untold(one.key) => Some("(not told)".to_owned()),
        false => Some(text),
    };
    let setting = format!("{path}.{}", one.key);
    Changed { setting, from: told(one.from), to: told(one.to) }
}

/// What is another between two lists of named tables. A table that came or went is one change.
fn listed<T: Renewable + PartialEq>(
    list: &str,
    (old, new): (&[T], &[T]),
    name: fn(&T) -> &String,
) -> Vec<Changed> {
    let find = |list: &[T], wanted: &String| list.iter().position(|one| name(one) == wanted);
    let table = |one: &T| format!("{list}.{}", name(one));
    let mut changed = Vec::new();
    for before in old {
        match find(new, name(before)) {
            Some(at) => {
                let path = table(before);
                let differs = before.differences(&new[at]).into_iter();
                changed.extend(differs.map(|one| shown(&path, one)));
            }
            None => {
                let (setting, from) = (table(before), Some("a table".to_owned()));
                changed.push(Changed { setting, from, to: None });
            }
        }
    }
    for after in new.iter().filter(|after| find(old, name(after)).is_none()) {
        let to = Some("a table".to_owned());
        changed.push(Changed { setting: table(after), from: None, to });
    }
    let names = |list: &[T]| list.iter().map(|one| name(one).clone()).collect::<Vec<_>>();
    if changed.is_empty() && old != new {
        // The order of pools is the order in which they are looked at.
        let told = |list: &[T]| Some(names(list).join(", "));
        changed.push(Changed { setting: list.to_owned(), from: told(old), to: told(new) });
    }
    changed
}
