//! A copy of the database for an operator. It is made on a thread of its own in a file without a
//! name, which is gone with the answer whatever happens; what is sent can be had by nobody else,
//! and nobody outside says where anything is written.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::{Response, StatusCode, header};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};

use super::routes::{Routes, fault};
use super::shared::Shared;
use super::whence::Whence;
use crate::store::{Copied, Store, StoreError};
use crate::transport::Body;

/// Bytes sent at a time.
const PIECE_BYTES: usize = 256 * 1024;
/// Pieces that wait to be sent.
const PIECES_MAX: usize = 4;
/// How long a client may take no piece.
const STALLED: Duration = Duration::from_secs(60);
/// Lower than what has utterances to do.
const NICE: i32 = 10;

/// The one copy that is made at a time.
struct Running(Arc<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.backing_up.store(false, SeqCst);
    }
}

/// A copy that is whole, and its pieces.
type Made = (Copied, u64, mpsc::Receiver<Bytes>);

impl Routes {
    /// The database as it is now.
    pub(super) async fn backup(&self, whence: Whence) -> Response<Body> {
        if self.is_stranger(whence) {
            return fault(StatusCode::FORBIDDEN, "only from this host");
        }
        let Some(store) = self.shared.store.clone() else {
            return fault(StatusCode::CONFLICT, "nothing is kept on disk");
        };
        if self.shared.backing_up.swap(true, SeqCst) {
            return fault(StatusCode::CONFLICT, "a copy is being made already");
        }
        let running = Running(Arc::clone(&self.shared));
        let (made, told) = oneshot::channel();
        let (runtime, dir) = (Handle::current(), store.dir());
        let work = move || {
            let _running = running;
            lower_priority();
            make(store, &dir, made, &runtime);
        };
        if let Err(error) = std::thread::Builder::new().name("backup".to_owned()).spawn(work) {
            warn!(%error, "no thread for a copy of the database");
            return fault(StatusCode::SERVICE_UNAVAILABLE, "no thread can be had");
        }
        match told.await {
            Ok(Ok((copied, length, pieces))) => {
                let mut response = Response::new(Body::in_pieces(length, pieces));
                let kind = header::HeaderValue::from_static("application/octet-stream");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response.headers_mut().insert("x-utterd-commit", copied.commit.into());
                response
            }
            Ok(Err(error)) => {
                warn!(%error, "no copy of the database was made");
                fault(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
            }
            Err(_) => fault(StatusCode::SERVICE_UNAVAILABLE, "going down"),
        }
    }
}

/// Makes the copy, says so, and sends it for as long as it is taken.
fn make(
    store: Store,
    dir: &Path,
    made: oneshot::Sender<Result<Made, StoreError>>,
    runtime: &Handle,
) {
    let began = std::time::Instant::now();
    let copy = nameless(dir).and_then(|file| {
        let mut whole = file.try_clone().map_err(|source| io_error(dir, source))?;
        let copied = store.backup(file)?;
        let length = whole.seek(std::io::SeekFrom::End(0)).and_then(|length| {
            whole.rewind()?;
            Ok(length)
        });
        Ok((copied, length.map_err(|source| io_error(dir, source))?, whole))
    });
    // The store is not needed any more, and may be closed while the copy is sent.
    drop(store);
    let (copied, length, file) = match copy {
        Ok(copy) => copy,
        Err(error) => return drop(made.send(Err(error))),
    };
    let took_ms = began.elapsed().as_millis() as u64;
    info!(commit = copied.commit, rows = copied.rows, length, took_ms, "copied the database");
    let (to, pieces) = mpsc::channel(PIECES_MAX);
    if made.send(Ok((copied, length, pieces))).is_ok() {
        send(file, to, runtime);
    }
}

fn send(mut file: File, to: mpsc::Sender<Bytes>, runtime: &Handle) {
    // For the timer.
    let _entered = runtime.enter();
    loop {
        let mut piece = BytesMut::zeroed(PIECE_BYTES);
        match file.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => {
                piece.truncate(length);
                let sent = tokio::time::timeout(STALLED, to.send(piece.freeze()));
                let sent = runtime.block_on(sent);
                if !sent.is_ok_and(|sent| sent.is_ok()) {
                    return debug!("nobody takes the copy any more");
                }
            }
            Err(error) => return warn!(%error, "a copy of the database cannot be read"),
        }
    }
}

/// A file that nobody can find and that ends with its last handle.
fn nameless(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(format!("backup-{:016x}", fastrand::u64(..)));
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
    let file = made.map_err(|source| io_error(&path, source))?;
    std::fs::remove_file(&path).map_err(|source| io_error(&path, source))?;
    Ok(file)
}

fn io_error(path: &Path, source: std::io::Error) -> StoreError {
    StoreError::Io { doing: "write a copy to", path: path.to_owned(), source }
}

/// Of this thread alone.
fn lower_priority() {
    let own = Some(rustix::thread::gettid());
    if let Err(error) = rustix::process::setpriority_process(own, NICE) {
        debug!(%error, "a copy of the database is made at the usual priority");
    }
}
