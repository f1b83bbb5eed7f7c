//! Limits of tenants at their edges, and what is counted.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::*;
use crate::config;
use crate::protocol::Pair;
use crate::protocol::job::Outcome;
use crate::telemetry::{Metrics, Now};

fn at(ms: u64) -> Now {
    Now { us: 1_000_000 + ms * 1_000, unix_ms: 0 }
}

fn listed(name: &str) -> config::Tenant {
    config::Tenant { name: name.into(), ..config::Tenant::default() }
}

fn accounts(tenants: &[config::Tenant]) -> Accounts {
    Accounts::new(config::TenantDefaults::default(), tenants, &Metrics::new())
}

/// With so many jobs at once, waiting ones and those of one session.
fn admission(live: usize, queue: usize, session: usize, tenants: &[config::Tenant]) -> Admission {
    let config = config::Job { live_max: live, queue_max: queue, ..config::Job::default() };
    Admission::new(config.clone(), session, accounts(tenants))
}

fn pair(text: &str) -> Pair {
    text.parse().unwrap()
}

#[test]
fn a_closed_house_takes_only_what_began_before() {
    let admission = admission(2, 2, 1, &[]);
    assert_eq!(admission.takes(u64::MAX), Ok(()));
    admission.close(5);
    assert_eq!((admission.takes(5), admission.takes(6)), (Ok(()), Err(Denied::Draining)));
    assert_eq!(Denied::Draining.code(), ErrorCode::ShuttingDown);
}

#[test]
fn a_refusal_leaves_no_trace() {
    let admission = admission(2, 2, 1, &[]);
    let account = admission.accounts().of(None);
    let (a, b, c) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let admit = |session| admission.admit(&account, session, 1_000, at(0));
    assert_eq!(admit(&a), Ok(()));
    assert_eq!(admit(&a), Err(Denied::SessionFull));
    assert_eq!(admit(&b), Ok(()));
    assert_eq!(admit(&c), Err(Denied::ServerFull));
    assert_eq!((c.load(SeqCst), admission.accounts().standings()[0].jobs), (0, 2));
    admission.release(&account, &a, pair("zh:en"), (Outcome::Succeeded, 1_000));
    assert_eq!(admit(&c), Ok(()));
}

#[test]
fn a_tenant_has_as_many_jobs_as_it_may_and_others_have_theirs() {
    let acme = config::Tenant { jobs_max: Some(2), ..listed("acme") };
    let admission = admission(10, 10, 10, &[acme]);
    let (acme, other) = (admission.accounts().of(Some("acme")), admission.accounts().of(None));
    let session = AtomicU32::new(0);
    let admit = |account: &Account| admission.admit(account, &session, 1_000, at(0));
    assert_eq!([admit(&acme), admit(&acme)], [Ok(()); 2]);
    assert_eq!(admit(&acme), Err(Denied::TenantJobs));
    assert_eq!(Denied::TenantJobs.code(), ErrorCode::RateLimited);
    assert_eq!(admit(&other), Ok(()));
    assert_eq!((session.load(SeqCst), admission.live()), (3, 3));
    admission.release(&acme, &session, pair("zh:en"), (Outcome::Failed, 1_000));
    assert_eq!(admit(&acme), Ok(()));
    // What an earlier life accepted counts, and is not refused.
    admission.readmit(&acme, &session);
    admission.release(&acme, &session, pair("zh:en"), (Outcome::Failed, 1_000));
    assert_eq!(admit(&acme), Err(Denied::TenantJobs));
}

#[test]
fn audio_beyond_the_minutes_share_is_refused_until_there_is_room() {
    let acme = config::Tenant { audio_seconds_per_minute: Some(30), ..listed("acme") };
    let admission = admission(100, 100, 100, &[acme]);
    let account = admission.accounts().of(Some("acme"));
    let session = AtomicU32::new(0);
    let admit = |audio_ms, ms| admission.admit(&account, &session, audio_ms, at(ms));
    assert_eq!([admit(10_000, 0), admit(20_000, 0)], [Ok(()); 2]);
    let denied = Denied::TenantAudio { retry_after_ms: 10_000 };
    assert_eq!(admit(5_000, 0), Err(denied));
    assert_eq!((denied.code(), denied.retry_after_ms()), (ErrorCode::RateLimited, 10_000));
    assert_eq!((session.load(SeqCst), admission.live()), (2, 2), "the refusal left a trace");
    assert_eq!(admit(5_000, 9_999), Err(Denied::TenantAudio { retry_after_ms: 1 }));
    assert_eq!(admit(5_000, 10_000), Ok(()));
    // What was refused for another reason was not charged.
    let full = Admission::new(
        config::Job { live_max: 0, ..config::Job::default() },
        100,
        accounts(&[config::Tenant { audio_seconds_per_minute: Some(1), ..listed("acme") }]),
    );
    let account = full.accounts().of(Some("acme"));
    assert_eq!(full.admit(&account, &session, 1_000, at(0)), Err(Denied::ServerFull));
    let charged = account.terms(|terms, _| account.charge_audio(terms, 1_000, at(0)));
    assert_eq!(charged, Ok(()));
}

#[test]
fn sessions_and_messages_are_counted_by_tenant() {
    let acme =
        config::Tenant { sessions_max: Some(1), messages_per_second: Some(2), ..listed("acme") };
    let accounts = accounts(&[acme]);
    let account = accounts.of(Some("acme"));
    assert_eq!(account.open_session(), Ok(()));
    assert_eq!(account.open_session(), Err(Denied::TenantSessions));
    account.reopen_session();
    account.close_session();
    account.close_session();
    assert_eq!(account.open_session(), Ok(()));
    assert_eq!([0; 2].map(|_| account.charge_message(at(0))), [Ok(()); 2]);
    let denied = Denied::TenantMessages { retry_after_ms: 500 };
    assert_eq!(account.charge_message(at(0)), Err(denied));
    assert_eq!(account.owe_message(at(0)), Err(Denied::TenantMessages { retry_after_ms: 1_000 }));
    assert_eq!(account.charge_message(at(999)), Err(Denied::TenantMessages { retry_after_ms: 1 }));
    assert_eq!(account.charge_message(at(1_000)), Ok(()));
    let other = accounts.of(None);
    assert!(!other.limits_messages());
    assert!((0..1_000).all(|_| other.open_session().is_ok() && other.owe_message(at(0)).is_ok()));
}

#[test]
fn whoever_fills_the_queue_leaves_the_others_their_share_of_it() {
    let admission = admission(1_000, 100, 1_000, &[config::Tenant { weight: 3, ..listed("b") }]);
    let [a, b, c] = ["a", "b", "c"].map(|name| admission.accounts().of(Some(name)));
    let session = AtomicU32::new(0);
    let wait_all = |account: &Account| {
        let mut taken = 0;
        loop {
            match admission.admit(account, &session, 0, at(0)) {
                Ok(()) => admission.begin_wait(account),
                Err(denied) => return (taken, denied),
            }
            taken += 1;
        }
    };
    // Alone it may have all of it.
    assert_eq!(wait_all(&a), (100, Denied::QueueFull));
    assert_eq!(wait_all(&b), (75, Denied::TenantQueue), "three of four parts");
    assert_eq!(wait_all(&c), (20, Denied::TenantQueue), "one of five");
    assert_eq!(wait_all(&a), (0, Denied::TenantQueue));
    // When the queue is short again nobody asks for shares.
    (0..100).for_each(|_| admission.end_wait(&a));
    assert_eq!((admission.waiting(), wait_all(&c).0), (95, 5));
    for (account, jobs) in [(&b, 75), (&c, 25)] {
        (0..jobs).for_each(|_| admission.end_wait(account));
    }
    assert_eq!(wait_all(&a), (100, Denied::QueueFull), "the others have left");
}

#[test]
fn names_that_are_not_listed_have_accounts_of_their_own_up_to_a_bound() {
    let accounts = accounts(&[config::Tenant { weight: 9, ..listed("acme") }]);
    let number = |name: Option<&str>| accounts.of(name).number();
    assert_eq!(number(Some("acme")), number(Some("acme")));
    assert_eq!((accounts.of(Some("acme")).weight(), accounts.of(Some("x")).weight()), (9, 1));
    assert_eq!(number(None), number(Some("default")));
    assert_ne!(number(None), number(Some("x")));
    let made: Vec<u32> = (0..1_000).map(|n| number(Some(&format!("made up {n}")))).collect();
    let shared = number(Some("other"));
    assert_eq!(made.iter().filter(|n| **n != shared).count(), 254, "x and default came before");
    assert_eq!(made.last(), Some(&shared));
    // They are no less themselves for it.
    assert_eq!(number(Some("made up 1")), made[1]);
    assert_ne!(number(Some("acme")), shared);
    assert_eq!(accounts.standings().len(), 258);
}

#[test]
fn use_is_counted_by_tenant_pair_and_outcome() {
    let metrics = Metrics::new();
    let defaults = config::TenantDefaults::default();
    let accounts = Accounts::new(defaults, &[listed("acme")], &metrics);
    let (acme, stranger) = (accounts.of(Some("acme")), accounts.of(Some("made up")));
    accounts.job_ended(&acme, pair("zh:en"), Outcome::Succeeded, 1_500);
    accounts.job_ended(&acme, pair("zh:en"), Outcome::Succeeded, 500);
    accounts.job_ended(&acme, pair("zh:en"), Outcome::Failed, 70);
    accounts.job_ended(&acme, pair("en:zh"), Outcome::Empty, 10);
    accounts.job_ended(&stranger, pair("zh:en"), Outcome::Cancelled, 9_000);
    let told: Vec<_> = accounts
        .used()
        .iter()
        .map(|used| {
            let ended = used.by_outcome.iter().filter(|(_, jobs, _)| *jobs > 0);
            let ended = ended.map(|(o, jobs, ms)| format!("{} {jobs} {ms}", o.as_str()));
            let pair = used.pair.map(|pair| pair.to_string()).unwrap_or_default();
            format!("{} {pair}: {}", used.tenant, ended.collect::<Vec<_>>().join(", "))
        })
        .collect();
    let expected = [
        "acme en:zh: empty 1 10",
        "acme zh:en: succeeded 2 2000, failed 1 70",
        "made up zh:en: cancelled 1 9000",
    ];
    assert_eq!(told, expected);
    let text = String::from_utf8(metrics.text()).unwrap();
    for line in [
        "utterd_tenant_jobs_total{outcome=\"succeeded\",tenant=\"acme\"} 2",
        "utterd_tenant_audio_seconds_total{outcome=\"succeeded\",tenant=\"acme\"} 2",
        "utterd_tenant_jobs_total{outcome=\"cancelled\",tenant=\"other\"} 1",
        "utterd_tenant_audio_seconds_total{outcome=\"cancelled\",tenant=\"other\"} 9",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in {text}");
    }
    assert!(!text.contains("made up"), "a name that anybody can make up is a label");
}

#[test]
fn pairs_that_clients_make_up_are_counted_together_beyond_a_bound() {
    let accounts = accounts(&[]);
    let account = accounts.of(Some("x"));
    for n in 0..1_000 {
        accounts.job_ended(&account, pair(&format!("l{n}:en")), Outcome::Succeeded, 1_000);
    }
    let used = accounts.used();
    let total: u64 = used.iter().map(|u| u.by_outcome[0].1).sum();
    assert_eq!((used.len(), total), (65, 1_000));
    let rest = used.last().unwrap();
    assert_eq!((rest.pair, rest.by_outcome[0]), (None, (Outcome::Succeeded, 936, 936_000)));
}
