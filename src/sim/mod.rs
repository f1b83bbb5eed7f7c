//! The same core in a seeded virtual world: one thread, no sockets, no clock, no disk, and faults
//! of every kind, watched by judges that know only what crossed the links.
//!
//! ```text
//!   actor: client ─┐                     ┌─ actor: node
//!                  ├─ net ── shell ── net┤           env: time, chance, what happens next
//!   actor: client ─┘      core, Engine   └─ actor: node
//!                           SimDisk                    judge: what crossed, what is on the disk
//! ```
//!
//! [`run`] makes the world of one seed and tells what came of it; [`sweep`] does so for many.
//! docs/SIMULATION.md says how to use it.

mod actor;
mod counts;
mod env;
mod judge;
mod net;
mod shell;
mod swarm;
mod sweep;
mod world;

pub use counts::{Counts, REQUIRED};
pub use sweep::{Swept, sweep};

use world::World;

/// A world to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Nodes.
    pub nodes: usize,
    /// Clients, each with one session at a time.
    pub sessions: usize,
    /// How wild it is, from 0 (no faults) to 100.
    pub faults: u32,
    /// A fault of the world itself, which the judges must find.
    pub plant: Plant,
    /// Every line of the record goes to the log.
    pub aloud: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 3, sessions: 6, faults: 50, plant: Plant::None, aloud: false }
    }
}

/// Something that is wrong with the world and not with the program: it shows that judges see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Plant {
    /// Nothing.
    #[default]
    None,
    /// The disk says that it has synced, and has not.
    LyingDisk,
    /// Links change the order of messages now and then.
    SwappingLinks,
    /// Links change a byte of the audio that they carry to a node now and then.
    SpoiledAudio,
}

impl Plant {
    /// All that can be planted.
    pub const ALL: [Plant; 3] = [Plant::LyingDisk, Plant::SwappingLinks, Plant::SpoiledAudio];

    /// Name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Plant::None => "none",
            Plant::LyingDisk => "lying-disk",
            Plant::SwappingLinks => "swapping-links",
            Plant::SpoiledAudio => "spoiled-audio",
        }
    }
}

/// What came of a world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The seed that made it.
    pub seed: u64,
    /// Tells this course of things from every other.
    pub trace: u64,
    /// Things that happened.
    pub events: u64,
    /// What was reached.
    pub counts: Counts,
    /// What a judge says, and the last lines of the record; none if all is well.
    pub failure: Option<Failure>,
}

/// What was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The judge's sentence, which begins with the invariant.
    pub sentence: String,
    /// The last lines of the record.
    pub tail: Vec<String>,
}

/// Makes the world of a seed, lets it go to its end, and tells what came of it.
pub fn run(seed: u64, options: &Options) -> Report {
    // What the core draws, it draws from the thread's own generator.
    fastrand::seed(seed);
    let mut world = World::new(seed, options);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.go()));
    if let Err(panic) = ran {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
        world.convict(format!("panic: {}", text.unwrap_or_default()));
    }
    world.report(seed)
}
