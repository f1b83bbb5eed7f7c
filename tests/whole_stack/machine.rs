//! The server's machine: the real server over the simulated network and disk, life after life.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use tokio::time::sleep;
use turmoil::net::{TcpListener, TcpStream};
use utterd::config::Config;
use utterd::server::{Opened, Server};
use utterd::store::{Stepper, Store, StoreOptions};
use utterd::transport::Listen;

use super::world::{World, between};

/// The simulated network, as the server listens to it.
struct Net(TcpListener);

impl Listen for Net {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.accept().await
    }

    fn set_nodelay(stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)
    }

    fn turn_away(stream: TcpStream, words: &[u8]) -> io::Result<usize> {
        stream.try_write(words)
    }
}

/// How long syncs take: mostly so many milliseconds at most, and one in so many up to the other.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    pub mostly_ms: u64,
    pub slow_one_in: u64,
    pub slow_ms: u64,
}

/// One life of the server. It ends when its machine does.
pub async fn life(world: Rc<World>, config: Config, pace: Pace, mut rng: Rng) -> turmoil::Result {
    let options = StoreOptions { cache_bytes: 1 << 20, ballast_bytes: 0, ..Default::default() };
    let (store, found, stepper) =
        match Store::open_stepped(world.disk.medium(), &options, unix_ms()) {
            Ok(opened) => opened,
            Err(error) => return died(&world, &error.to_string()).await,
        };
    world.note("server", &format!("starts, epoch {}", found.boot_epoch));
    world.judge(&found, &store);
    *world.store.borrow_mut() = Some(store.clone());
    let listener = TcpListener::bind("0.0.0.0:80").await?;
    let addr = listener.local_addr()?;
    let opened = Opened {
        listener: Net(listener),
        addr,
        store: Some((store, found)),
        unix_ms: unix_ms(),
        secret: [7; 32],
    };
    let _server = Server::start_on(config, opened).await;
    disk(&world, stepper, pace, &mut rng).await
}

/// Does the work of the store's thread, as slowly as the disk is.
async fn disk(world: &World, mut stepper: Stepper, pace: Pace, rng: &mut Rng) -> turmoil::Result {
    loop {
        if stepper.take() == 0 {
            sleep(Duration::from_millis(1)).await;
            continue;
        }
        let slow = rng.u64(..pace.slow_one_in) == 0;
        let took = between(rng, 0, if slow { pace.slow_ms } else { pace.mostly_ms });
        // The rows may be safe long before anybody hears of it.
        let heard_after = if rng.u8(..4) == 0 { took.mul_f32(rng.f32()) } else { Duration::ZERO };
        sleep(took.saturating_sub(heard_after)).await;
        if let Err(error) = stepper.commit(unix_ms()) {
            return died(world, &error.to_string()).await;
        }
        sleep(heard_after).await;
        stepper.tell();
    }
}

/// The process would end here and now; the machine is taken away in the next step.
async fn died(world: &World, why: &str) -> turmoil::Result {
    if !world.disk.is_off() {
        world.fault("server", &format!("a disk with power fails: {why}"));
    }
    world.died.set(true);
    std::future::pending().await
}

fn unix_ms() -> u64 {
    turmoil::since_epoch().unwrap_or_default().as_millis() as u64
}
