//! The settings in force, published whole.
//!
//! One value holds them all, and one store replaces it. Whoever decides something reads it once, by
//! [`Live::with`] or [`Settings::with`], and sees one version from beginning to end. Nobody keeps a
//! copy that would have to be told; what was made by an older version (a session, a connection)
//! goes on by it.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::HashMap;

use super::{Config, Loaded, Place, Tenant, TenantDefaults};

/// The settings at one moment.
#[derive(Debug)]
pub struct Version {
    /// From 1 at the start; grows by one with each publication.
    pub number: u64,
    /// All settings. Those that change at a restart are as they were at the start.
    pub config: Config,
    /// Where each was written, as of the last reading.
    pub places: BTreeMap<String, Place>,
    /// What holds for each tenant.
    pub tenants: Tenants,
}

impl Version {
    fn new(number: u64, Loaded { config, places }: Loaded) -> Self {
        let tenants = Tenants::new(config.tenant.clone(), &config.tenants);
        Self { number, config, places, tenants }
    }
}

/// What holds for each tenant.
#[derive(Debug)]
pub struct Tenants {
    defaults: TenantDefaults,
    /// What holds for who is not listed; it has no name.
    unlisted: Tenant,
    listed: HashMap<String, Tenant>,
}

impl Tenants {
    /// Of those listed, with what they leave unset, and of all others.
    pub fn new(defaults: TenantDefaults, listed: &[Tenant]) -> Self {
        let complete = |tenant: &Tenant| (tenant.name.clone(), defaults.complete(tenant));
        let listed = listed.iter().map(complete).collect();
        Self { unlisted: defaults.terms(""), defaults, listed }
    }

    /// What holds for a tenant, and whether it is listed. Nothing is left unset.
    pub fn terms(&self, name: &str) -> (&Tenant, bool) {
        match self.listed.get(name) {
            Some(tenant) => (tenant, true),
            None => (&self.unlisted, false),
        }
    }

    /// Whether it has a table of its own.
    pub fn lists(&self, name: &str) -> bool {
        self.listed.contains_key(name)
    }

    /// The names of those listed, in no order.
    pub fn listed(&self) -> impl Iterator<Item = &str> {
        self.listed.keys().map(String::as_str)
    }

    /// What holds for those not listed.
    pub fn defaults(&self) -> &TenantDefaults {
        &self.defaults
    }
}

/// The settings in force.
#[derive(Debug)]
pub struct Settings(ArcSwap<Version>);

impl Settings {
    /// Runs `read` on the current version. The reference cannot leave the call, so it is held
    /// neither across an await nor for long.
    pub fn with<R>(&self, read: impl FnOnce(&Version) -> R) -> R {
        read(&self.0.load())
    }

    /// The current version, to keep. Not for the path of an utterance.
    pub fn load_full(&self) -> Arc<Version> {
        self.0.load_full()
    }

    /// One part of the settings, for who is not to see the others.
    pub fn part<T>(self: &Arc<Self>, pick: fn(&Version) -> &T) -> Live<T> {
        Live(Kind::Of(Arc::clone(self), pick))
    }
}

/// The one writer of the settings.
#[derive(Debug)]
pub struct Setter(Arc<Settings>);

impl Setter {
    /// Publishes a first version.
    pub fn new(loaded: Loaded) -> (Self, Arc<Settings>) {
        let settings = Arc::new(Settings(ArcSwap::from_pointee(Version::new(1, loaded))));
        (Self(Arc::clone(&settings)), settings)
    }

    /// Publishes the next version; returns its number.
    pub fn publish(&mut self, loaded: Loaded) -> u64 {
        let number = self.0.with(|now| now.number) + 1;
        self.0.0.store(Arc::new(Version::new(number, loaded)));
        number
    }
}

/// One part of the settings as it is now, or one that never changes.
#[derive(Debug)]
pub struct Live<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Fixed(T),
    Of(Arc<Settings>, fn(&Version) -> &T),
}

impl<T> Live<T> {
    /// Runs `read` on it. All that one decision needs is read in one call.
    pub fn with<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        match &self.0 {
            Kind::Fixed(part) => read(part),
            Kind::Of(settings, pick) => settings.with(|version| read(pick(version))),
        }
    }
}

impl<T> From<T> for Live<T> {
    fn from(fixed: T) -> Self {
        Self(Kind::Fixed(fixed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_follows_what_is_published_and_is_read_whole() {
        let mut config = Config::default();
        let (mut setter, settings) = Setter::new(config.clone().into());
        let job = settings.part(|version| &version.config.job);
        let tenants = settings.part(|version| &version.tenants);
        let fixed = Live::from(config.job.clone());
        config.job.queue_max = 7;
        config.job.live_max = 8;
        config.tenants = vec![Tenant { name: "acme".into(), weight: 3, ..Tenant::default() }];
        job.with(|before| {
            assert_eq!(setter.publish(config.clone().into()), 2);
            assert_eq!((before.queue_max, before.live_max), (20_000, 100_000), "one version");
        });
        assert_eq!(job.with(|job| (job.queue_max, job.live_max)), (7, 8));
        assert_eq!(tenants.with(|t| t.terms("acme").0.weight), 3);
        assert!(tenants.with(|t| t.lists("acme") && !t.lists("other")));
        assert_eq!(tenants.with(|t| t.terms("x").0.jobs_max), Some(0), "nothing is left unset");
        assert_eq!(fixed.with(|job| job.queue_max), 20_000);
    }
}
