//! One world from beginning to end: what a seed makes of it, and whose turn it is.
//!
//! First there are faults. Then they stop, and everything that was accepted must end and reach its
//! client. Then clients end their sessions, and nothing may be left.

use super::actor::{Client, NodeActor};
use super::env::{Env, Event, NodeWake};
use super::net::{ConnId, Msg, Peer, Way};
use super::shell::Life;
use super::swarm::{self, Rates};
use super::{Failure, Options, Plant, Report};
use crate::config::Config;
use crate::store::{SimDisk, StoreError, StoreOptions};

/// Time that every accepted job has beyond its own deadlines, in microseconds.
const GRACE_US: u64 = 10_000_000;
/// Time in which a client that is back gets what it is owed, in microseconds, with two ways over
/// the slowest link.
const DEBT_US: u64 = 4_000_000;
/// Events after which a world is stuck.
const EVENTS_MAX: u64 = 3_000_000;

/// One world.
pub(super) struct World {
    env: Env,
    disk: SimDisk,
    config: Config,
    options: StoreOptions,
    life: Option<Life>,
    lives: u64,
    clients: Vec<Client>,
    nodes: Vec<NodeActor>,
    over: bool,
}

impl World {
    pub(super) fn new(seed: u64, options: &Options) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rates = Rates::draw(&mut rng, options.faults, options.plant);
        let config = swarm::config(&mut rng);
        let disk = SimDisk::new(seed);
        if options.plant == Plant::LyingDisk {
            disk.lie_about_syncs(Some(2));
        }
        let mut env = Env::new(seed, rates, options.aloud);
        let clients = (0..options.sessions).map(|id| Client::new(id, &mut env)).collect();
        let nodes = (0..options.nodes).map(|id| NodeActor::new(id, &mut env)).collect();
        let options = swarm::store_options(&config);
        let (life, lives) = (None, 0);
        let mut world =
            Self { env, disk, config, options, life, lives, clients, nodes, over: false };
        world.set_out();
        world
    }

    /// What is certain from the beginning.
    fn set_out(&mut self) {
        let env = &mut self.env;
        env.at(0, Event::Start);
        for node in &self.nodes {
            let us = env.between(1_000, 800_000);
            node.wake(us, NodeWake::Connect, env);
        }
        for id in 0..self.clients.len() {
            let us = env.between(50_000, 2_500_000);
            env.at(us, Event::Client(id, 0));
        }
        let rates = env.rates.clone();
        let calm = rates.faults_us;
        let mut some = |n: u32, make: fn() -> Event| {
            for _ in 0..n {
                let us = env.between(300_000, calm);
                env.at(us, make());
            }
        };
        some(rates.crashes, || Event::Crash);
        some(rates.stops, || Event::Stop);
        some(rates.troubles, || Event::Trouble);
        some(rates.clock_jumps, || Event::ClockJump);
        some(rates.full_disks, || Event::DiskFull);
        let job = &self.config.job;
        let deadline_ms = (job.pending_ms + job.lease_max_ms) * u64::from(job.attempts_max);
        let farewell = calm + deadline_ms * 1_000 + GRACE_US;
        let window_us = self.config.session.resume_window_ms * 1_000;
        let end = (farewell + 12_000_000).max(calm + window_us + 12_000_000);
        env.at(calm, Event::Calm);
        env.at(farewell, Event::Farewell);
        env.at(end, Event::End);
    }

    /// Goes to the end, or to the first thing that is wrong.
    pub(super) fn go(&mut self) {
        while !self.over && self.env.judge.verdict().is_none() {
            let Some(event) = self.env.next_event() else { return };
            self.happens(event);
            let (_, events) = self.env.trace();
            if !self.env.faulty && events.is_multiple_of(64) {
                let now = self.env.now;
                self.env.judge.look_at_debts(now, DEBT_US);
            }
            if events > EVENTS_MAX {
                self.convict("L3: the world does not come to rest".into());
            }
        }
    }

    pub(super) fn convict(&mut self, sentence: String) {
        self.env.judge.convict(sentence);
    }

    pub(super) fn report(self, seed: u64) -> Report {
        let (trace, events) = self.env.trace();
        let sentence = self.env.judge.verdict().map(str::to_owned);
        let failure = sentence.map(|sentence| Failure { sentence, tail: self.env.tail() });
        Report { seed, trace, events, counts: self.env.counts.clone(), failure }
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Flush(conn) => self.flush(conn),
            Event::Arrive(conn, way) => self.arrive(conn, way),
            Event::Notice(conn, way) => self.notice(conn, way),
            Event::Break(conn) => self.env.break_conn(conn),
            Event::Release(conn, way) => self.env.release(conn, way),
            Event::Client(id, wake) => self.client(id, wake),
            Event::Node(id, run, wake) => self.node(id, run, wake),
            Event::Crash => self.crash(),
            Event::Stop => self.stop(),
            Event::Down(number) => self.down(number),
            Event::Start => self.start(),
            Event::Trouble => self.trouble(),
            Event::ClockJump => {
                let hour = 3_600_000;
                let ms = self.env.rng.i64(-hour..=hour);
                self.env.set_wall_by(ms);
                self.env.counts.reached("clock_jump");
            }
            Event::DiskFull => {
                self.disk.set_capacity(Some(self.disk.used() + 16_384));
                let us = self.env.between(200_000, 3_000_000);
                self.env.after(us, Event::DiskRoom);
            }
            Event::DiskRoom => self.disk.set_capacity(None),
            Event::Calm => self.calm(),
            Event::Farewell => {
                self.env.note("farewell", 0, b"");
                self.env.judge.all_is_said();
                for client in &mut self.clients {
                    client.say_farewell(&mut self.env);
                }
            }
            Event::End => self.end(),
            event => self.in_life(event),
        }
    }

    /// What concerns only the life of the server in which it was set up.
    fn in_life(&mut self, event: Event) {
        let env = &mut self.env;
        let Some(life) = &mut self.life else { return };
        let number = life.number;
        let outcome = match event {
            Event::Step(n, task) if n == number => {
                life.step(task, env);
                Ok(())
            }
            Event::Tick(n, task) if n == number => {
                life.tick(task, env);
                Ok(())
            }
            Event::Control(n) if n == number => {
                life.control(false, env);
                Ok(())
            }
            Event::Wake(n) if n == number => {
                life.control(true, env);
                Ok(())
            }
            Event::ReadBack(n, session, wanted) if n == number => {
                life.read_back(session, wanted, env);
                Ok(())
            }
            Event::Commit(n) if n == number => life.commit(env),
            Event::DiskRetry(n) if n == number => life.retry_commit(env),
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            self.disk_failed(&error);
        }
    }

    /// The real server ends its process when the disk fails it.
    fn disk_failed(&mut self, error: &StoreError) {
        self.env.note("disk", 0, error.to_string().as_bytes());
        self.env.counts.reached("disk_failed");
        self.crash();
    }

    fn flush(&mut self, conn: ConnId) {
        let taken = self.env.flush(conn);
        let Some(life) = &mut self.life else { return };
        match taken {
            Some(Ok(tag)) => life.written(conn, tag, &mut self.env),
            Some(Err(())) => life.closed(conn, &mut self.env),
            None => {}
        }
    }

    fn arrive(&mut self, conn: ConnId, way: Way) {
        let Some(peer) = self.env.net.peer(conn) else { return };
        let Some(msg) = self.env.arrive(conn, way) else { return };
        if way == Way::Up {
            if let Some(life) = &mut self.life {
                life.arrived(conn, msg, &mut self.env);
            }
            return;
        }
        let env = &mut self.env;
        match peer {
            Peer::Client(id) => {
                if let Msg::Text(_, Some(value)) = &msg {
                    env.judge.client_got(conn, value);
                }
                self.clients[id].got(conn, &msg, env);
            }
            Peer::Node(id) => self.nodes[id].got(conn, &msg, env),
        }
    }

    fn notice(&mut self, conn: ConnId, way: Way) {
        let Some(peer) = self.env.net.peer(conn) else { return };
        let env = &mut self.env;
        match (way, peer) {
            (Way::Up, _) => {
                if let Some(life) = &mut self.life {
                    life.closed(conn, env);
                }
            }
            (Way::Down, Peer::Client(id)) => self.clients[id].closed(conn, env),
            (Way::Down, Peer::Node(id)) => self.nodes[id].closed(conn, env),
        }
    }

    fn client(&mut self, id: usize, wake: u64) {
        let env = &mut self.env;
        let client = &mut self.clients[id];
        if !client.wants_connection(wake) {
            return client.act(wake, env);
        }
        let Some(life) = &mut self.life else { return client.refused(env) };
        let peer = Peer::Client(id);
        let conn = env.connect(peer, life.outbox_max(peer));
        life.accept(conn, peer);
        client.connected(conn, env);
    }

    fn node(&mut self, id: usize, run: u64, wake: NodeWake) {
        let env = &mut self.env;
        let node = &mut self.nodes[id];
        if !matches!(wake, NodeWake::Connect) {
            return node.act(run, wake, env);
        }
        if !node.wants_connection(run) {
            return;
        }
        let Some(life) = &mut self.life else { return node.refused(env) };
        let peer = Peer::Node(id);
        let conn = env.connect(peer, life.outbox_max(peer));
        life.accept(conn, peer);
        node.connected(conn, env);
    }

    fn start(&mut self) {
        if self.life.is_some() {
            return;
        }
        let again = self.env.faulty && self.lives > 0 && {
            let pct = self.env.rates.again_pct;
            self.env.rng.u32(..100) < pct
        };
        if again {
            let changes = self.env.skewed(0, 40);
            self.disk.cut_power_after(Some(changes));
        }
        let number = self.lives + 1;
        let started = Life::start(number, &self.config, &self.disk, &self.options, &mut self.env);
        match started {
            Ok(life) => {
                self.disk.cut_power_after(None);
                self.lives = number;
                self.env.judge.server_started(number);
                self.env.note("server starts", number, b"");
                self.life = Some(life);
            }
            Err(_) if self.disk.is_off() => {
                self.env.counts.reached("W8_crash_in_recovery");
                self.disk.crash();
                self.disk.cut_power_after(None);
                let us = self.env.between(1_000, 300_000);
                self.env.after(us, Event::Start);
            }
            Err(StoreError::Full { .. }) => {
                self.env.counts.reached("start_on_full_disk");
                self.env.after(300_000, Event::Start);
            }
            Err(error) => self.convict(format!("I18: the server does not start: {error}")),
        }
    }

    fn crash(&mut self) {
        let Some(life) = self.life.take() else { return };
        self.env.counts.reached("crash");
        self.env.note("server dies", life.number, b"");
        life.die(&self.disk, &mut self.env);
        self.env.server_died();
        let us = self.env.skewed(5_000, 3_000_000);
        self.env.after(us, Event::Start);
    }

    fn stop(&mut self) {
        let Some(life) = &mut self.life else { return };
        self.env.counts.reached("stop");
        self.env.note("server stops", life.number, b"");
        life.drain(&mut self.env);
        let us = self.env.between(1_000, 2_000_000);
        self.env.after(us, Event::Down(life.number));
    }

    fn down(&mut self, number: u64) {
        let Some(mut life) = self.life.take_if(|life| life.number == number) else { return };
        self.env.note("server ends", number, b"");
        life.go_down(&mut self.env);
        if let Err(error) = life.finish(&mut self.env) {
            self.env.note("disk", 0, error.to_string().as_bytes());
        }
        self.env.server_died();
        let us = self.env.skewed(5_000, 1_000_000);
        self.env.after(us, Event::Start);
    }

    /// Something befalls a connection: it breaks, or one direction stands still for a time, after
    /// which it goes on or is given up.
    fn trouble(&mut self) {
        let env = &mut self.env;
        let whole = env.net.whole();
        if whole.is_empty() {
            return;
        }
        let conn = whole[env.rng.usize(..whole.len())];
        let way = if env.chance(500) { Way::Up } else { Way::Down };
        match env.rng.u32(..3) {
            0 => env.break_conn(conn),
            1 => {
                env.hold(conn, way);
                let us = env.skewed(20_000, 7_000_000);
                env.after(us, Event::Release(conn, way));
            }
            _ => {
                env.counts.reached("half_open");
                env.hold(conn, way);
                let us = env.skewed(200_000, 7_000_000);
                env.after(us, Event::Break(conn));
            }
        }
    }

    /// Faults stop; what they did stays to be mended.
    fn calm(&mut self) {
        let env = &mut self.env;
        env.note("calm", 0, b"");
        env.faulty = false;
        self.disk.set_capacity(None);
        for conn in env.net.whole() {
            env.release(conn, Way::Up);
            env.release(conn, Way::Down);
        }
        env.judge.faults_are_over();
        for node in &mut self.nodes {
            node.recover(env);
        }
    }

    fn end(&mut self) {
        self.over = true;
        let Some(life) = &self.life else {
            return self.convict("L3: the server is not there in the end".into());
        };
        if let Some(client) = self.clients.iter().find(|client| !client.is_done()) {
            let name = client.name();
            return self.convict(format!("L3: {name} could not end its session"));
        }
        let reader = life.reader();
        if let Some(sentence) = life.unquiet() {
            return self.convict(sentence);
        }
        self.env.judge.inspect(&reader);
    }
}
