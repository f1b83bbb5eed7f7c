//! What an operator can set: checked, typed and described.
//!
//! Every setting is declared once, below: section, key, type, default, unit, allowed values and
//! meaning. The file, the environment variable `UTTERD_<SECTION>_<KEY>`, the checks and the manual
//! follow from that line. The environment wins over the file, the file over the defaults. Nothing
//! here acts on a setting. What may change while the server runs is published whole (`live`), and
//! one line of each declaration says whether a setting may.

mod change;
mod check;
mod live;
mod pairs;
mod raw;
mod reference;
mod setting;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use change::{Change, Changed, is_untold};
pub use check::{Fault, Faults, Place, check_pools};
pub use live::{Live, Setter, Settings, Tenants, Version};
pub use pairs::{BadPair, PairPattern};
pub use reference::{example_toml, reference_keys, reference_markdown, reference_settings};

use setting::Allowed::{Any, List, OneOf, Text};
use setting::{Allowed, Section, choices, section};

/// Everything that can be set. The default is what an empty file gives.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Config {
    /// Address, data directory, shutdown.
    pub server: Server,
    /// Connections and their bounds.
    pub transport: Transport,
    /// Certificates.
    pub tls: Tls,
    /// Who has to show a key.
    pub auth: Auth,
    /// Cutting speech into utterances.
    pub segmenter: Segmenter,
    /// Speakers and the order of their results.
    pub session: Session,
    /// Rooms and their members.
    pub room: Room,
    /// The public API over HTTP.
    pub gateway: Gateway,
    /// What a tenant may have that is not listed.
    pub tenant: TenantDefaults,
    /// Units of work and their deadlines.
    pub job: Job,
    /// The machines behind, and when they are trusted.
    pub node: Node,
    /// What is kept on disk.
    pub store: Store,
    /// The operators' pages.
    pub console: Console,
    /// The log on standard error.
    pub log: Log,
    /// Traces for a collector.
    pub telemetry: Telemetry,
    /// Named shares of the nodes; none means one pool for every pair and tenant.
    pub pools: Vec<Pool>,
    /// Tenants with a share and limits of their own.
    pub tenants: Vec<Tenant>,
}

/// A configuration, and where each of its values was written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// By setting, as `section.key`, or `pools[0].key` in a list; what is not here is a default.
    pub places: BTreeMap<String, Place>,
}

impl From<Config> for Loaded {
    /// Made in code: nothing of it was written anywhere.
    fn from(config: Config) -> Self {
        Self { config, places: BTreeMap::new() }
    }
}

/// What every environment variable of a setting begins with.
pub const VARIABLE_PREFIX: &str = "UTTERD_";

/// Variables with our prefix that belong to the command line and are no settings.
pub const OTHER_VARIABLES: &[&str] = &["UTTERD_CONFIG", "UTTERD_KEY"];

impl Config {
    /// Reads the file, if one is named, and lays the environment over it.
    ///
    /// A named file that cannot be read is a fault; there is no search for one. Only variables that
    /// begin with [`VARIABLE_PREFIX`] are looked at. All faults come at once.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Faults> {
        Self::load_placed(file, env).map(|loaded| loaded.config)
    }

    /// The same, with where each value was written.
    pub fn load_placed(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Loaded, Faults> {
        match file.map(|path| (path, std::fs::read_to_string(path))) {
            None => check::read("", env),
            Some((_, Ok(text))) => check::read(&text, env),
            Some((path, Err(error))) => Err(Faults(vec![Fault {
                key: path.display().to_string(),
                wrong: format!("cannot be read: {error}"),
                given: None,
                allowed: None,
                place: Place::Nowhere,
            }])),
        }
    }

    /// As [`Config::load`], with the text of the file at hand.
    pub fn parse(
        text: &str,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Config, Faults> {
        check::read(text, env).map(|loaded| loaded.config)
    }

    /// Judges a configuration that was built or changed in code, by the same rules as a written
    /// one.
    pub fn check(&self) -> Result<(), Faults> {
        check::judge(self)
    }

    /// Every section but the lists. Taking `Config` apart makes a forgotten section a compile
    /// error.
    fn sections(&mut self) -> [&mut dyn Section; 15] {
        let Self {
            server,
            transport,
            tls,
            auth,
            segmenter,
            session,
            room,
            gateway,
            tenant,
            job,
            node,
            store,
            console,
            log,
            telemetry,
            pools: _,
            tenants: _,
        } = self;
        [
            server, transport, tls, auth, segmenter, session, room, gateway, tenant, job, node,
            store, console, log, telemetry,
        ]
    }
}

/// The process's own variables that begin with [`VARIABLE_PREFIX`]; bytes that are no text are
/// replaced.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .map(|(name, value)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        })
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
}

impl Server {
    /// Whether only this machine can reach the address. A name other than `localhost` counts as
    /// reachable.
    pub fn listens_on_loopback(&self) -> bool {
        is_loopback(&self.listen)
    }

    /// The same of the nodes' own address; true if they have none.
    pub fn node_listens_on_loopback(&self) -> bool {
        self.node_listen.as_deref().is_none_or(is_loopback)
    }
}

/// The networks of the addresses that only this host has.
fn this_host() -> Vec<String> {
    vec!["127.0.0.0/8".to_owned(), "::1/128".to_owned()]
}

fn is_loopback(address: &str) -> bool {
    match address.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_canonical().is_loopback(),
        Err(_) => {
            address.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case("localhost"))
        }
    }
}

/// Longest `server.drain_ms`: with what follows it, the process is gone within half a minute.
pub const DRAIN_MS_MAX: u64 = 20_000;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
const DAY_MS: u64 = 24 * HOUR_MS;
const KIB: u64 = 1_024;
const MIB: u64 = 1_024 * KIB;
const GIB: u64 = 1_024 * MIB;

const fn from_to(low: u64, high: u64) -> Allowed {
    Allowed::Whole(low, high)
}

const WEIGHT: Allowed = from_to(1, 1_000);
const SESSIONS: Allowed = from_to(0, 1_000_000);
const JOBS: Allowed = from_to(0, 10_000_000);
const MESSAGES: Allowed = from_to(0, 100_000);
const AUDIO: Allowed = from_to(0, 10_000_000);
const PERCENT: Allowed = Allowed::Real(0.0, 100.0);
const HOST_PORT: Allowed =
    Text("HOST:PORT, such as 127.0.0.1:5010, [::1]:5010 or localhost:0", check::is_host_port);
const COLLECTOR: Allowed =
    Text("http://HOST:PORT/PATH, usually http://HOST:4318/v1/traces", check::is_collector);
const NOT_EMPTY: Allowed = Text("a path that is not empty", |text| !text.is_empty());
const LOG_FILTER: Allowed = Text(
    "levels off, error, warn, info, debug, trace, or TARGET=LEVEL, split by commas",
    check::is_log_filter,
);
const POOL_NAME: Allowed = Text("1 to 64 of A-Z a-z 0-9 _ . -", check::is_pool_name);
const TENANT_NAME: Allowed =
    Text("1 to 128 bytes that are not all blank; not `other`", check::is_tenant_name);
const PAIRS: Allowed = List("one or more of \"zh:en\", \"*:en\", \"zh:*\", \"*:*\"", 1, |_| true);
const NAMES: Allowed = List("names that are not empty", 0, |name| !name.trim().is_empty());
const ORIGINS: Allowed =
    List("as browsers write them: \"https://HOST\" or \"https://HOST:PORT\"", 0, check::is_origin);
const NETWORKS: Allowed = List("networks as \"10.0.0.0/8\" or \"fd00::/8\"", 0, |text| {
    text.parse::<ipnet::IpNet>().is_ok()
});

section! {
    /// Where the service is reached, where it keeps its data, and how it goes.
    Server in "server" restart {
        /// Address to listen on. Port 0 lets the system choose one.
        listen: String = "127.0.0.1:5010".to_owned(), "none", HOST_PORT;
        /// Address of their own for nodes, which is opened before sessions are taken; unset, nodes
        /// and sessions share `listen`.
        node_listen: Option<String> = None, "none", HOST_PORT;
        /// Directory for everything kept on disk; made when missing.
        data: PathBuf = PathBuf::from("utterd-data"), "none", NOT_EMPTY;
        /// How long work in flight may still finish after a request to stop; 0 stops at once.
        drain_ms: u64 = 10_000, "ms", from_to(0, DRAIN_MS_MAX), live;
        /// Allows an address that other machines can reach; otherwise only loopback is taken. To be
        /// set where credentials, or something in front, guard the service.
        allow_remote: bool = false, "none", Any;
    }
}

section! {
    /// How many connections there may be and how much one of them may hold; beyond a bound the
    /// connection is closed or refused, never the process endangered.
    Transport in "transport" live {
        /// Open connections of all kinds; further ones are refused.
        connections_max: usize = 20_000, "connections", from_to(1, 1_000_000);
        /// Open connections from one address (of IPv6, from one /64); further ones are answered
        /// 429. 0 is no limit.
        address_connections_max: usize = 256, "connections", from_to(0, 1_000_000), restart;
        /// New connections a second from one address, as many at once; further ones are answered
        /// 429. 0 is no limit.
        address_connections_per_second: u32 = 50, "connections", from_to(0, 1_000_000), restart;
        /// Wrong credentials a minute from one address, as many at once; who shows more is answered
        /// 429 for a while, whatever it shows. 0 is no limit.
        address_failures_per_minute: u32 = 30, "failures", from_to(0, 1_000_000), restart;
        /// Networks whose addresses are not counted: this host, and what stands in front of it.
        unlimited_addresses: Vec<String> = this_host(), "none", NETWORKS, restart;
        /// Time a new connection has for its HTTP request head, and before that as much again for
        /// the TLS handshake.
        header_timeout_ms: u64 = 5_000, "ms", from_to(1, 10 * MINUTE_MS), restart;
        /// Time a new WebSocket has for the message that says who it is.
        first_message_timeout_ms: u64 = 10_000, "ms", from_to(1, 10 * MINUTE_MS);
        /// Largest message a session may send.
        session_message_bytes_max: usize = 1_048_576, "bytes", from_to(4 * KIB, 64 * MIB), restart;
        /// Largest message a node may send.
        node_message_bytes_max: usize = 16_777_216, "bytes", from_to(4 * KIB, 256 * MIB), restart;
        /// Bytes a second from one session, as many at once; more is read as slowly. 0 is no limit.
        session_bytes_per_second: usize = 8_388_608, "bytes", from_to(0, GIB);
        /// WebSocket frames a second from one session, as many at once; a session that sends more
        /// is closed with 1008. 0 is no limit.
        session_frames_per_second: u32 = 4_000, "frames", from_to(0, 1_000_000);
        /// Pings, pongs and close frames among these.
        session_controls_per_second: u32 = 100, "frames", from_to(0, 1_000_000);
        /// As `session_bytes_per_second`, of one node.
        node_bytes_per_second: usize = 268_435_456, "bytes", from_to(0, 4 * GIB);
        /// As `session_frames_per_second`, of one node.
        node_frames_per_second: u32 = 100_000, "frames", from_to(0, 10_000_000);
        /// Pings, pongs and close frames among these.
        node_controls_per_second: u32 = 1_000, "frames", from_to(0, 1_000_000);
        /// Frames waiting to be written to one session.
        session_outbox_frames_max: usize = 512, "frames", from_to(1, 1_000_000);
        /// Bytes waiting to be written to one session; at least 2 MiB more than the largest message
        /// of a node.
        session_outbox_bytes_max: usize = 20_971_520, "bytes", from_to(4 * KIB, GIB), restart;
        /// Bytes waiting to be written to all sessions together; beyond it a session in which
        /// something waits already is closed as too slow (4408), and one that keeps up is served.
        /// What goes to nodes is counted by `job.audio_bytes_max`.
        sessions_outbox_bytes_max: usize = 268_435_456, "bytes", from_to(64 * KIB, 1_024 * GIB);
        /// Frames waiting to be written to one node.
        node_outbox_frames_max: usize = 4_096, "frames", from_to(1, 1_000_000);
        /// Bytes waiting to be written to one node.
        node_outbox_bytes_max: usize = 67_108_864, "bytes", from_to(4 * KIB, 4 * GIB), restart;
        /// Read buffer of one session's connection while something passes; at rest it has none.
        session_read_buffer_bytes: usize = 4_096, "bytes", from_to(KIB, 16 * MIB);
        /// Read buffer of one node's connection.
        node_read_buffer_bytes: usize = 16_384, "bytes", from_to(KIB, 16 * MIB);
        /// Bytes that the system may hold for one connection once they are written, about; 0 leaves
        /// it to the system, which may take some megabytes for a peer that does not read.
        send_buffer_bytes: usize = 131_072, "bytes", from_to(0, 64 * MIB), restart;
        /// Time between pings to a peer.
        ping_interval_ms: u64 = 20_000, "ms", from_to(1, HOUR_MS);
        /// Time a peer has to answer a ping before its connection is given up.
        pong_timeout_ms: u64 = 20_000, "ms", from_to(1, HOUR_MS);
        /// Time a write may stand still before the connection is given up.
        write_progress_timeout_ms: u64 = 10_000, "ms", from_to(1, HOUR_MS);
        /// Origins whose pages may use the service; empty allows all. Only browsers say an origin:
        /// this keeps strange pages from using what their visitor can reach, and nobody else out.
        allowed_origins: Vec<String> = Vec::new(), "none", ORIGINS;
    }
}

section! {
    /// Certificates, in PEM files that are read at the start and on request. A listener that has
    /// one speaks TLS 1.3 and 1.2 and nothing else, one that has none is plain.
    Tls in "tls" restart {
        /// Certificate chain of both listeners, the server's own certificate first.
        cert: Option<PathBuf> = None, "none", NOT_EMPTY;
        /// The private key that belongs to it.
        key: Option<PathBuf> = None, "none", NOT_EMPTY;
        /// Certificate chain of `server.node_listen`, if it is to have another.
        node_cert: Option<PathBuf> = None, "none", NOT_EMPTY;
        /// The private key that belongs to that.
        node_key: Option<PathBuf> = None, "none", NOT_EMPTY;
        /// Certificates of the authorities of the nodes: who has none from them is turned away on
        /// `server.node_listen`.
        node_client_ca: Option<PathBuf> = None, "none", NOT_EMPTY;
    }
}

section! {
    /// The public API: a recording in, its translation out.
    Gateway in "gateway" live {
        /// Whether it is there.
        enabled: bool = true, "none", Any;
        /// Largest recording, as it comes and as it goes to a node.
        recording_bytes_max: usize = 2_097_152, "bytes", from_to(4 * KIB, 64 * MIB);
        /// Recordings that are taken in or translated by `POST /v1/speech/translate` at one time;
        /// each may take up to eight times its bytes of memory.
        requests_max: usize = 64, "requests", from_to(1, 100_000);
        /// Time a request has to bring its recording.
        upload_timeout_ms: u64 = 60_000, "ms", from_to(1, HOUR_MS);
        /// Time after which a recording is given up that was not translated.
        answer_timeout_ms: u64 = 180_000, "ms", from_to(1, HOUR_MS);
    }
}

section! {
    /// Where a stream of speech is cut into utterances.
    Segmenter in "segmenter" live {
        /// Silence or absence of audio after which an utterance ends; 0 never ends one for a pause.
        pause_ms: u64 = 3_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// Length of audio at which an utterance is cut though speech goes on; 0 never cuts for
        /// length.
        max_duration_ms: u64 = 10_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// Bytes of audio, as received, at which an utterance is cut.
        max_bytes: usize = 512_000, "bytes", from_to(KIB, 64 * MIB);
        /// How long audio is still collected after the speaker ended the utterance by hand.
        hangover_manual_ms: u64 = 200, "ms", from_to(0, 10_000);
        /// Silence a node is asked to append to an utterance ended by hand.
        padding_manual_ms: u32 = 280, "ms", from_to(0, 10_000);
        /// Silence a node is asked to append to an utterance cut for a pause or for length.
        padding_auto_ms: u32 = 220, "ms", from_to(0, 10_000);
        /// Opus packets of at most this many bytes count as silence; 0 takes every packet for
        /// speech.
        opus_silence_packet_bytes: usize = 8, "bytes", from_to(0, 1_275);
        /// PCM whose root mean square lies below this counts as silence; 0 takes everything for
        /// speech.
        pcm_silence_rms: f32 = 0.008, "of full scale", Allowed::Real(0.0, 1.0);
        /// Silence kept before the first speech of an utterance; what is older is dropped.
        leading_silence_ms: u64 = 1_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// How long a client that said it plays a result suspends the pause, should it never say it
        /// ended.
        playing_timeout_ms: u64 = 60_000, "ms", from_to(0, HOUR_MS);
    }
}

section! {
    /// Speakers, the order in which their results leave, and how these are handed over.
    Session in "session" live {
        /// Open sessions; further ones are refused.
        sessions_max: usize = 20_000, "sessions", from_to(1, 1_000_000);
        /// Open jobs of one session; bounds the results held back for order as well.
        jobs_max: usize = 64, "jobs", from_to(1, 10_000), restart;
        /// How long a finished result waits for an earlier one that is still missing.
        result_gap_wait_ms: u64 = 5_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// How long an `utterance` message that arrived out of order waits for an earlier one.
        utterance_gap_wait_ms: u64 = 1_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// How long a session being closed waits for its open jobs.
        close_wait_ms: u64 = 10_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// How long after the end of playing (or after the first result, while nothing was played)
        /// further results still get the same group id.
        group_window_ms: u64 = 2_000, "ms", from_to(0, HOUR_MS);
        /// How long a client that can come back is waited for after its connection was lost.
        resume_window_ms: u64 = 900_000, "ms", from_to(0, DAY_MS);
        /// Results kept for one session that are not acknowledged: a client that acknowledges may
        /// say no more, for another the oldest becomes a dead letter.
        owed_frames_max: usize = 256, "frames", from_to(1, 1_000_000);
        /// Bytes of results kept for one session, with the same effect.
        owed_bytes_max: usize = 33_554_432, "bytes", from_to(4 * KIB, GIB);
        /// Whether a result leaves after it is on disk, or at once. Clients that can come back
        /// always get it after.
        delivery: Delivery = Delivery::Durable, "none", OneOf(Delivery::WORDS);
    }
}

choices! {
    /// When a result may leave for its listeners.
    Delivery {
        /// Once it is on disk: a crash repeats results and loses none.
        Durable = "durable",
        /// At once; it is written down behind. A crash may lose the last ones.
        Fast = "fast",
    }
}

section! {
    /// Who has to show a key. Without keys everybody is let in; once there is one of a kind,
    /// nobody is without.
    Auth in "auth" live {
        /// Sessions need a key or a token, also while no key was made.
        session_keys_required: bool = false, "none", Any;
        /// Nodes need a key, also while none was made.
        node_keys_required: bool = false, "none", Any;
        /// Operators who are not on this host need a key, also while none was made.
        admin_keys_required: bool = false, "none", Any;
    }
}

/// Most members a room can be allowed.
pub const ROOM_MEMBERS_MAX: usize = 1_000;

section! {
    /// Rooms, in which everybody hears what is said in their own language.
    Room in "room" live {
        /// Rooms at once; further ones are refused.
        rooms_max: usize = 10_000, "rooms", from_to(1, 500_000);
        /// Members of one room.
        members_max: usize = 50, "members", from_to(2, ROOM_MEMBERS_MAX as u64);
        /// Languages heard in one room: each utterance becomes as many jobs.
        languages_max: usize = 8, "languages", from_to(1, 32), restart;
        /// How long a room stays in which nobody speaks.
        expire_ms: u64 = 1_800_000, "ms", from_to(1_000, DAY_MS);
        /// How long a room stays whose last member was lost.
        empty_ms: u64 = 120_000, "ms", from_to(0, DAY_MS);
        /// Texts kept for those who come later; one utterance has one for each language.
        history_max: usize = 200, "texts", from_to(0, 10_000);
    }
}

section! {
    /// What each tenant may have that has no `[[tenants]]` table, and the limits that such a table
    /// leaves unset. Sessions that name no tenant are one, called `default`.
    TenantDefaults in "tenant" live {
        /// Share of the slots against other tenants, where they are scarce.
        weight: u32 = 1, "none", WEIGHT;
        /// Open sessions of the tenant; further ones are refused. 0 is no limit.
        sessions_max: u32 = 0, "sessions", SESSIONS;
        /// Jobs of the tenant that are not settled; further ones are refused. 0 is no limit.
        jobs_max: u32 = 0, "jobs", JOBS;
        /// Messages a second from all sessions of the tenant; as many may come at once. 0 is no
        /// limit.
        messages_per_second: u32 = 0, "messages", MESSAGES;
        /// Seconds of audio a minute in the jobs of the tenant; as much may come at once. 0 is no
        /// limit.
        audio_seconds_per_minute: u32 = 0, "s", AUDIO;
    }
}

section! {
    /// A tenant with a share and limits of its own: sessions name it as `tenant_id`. One
    /// `[[tenants]]` table each, set in the file, not by variables.
    Tenant in "tenants" live {
        /// What sessions call it; no two alike.
        name: String = String::new(), "none", TENANT_NAME;
        /// Share of the slots against other tenants, where they are scarce.
        weight: u32 = 1, "none", WEIGHT;
        /// As `tenant.sessions_max`, for this tenant; unset follows it.
        sessions_max: Option<u32> = None, "sessions", SESSIONS;
        /// As `tenant.jobs_max`, for this tenant; unset follows it.
        jobs_max: Option<u32> = None, "jobs", JOBS;
        /// As `tenant.messages_per_second`, for this tenant; unset follows it.
        messages_per_second: Option<u32> = None, "messages", MESSAGES;
        /// As `tenant.audio_seconds_per_minute`, for this tenant; unset follows it.
        audio_seconds_per_minute: Option<u32> = None, "s", AUDIO;
    }
}

impl TenantDefaults {
    /// What holds for a tenant that is not listed.
    pub fn terms(&self, name: &str) -> Tenant {
        let unset = Tenant { name: name.to_owned(), weight: self.weight, ..Tenant::default() };
        self.complete(&unset)
    }

    /// What holds for a listed tenant, with all that it leaves unset.
    pub fn complete(&self, listed: &Tenant) -> Tenant {
        Tenant {
            name: listed.name.clone(),
            weight: listed.weight,
            sessions_max: listed.sessions_max.or(Some(self.sessions_max)),
            jobs_max: listed.jobs_max.or(Some(self.jobs_max)),
            messages_per_second: listed.messages_per_second.or(Some(self.messages_per_second)),
            audio_seconds_per_minute: listed
                .audio_seconds_per_minute
                .or(Some(self.audio_seconds_per_minute)),
        }
    }
}

section! {
    /// Units of work: how long they may take, how often they are tried, how many there may be.
    Job in "job" live {
        /// How long a job may wait for a node that can take it. A pool may set its own.
        pending_ms: u64 = 10_000, "ms", from_to(1, HOUR_MS);
        /// Time a node has for a job, before its length is counted. A pool may set its own.
        lease_base_ms: u64 = 30_000, "ms", from_to(1, HOUR_MS);
        /// Time added to the lease for each second of audio.
        lease_per_audio_second_ms: u64 = 500, "ms", from_to(0, HOUR_MS);
        /// Shortest lease, whatever the sum.
        lease_min_ms: u64 = 15_000, "ms", from_to(1, HOUR_MS);
        /// Longest lease, whatever the sum.
        lease_max_ms: u64 = 60_000, "ms", from_to(1, HOUR_MS);
        /// Times a job is given to a node before it fails. A pool may set its own.
        attempts_max: u32 = 3, "attempts", from_to(1, 8);
        /// Losses of its node after which a job fails, so that one that kills nodes does not kill
        /// them all.
        node_deaths_max: u32 = 2, "attempts", from_to(1, 100);
        /// How long after the end of a turn an answer to one of its earlier slices is still
        /// awaited, before the slice counts as merged into the last answer.
        turn_merge_grace_ms: u64 = 1_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// Jobs waiting for a node; further ones are refused, but of tenants that have less than
        /// their share of the queue.
        queue_max: usize = 20_000, "jobs", from_to(1, 10_000_000);
        /// Bytes of speech of jobs that are not settled, about; further ones are refused.
        audio_bytes_max: usize = 1_073_741_824, "bytes", from_to(64 * KIB, 1_024 * GIB);
        /// Jobs that are not settled, waiting ones among them; further ones are refused.
        live_max: usize = 100_000, "jobs", from_to(1, 10_000_000);
        /// Settled jobs kept in memory for questions about them.
        history_max: usize = 10_000, "jobs", from_to(0, 10_000_000), restart;
        /// How long a repeated submission finds the first one.
        idempotency_ms: u64 = 300_000, "ms", from_to(0, 7 * DAY_MS);
    }
}

section! {
    /// The machines that do the work: what they may hold and when they are trusted.
    Node in "node" live {
        /// Jobs at once on a node that names no number.
        slots_default: u32 = 4, "jobs", from_to(1, 65_536);
        /// Jobs at once on any node, whatever number it names.
        slots_max: u32 = 1_024, "jobs", from_to(1, 65_536);
        /// Registered nodes; further ones are refused.
        nodes_max: usize = 5_000, "nodes", from_to(1, 100_000);
        /// Silence after which a node counts as lost.
        heartbeat_timeout_ms: u64 = 45_000, "ms", from_to(1, HOUR_MS);
        /// How long the jobs of a node that can say what it has wait for it to come again after its
        /// connection is lost; 0 gives them to others at once.
        resume_grace_ms: u64 = 3_000, "ms", from_to(0, 10 * MINUTE_MS);
        /// How long jobs of an earlier run wait, after a start, for the nodes known to that run; 0
        /// gives them out at once.
        recovery_wait_ms: u64 = 3_000, "ms", from_to(0, 10 * MINUTE_MS), restart;
        /// How long a new node may take to be ready.
        warmup_timeout_ms: u64 = 60_000, "ms", from_to(1, HOUR_MS);
        /// A report above this processor load takes the node out until its next report; 100 never
        /// does.
        cpu_threshold_percent: f32 = 100.0, "percent", PERCENT;
        /// A report above this load of a graphics processor takes the node out until its next
        /// report.
        gpu_threshold_percent: f32 = 95.0, "percent", PERCENT;
        /// A report above this use of memory takes the node out until its next report.
        memory_threshold_percent: f32 = 95.0, "percent", PERCENT;
        /// Latest outcomes of a node that are looked at.
        failure_window: u32 = 5, "jobs", from_to(1, 32);
        /// Failures in the window that put a node into quarantine.
        failure_count: u32 = 3, "jobs", from_to(1, 32);
        /// Failures in a row that put a node into quarantine.
        failure_consecutive: u32 = 3, "jobs", from_to(1, 32);
        /// First quarantine; each further one is longer.
        quarantine_ms: u64 = 30_000, "ms", from_to(1, DAY_MS);
        /// Longest quarantine.
        quarantine_max_ms: u64 = 600_000, "ms", from_to(1, DAY_MS);
        /// How long a model a node reported missing is not asked of it again.
        model_unavailable_ms: u64 = 60_000, "ms", from_to(0, DAY_MS);
        /// Refuses nodes that report no graphics processor.
        require_gpu: bool = false, "none", Any;
        /// Refuses nodes whose capability schema version is not exactly this; empty takes any.
        require_schema: String = String::new(), "none", Any;
    }
}

section! {
    /// What is kept on disk, and for how long.
    Store in "store" restart {
        /// Whether work survives a restart. Off, nothing is written and every delivery is a fast
        /// one.
        enabled: bool = true, "none", Any;
        /// Memory for pages of the database.
        cache_bytes: usize = 67_108_864, "bytes", from_to(MIB, 64 * GIB);
        /// Whether the audio of unsettled jobs is kept, so that they can be done again after a
        /// restart.
        keep_audio: bool = true, "none", Any;
        /// How long the rows of settled jobs are kept.
        terminal_retention_ms: u64 = 86_400_000, "ms", from_to(0, 365 * DAY_MS);
        /// Rows of settled jobs; the oldest go first.
        terminal_rows_max: u64 = 100_000, "rows", from_to(0, 100_000_000);
        /// How long results are kept for a session that is over; then they become dead letters.
        outbox_retention_ms: u64 = 120_000, "ms", from_to(0, 365 * DAY_MS);
        /// How long dead letters (results nobody came for, jobs given up) are kept.
        dead_letter_retention_ms: u64 = 86_400_000, "ms", from_to(0, 365 * DAY_MS);
        /// Dead letters kept; the oldest go first.
        dead_letters_max: u64 = 10_000, "rows", from_to(0, 100_000_000);
        /// How long after a start nothing kept is too old: the clock may have been moved.
        expiry_pause_ms: u64 = 60_000, "ms", from_to(0, DAY_MS);
        /// Room set aside on the disk, given up when it is full so that rows can be deleted; 0 for
        /// none.
        ballast_bytes: u64 = 67_108_864, "bytes", from_to(0, 16 * GIB);
        /// Free space below which a warning is given, as a share of the disk...
        free_warn_percent: u64 = 20, "percent", from_to(0, 100);
        /// ...or as bytes, whichever is less.
        free_warn_bytes: u64 = 1_073_741_824, "bytes", from_to(0, 1_024 * GIB);
        /// Free space below which no new jobs are accepted, as a share of the disk...
        refuse_jobs_percent: u64 = 10, "percent", from_to(0, 100);
        /// ...or as bytes, whichever is less.
        refuse_jobs_bytes: u64 = 268_435_456, "bytes", from_to(0, 1_024 * GIB);
        /// Free space below which no new sessions are opened, as a share of the disk...
        refuse_sessions_percent: u64 = 5, "percent", from_to(0, 100);
        /// ...or as bytes, whichever is less.
        refuse_sessions_bytes: u64 = 134_217_728, "bytes", from_to(0, 1_024 * GIB);
    }
}

section! {
    /// The pages at `/console`.
    Console in "console" live {
        /// Whether there are any.
        enabled: bool = true, "none", Any;
        /// Open consoles that are kept up to date; further ones are answered 503.
        viewers_max: usize = 32, "consoles", from_to(1, 1_000);
    }
}

section! {
    /// The log on standard error.
    Log in "log" live {
        /// Lines for people, or one JSON object a line.
        format: LogFormat = LogFormat::Pretty, "none", OneOf(LogFormat::WORDS), restart;
        /// What is logged: a level, or levels by target such as `info,utterd::store=debug`.
        level: String = "info".to_owned(), "none", LOG_FILTER;
    }
}

choices! {
    /// How a line of the log looks.
    LogFormat {
        /// Time, level, target, message, fields; coloured on a terminal.
        Pretty = "pretty",
        /// One JSON object.
        Json = "json",
    }
}

section! {
    /// Traces of jobs for a collector, over HTTP as protobuf (OTLP).
    Telemetry in "telemetry" restart {
        /// Where they go; unset, none are made.
        otlp_endpoint: Option<String> = None, "none", COLLECTOR;
        /// Ended jobs that may wait for the collector; beyond, traces are dropped and counted.
        queue_max: usize = 4_096, "jobs", from_to(1, 1_000_000);
        /// Share of the jobs traced whose client does not say whether to.
        sample_percent: u32 = 100, "percent", from_to(0, 100);
    }
}

section! {
    /// A named share of the work: some pairs, for some tenants, with deadlines of its own. One
    /// `[[pools]]` table each; pools are set in the file or by the admin API, not by variables.
    Pool in "pools" live with #[derive(serde::Deserialize)] #[serde(default, deny_unknown_fields)] {
        /// What the pool is called; no two alike.
        name: String = String::new(), "none", POOL_NAME;
        /// Pairs served; `*` leaves a side open.
        pairs: Vec<PairPattern> = Vec::new(), "none", PAIRS;
        /// Services a node must offer to work for the pool.
        required_services: Vec<String> = Vec::new(), "none", NAMES;
        /// Tenants served; empty serves everyone.
        tenants: Vec<String> = Vec::new(), "none", NAMES;
        /// Share of the nodes against other pools that want the same ones.
        weight: u32 = 1, "none", WEIGHT;
        /// As `job.pending_ms`, for this pool; unset follows it.
        pending_ms: Option<u64> = None, "ms", from_to(1, HOUR_MS);
        /// As `job.lease_base_ms`, for this pool; unset follows it.
        lease_base_ms: Option<u64> = None, "ms", from_to(1, HOUR_MS);
        /// As `job.attempts_max`, for this pool; unset follows it.
        attempts_max: Option<u32> = None, "attempts", from_to(1, 100);
    }
}
