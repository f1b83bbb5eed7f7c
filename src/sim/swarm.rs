//! What kind of world a seed makes: every seed draws its own rates, so that some worlds are calm in
//! one respect and wild in another.

use fastrand::Rng;

use super::Plant;
use crate::config::Config;
use crate::store::StoreOptions;

/// The rates of one world. Those named `_pm` are in thousandths.
#[derive(Debug, Clone, Default)]
pub(super) struct Rates {
    /// 0 for none, 100 for all there is.
    pub(super) level: u32,
    /// A fault of the world that the judges must find.
    pub(super) plant: Plant,
    /// The longest time a message takes, in microseconds.
    pub(super) delay_us: u64,
    /// How long faults last, in microseconds.
    pub(super) faults_us: u64,
    /// Times the server dies.
    pub(super) crashes: u32,
    /// Of them, in a hundred, those that hit it again while it recovers.
    pub(super) again_pct: u32,
    /// Times it stops in good order and starts again.
    pub(super) stops: u32,
    /// Things that befall the network.
    pub(super) troubles: u32,
    /// Times the wall clock is set.
    pub(super) clock_jumps: u32,
    /// Times the disk is full.
    pub(super) full_disks: u32,
    /// The longest commit, in microseconds.
    pub(super) commit_us: u64,
    /// Nodes die.
    pub(super) node_death_pm: u32,
    /// Nodes never answer.
    pub(super) node_stall_pm: u32,
    /// Nodes say what is not so.
    pub(super) node_lie_pm: u32,
    /// Nodes answer twice.
    pub(super) node_twice_pm: u32,
    /// Nodes answer much too late.
    pub(super) node_late_pm: u32,
    /// Nodes say that they cannot.
    pub(super) node_refusal_pm: u32,
    /// Nodes that can say what they have, in a hundred.
    pub(super) new_nodes_pct: u32,
    /// Clients that can come back, in a hundred.
    pub(super) resume_pct: u32,
    /// Clients lose heart and come again.
    pub(super) client_drop_pm: u32,
    /// Time between two things a client says, in microseconds.
    pub(super) pace_us: u64,
    /// Time a node takes for a job, in microseconds.
    pub(super) work_us: u64,
    /// Jobs at once on a node.
    pub(super) slots: u32,
}

impl Rates {
    /// The rates of a seed at a level of faults from 0 to 100.
    pub(super) fn draw(rng: &mut Rng, level: u32, plant: Plant) -> Self {
        let level = level.min(100);
        // Some faults do not occur in some worlds, whatever the level.
        let mut rate = |max: u32| match rng.u32(..3) {
            0 => 0,
            1 => max * level / 400,
            _ => rng.u32(..=max) * level / 100,
        };
        let rates = Self {
            crashes: rate(5),
            again_pct: rate(60),
            stops: rate(2),
            troubles: rate(14),
            clock_jumps: rate(2),
            full_disks: rate(2),
            node_death_pm: rate(80),
            node_stall_pm: rate(80),
            node_lie_pm: rate(150),
            node_twice_pm: rate(200),
            node_late_pm: rate(80),
            node_refusal_pm: rate(120),
            client_drop_pm: rate(60),
            ..Self::default()
        };
        let slow = level > 0;
        Self {
            level,
            plant,
            delay_us: if slow { [2_000, 20_000, 80_000, 500_000][rng.usize(..4)] } else { 2_000 },
            faults_us: rng.u64(8_000_000..22_000_000),
            commit_us: if slow {
                [2_000, 15_000, 200_000, 3_000_000][rng.usize(..4)]
            } else {
                8_000
            },
            new_nodes_pct: [0, 50, 50, 100][rng.usize(..4)],
            resume_pct: [60, 60, 100, 30][rng.usize(..4)],
            pace_us: [150_000, 600_000, 1_500_000][rng.usize(..3)],
            work_us: [20_000, 300_000, 1_200_000][rng.usize(..3)],
            slots: rng.u32(1..=4),
            ..rates
        }
    }
}

/// The server's configuration in a world: the shipped one with shorter times and tighter bounds.
pub(super) fn config(rng: &mut Rng) -> Config {
    let mut config = Config::default();
    let session = &mut config.session;
    session.sessions_max = 64;
    session.jobs_max = [3, 8, 32][rng.usize(..3)];
    session.result_gap_wait_ms = [400, 1_500, 5_000][rng.usize(..3)];
    session.utterance_gap_wait_ms = 600;
    session.close_wait_ms = 3_000;
    session.resume_window_ms = [3_000, 12_000, 60_000][rng.usize(..3)];
    session.owed_frames_max = [3, 8, 256][rng.usize(..3)];
    let job = &mut config.job;
    job.pending_ms = [800, 2_500, 6_000][rng.usize(..3)];
    job.lease_base_ms = [900, 2_000, 4_000][rng.usize(..3)];
    job.lease_min_ms = 500;
    job.lease_max_ms = 5_000;
    job.turn_merge_grace_ms = 400;
    job.queue_max = [4, 40, 1_000][rng.usize(..3)];
    job.live_max = [8, 400, 1_000][rng.usize(..3)];
    job.history_max = 4_000;
    let node = &mut config.node;
    node.nodes_max = 64;
    node.heartbeat_timeout_ms = 3_000;
    node.warmup_timeout_ms = 2_000;
    node.quarantine_ms = 700;
    node.resume_grace_ms = [0, 800, 3_000][rng.usize(..3)];
    node.recovery_wait_ms = [0, 1_000, 3_000][rng.usize(..3)];
    node.quarantine_max_ms = 3_000;
    node.model_unavailable_ms = 1_500;
    config.segmenter.pause_ms = 400;
    config.segmenter.max_duration_ms = [600, 1_000, 10_000][rng.usize(..3)];
    config.segmenter.hangover_manual_ms = [0, 60, 200][rng.usize(..3)];
    config.transport.session_outbox_frames_max = [24, 512][rng.usize(..2)];
    config.transport.node_outbox_frames_max = [4, 4_096][rng.usize(..2)];
    config.store.outbox_retention_ms = [2_000, 6_000][rng.usize(..2)];
    config
}

/// The store's options in a world.
pub(super) fn store_options(config: &Config) -> StoreOptions {
    StoreOptions {
        cache_bytes: 1 << 20,
        terminal_retention_ms: config.store.terminal_retention_ms,
        terminal_rows_max: config.store.terminal_rows_max,
        outbox_retention_ms: config.store.outbox_retention_ms,
        dead_letter_retention_ms: config.store.dead_letter_retention_ms,
        dead_letters_max: config.store.dead_letters_max,
        ballast_bytes: 64 << 10,
        ..StoreOptions::default()
    }
}
