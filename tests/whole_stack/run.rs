//! One seed: builds its world, lets it run, and judges how it ended.

use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use fastrand::Rng;
use mad_turmoil::rand::set_rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use turmoil::Sim;
use utterd::store::{Engine, SimDisk, StoreOptions};

use super::plan::{Fault, Plan};
use super::world::World;
use super::{client, machine, node, plain};

/// How long speakers may take once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the last rows may take when nobody speaks any more.
const REST: Duration = Duration::from_secs(8);
/// Unix time at which every world begins.
const EPOCH: Duration = Duration::from_secs(1_800_000_000);
/// Real seconds after which a world is stuck in one step.
const STUCK_S: u64 = 120;

/// Runs a seed in this process, which it has for itself.
pub fn alone(seed: u64) -> ExitCode {
    // What the standard library, tokio and the server draw comes from the seed too.
    set_rng(StdRng::seed_from_u64(seed));
    fastrand::seed(seed);
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("seed {seed}: {panic}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::exit(101);
    }));
    std::thread::spawn(|| {
        (0..STUCK_S).for_each(|_| std::thread::sleep(Duration::from_secs(1)));
        eprintln!("the world does not move");
        std::process::exit(102);
    });
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::new(&mut rng);
    let world = Rc::new(World::new(SimDisk::new(seed)));
    Run::new(&world, plan, rng).finish();
    let (lines, hash) = world.trace();
    let faults = world.faults();
    let tally = serde_json::to_string(&world.book.borrow().tally).unwrap_or_default();
    if faults.is_empty() {
        println!("trace {lines} {hash:016x}\ntally {tally}");
        return ExitCode::SUCCESS;
    }
    eprintln!("{}\nseed {seed}: {faults:#?}", world.trail().join("\n"));
    ExitCode::FAILURE
}

/// Something that will be undone.
enum Undo {
    Bounce(String),
    Repair(String),
    Release(String),
    Loss(String),
}

struct Run<'a> {
    world: Rc<World>,
    sim: Sim<'a>,
    plan: Plan,
    rng: Rng,
    /// The names of nodes and speakers.
    peers: Vec<String>,
    undo: Vec<(Duration, Undo)>,
    /// How long the server is away when it dies, and whether anybody notices.
    next_death: (Duration, bool),
}

impl Run<'_> {
    fn new(world: &Rc<World>, plan: Plan, mut rng: Rng) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(rng.u64(..))
            .epoch(UNIX_EPOCH + EPOCH)
            .simulation_duration(Duration::from_secs(3_600))
            .tick_duration(plan.tick)
            .min_message_latency(plan.latency.0)
            .max_message_latency(plan.latency.1)
            .tcp_capacity(1_024)
            .build();
        let mut peers = Vec::new();
        let (config, pace) = (plan.config.clone(), plan.pace);
        let (shared, seed) = (Rc::clone(world), rng.u64(..));
        let lives = std::cell::Cell::new(0_u64);
        sim.host("server", move || {
            lives.set(lives.get() + 1);
            let rng = Rng::with_seed(seed ^ lives.get());
            machine::life(Rc::clone(&shared), config.clone(), pace, rng)
        });
        for (number, style) in plan.nodes.iter().copied().enumerate() {
            let (id, work_ms, seed) = (format!("node-{number}"), plan.work_ms, rng.u64(..));
            let (shared, lives) = (Rc::clone(world), std::cell::Cell::new(0_u64));
            peers.push(id.clone());
            sim.host(id.clone(), move || {
                lives.set(lives.get() + 1);
                let rng = Rng::with_seed(seed ^ lives.get());
                node::run(Rc::clone(&shared), rng, id.clone(), style, work_ms)
            });
        }
        world.speaking.set(plan.speakers.len());
        for (voice, (count, comes_back)) in plan.speakers.iter().copied().enumerate() {
            let (name, voice, rng) = (format!("speaker-{voice}"), voice as u64, rng.fork());
            peers.push(name.clone());
            match comes_back {
                true => sim.client(name, client::run(Rc::clone(world), rng, voice, count)),
                false => sim.client(name, plain::run(Rc::clone(world), rng, voice, count)),
            }
        }
        let next_death = (Duration::from_millis(100), false);
        Self { world: Rc::clone(world), sim, plan, rng, peers, undo: Vec::new(), next_death }
    }

    fn finish(mut self) {
        self.plan.faults.reverse();
        let mut rest = None;
        while self.world.faults().is_empty() {
            self.go_wrong();
            self.undo();
            if self.world.died.replace(false) {
                self.crash();
            }
            if let Err(error) = self.sim.step() {
                self.world.fault("simulation", &error.to_string());
            }
            let now = self.sim.elapsed();
            let silent = self.world.speaking.get() == 0 && self.world.calm.get();
            if !silent && now > self.plan.calm + PATIENCE {
                let left = self.world.speaking.get();
                self.world.fault("run", &format!("{left} speakers never finish"));
            }
            if silent && now > *rest.get_or_insert(now + REST) {
                break;
            }
        }
        self.last_look();
    }

    fn go_wrong(&mut self) {
        let now = self.sim.elapsed();
        while self.plan.faults.last().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, fault)) = self.plan.faults.pop() {
                self.note(&format!("{fault:?}"));
                self.inflict(fault);
            }
        }
        if now >= self.plan.calm && !self.world.calm.get() && self.undo.is_empty() {
            self.note("calm");
            // A power cut that waits for its moment does not come any more.
            self.world.disk.cut_power_after(None);
            self.world.calm.set(true);
        }
    }

    fn note(&self, what: &str) {
        self.world.now.set(self.sim.elapsed());
        self.world.note("run", what);
    }

    fn inflict(&mut self, fault: Fault) {
        let now = self.sim.elapsed();
        let peer = |number: usize| self.peers[number].clone();
        match fault {
            Fault::Crash { changes, away, silent } => {
                self.next_death = (away, silent);
                self.world.disk.cut_power_after(Some(changes.unwrap_or(0)));
                if changes.is_none() {
                    self.crash();
                }
            }
            Fault::NodeCrash(number, away) => {
                let name = peer(number);
                if self.sim.is_host_running(name.as_str()) {
                    self.world.count("node crash");
                    self.sim.crash(name.as_str());
                    self.undo.push((now + away, Undo::Bounce(name)));
                }
            }
            Fault::Partition(number, lasts) => {
                self.world.count("partition");
                self.sim.partition("server", peer(number).as_str());
                self.undo.push((now + lasts, Undo::Repair(peer(number))));
            }
            Fault::OneWay(number, lasts, towards) => {
                self.world.count("partition one way");
                let peer = peer(number);
                let (from, to) = if towards { (&*peer, "server") } else { ("server", &*peer) };
                self.sim.partition_oneway(from, to);
                self.undo.push((now + lasts, Undo::Repair(peer)));
            }
            Fault::Hold(number, lasts) => {
                self.world.count("hold");
                self.sim.hold("server", peer(number).as_str());
                self.undo.push((now + lasts, Undo::Release(peer(number))));
            }
            Fault::Lossy(number, lasts) => {
                self.world.count("lossy link");
                let rate = [0.01, 0.05, 0.3][self.rng.usize(..3)];
                self.sim.set_link_fail_rate("server", peer(number).as_str(), rate);
                self.undo.push((now + lasts, Undo::Loss(peer(number))));
            }
        }
    }

    fn undo(&mut self) {
        let now = self.sim.elapsed();
        let due: Vec<_> = self.undo.extract_if(.., |(at, _)| *at <= now).collect();
        for (_, undo) in due {
            match undo {
                Undo::Bounce(name) => {
                    self.sim.bounce(name.as_str());
                    if name == "server" {
                        self.peers.iter().for_each(|peer| self.sim.repair("server", peer.as_str()));
                    }
                }
                Undo::Repair(peer) => self.sim.repair("server", peer.as_str()),
                Undo::Release(peer) => self.sim.release("server", peer.as_str()),
                Undo::Loss(peer) => {
                    self.sim.set_link_fail_rate("server", peer.as_str(), 0.0);
                    self.sim.repair("server", peer.as_str());
                }
            }
        }
    }

    /// The server's machine loses its power.
    fn crash(&mut self) {
        if !self.sim.is_host_running("server") {
            return;
        }
        let (away, silent) = self.next_death;
        self.world.count(if silent { "silent crash" } else { "crash" });
        self.note(&format!("crash, away {away:?}, silent {silent}"));
        if silent {
            self.peers.iter().for_each(|peer| self.sim.partition("server", peer.as_str()));
        }
        // Not one byte more gets to the disk.
        if !self.world.disk.is_off() {
            self.world.disk.cut_power_after(Some(0));
        }
        *self.world.store.borrow_mut() = None;
        self.sim.crash("server");
        self.world.disk.crash();
        self.undo.push((self.sim.elapsed() + away, Undo::Bounce("server".to_owned())));
    }

    /// What is on the disk when all is over.
    fn last_look(mut self) {
        if !self.world.faults().is_empty() {
            return;
        }
        self.next_death = (Duration::ZERO, false);
        self.crash();
        let now = (EPOCH + self.sim.elapsed()).as_millis() as u64;
        let options = StoreOptions { cache_bytes: 1 << 20, ..Default::default() };
        let (_, found) = match Engine::open_on(self.world.disk.medium(), &options, now) {
            Ok(opened) => opened,
            Err(error) => return self.world.fault("disk", &error.to_string()),
        };
        let left: Vec<_> = found.jobs.iter().map(|job| job.row.id.to_string()).collect();
        if !left.is_empty() {
            self.world.fault("disk", &format!("never ended: {left:?}"));
        }
    }
}
