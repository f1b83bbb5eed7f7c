//! The public API over HTTP: a recording in, its translation out.
//!
//! It is a client of the session protocol within the process. A recording passes through a session
//! of its own, or that of its stream, under the limits of its tenant, and gets the same last word
//! as anybody's: there is no second way to a node.

mod answer;
mod form;
mod inside;
mod pace;
mod recording;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

pub(super) use pace::Pace;

use super::routes::{Routes, open_socket, reply, session_limits};
use super::shared::Shared;
use crate::config;
use crate::protocol::gateway::{Done, Failed, Terms, Told, Translation, session_init, utterance};
use crate::protocol::{ErrorCode, Lang, Pair};
use crate::tenant::{Account, KeyKind, Pass};
use crate::transport::{Body, Connection, Limits, Outbox, Rates};
use answer::Refused;
use form::Form;
use inside::Inside;
use stream::StreamTask;

/// What recordings share.
#[derive(Default)]
pub(super) struct Gateway {
    /// Those that are taken in or translated by themselves.
    open: AtomicUsize,
    /// How fast jobs end.
    pub(super) pace: Pace,
}

impl Gateway {
    /// Counts one more recording, for as long as the turn lives; none if there are as many.
    fn turn(&self, max: usize) -> Option<Turn<'_>> {
        let room = |open: usize| (open < max).then_some(open + 1);
        self.open.fetch_update(SeqCst, SeqCst, room).ok().map(|_| Turn(&self.open))
    }
}

/// A recording's place in the count.
struct Turn<'a>(&'a AtomicUsize);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

/// Who asks, and on whose account.
struct Guest {
    shared: Arc<Shared>,
    peer: SocketAddr,
    pass: Pass,
    account: Arc<Account>,
}

impl Routes {
    /// Whose request it is, or the answer to somebody who may not come in.
    #[expect(clippy::result_large_err, reason = "the error is the answer, and about to be sent")]
    fn guest(
        &self,
        request: &Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Guest, Response<Body>> {
        let pass = self.admit(KeyKind::Session, request, peer.ip())?;
        let shared = Arc::clone(&self.shared);
        let account = shared.scheduler.accounts().of(pass.tenant.as_deref());
        Ok(Guest { shared, peer, pass, account })
    }

    /// `POST /v1/speech/translate`.
    pub(super) async fn translate(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let guest = match self.guest(&request, peer) {
            Ok(guest) => guest,
            Err(refusal) => return refusal,
        };
        let mut response = match guest.translated(request).await {
            Ok(translation) => reply(StatusCode::OK, &translation),
            Err(refused) => refused.answer(&self.shared),
        };
        guest.tell_limits(&mut response);
        response
    }

    /// `GET /v1/stream`.
    pub(super) fn stream(
        &self,
        request: &mut Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        if !self.shared.ready.load(SeqCst) {
            return self.not_now();
        }
        let guest = match self.guest(request, peer) {
            Ok(guest) => guest,
            Err(refusal) => return refusal,
        };
        let limits = guest.limits();
        let (own, frames_max) = self.shared.settings.with(|version| {
            let t = &version.config.transport;
            (session_limits(t), t.session_outbox_frames_max)
        });
        let own = Limits { message_bytes_max: limits.message_bytes_max, ..own };
        // Sent with the agreement, before the first recording is charged.
        let mut told = Response::default();
        guest.tell_limits(&mut told);
        let run = move |connection: Connection<_, ()>, outbox: Arc<Outbox<()>>| {
            StreamTask::new(guest, limits, connection, outbox).run()
        };
        let outbox = Outbox::within(&self.shared.outgoing, frames_max, own.outbox_bytes_max);
        let mut response = open_socket(request, peer, own, outbox, run);
        response.headers_mut().extend(std::mem::take(told.headers_mut()));
        response
    }
}

/// Bytes of a message with so many bytes of audio.
fn encoded(audio_bytes: usize) -> usize {
    audio_bytes.div_ceil(3) * 4 + 4 * 1024
}

impl Guest {
    fn config(&self) -> config::Gateway {
        self.shared.settings.with(|version| version.config.gateway.clone())
    }

    /// Of the session's end of the pipe to it.
    fn limits(&self) -> Limits {
        self.shared.settings.with(|version| Limits {
            message_bytes_max: encoded(version.config.gateway.recording_bytes_max),
            rates: Rates::default(),
            ..session_limits(&version.config.transport)
        })
    }

    /// Shows what the tenant has left.
    fn tell_limits(&self, response: &mut Response<Body>) {
        let now = self.shared.now();
        let mut allowances = self.account.allowances(now);
        let quota = self.config().requests_max as u64;
        let open = self.shared.gateway.open.load(SeqCst) as u64;
        allowances.push(crate::tenant::Allowance {
            of: "requests",
            quota,
            window_s: None,
            left: quota.saturating_sub(open),
            full_in_ms: 0,
        });
        answer::tell_limits(&allowances, response.headers_mut());
    }

    /// Refuses at once what no node has ever offered: nothing comes of waiting for it. While no
    /// node is known at all, or a pool is there for it, one may come.
    fn spoken(&self, terms: &Terms) -> Result<(), Refused> {
        let (Ok(src), Ok(tgt)) = (terms.src().parse::<Lang>(), terms.tgt().parse()) else {
            return Ok(());
        };
        let (pair, nodes) = (Pair { src, tgt }, self.shared.registry.all());
        let tenant = self.pass.tenant.as_deref();
        let may_come = src.is_auto()
            || nodes.is_empty()
            || nodes.iter().any(|node| node.capability().covers(pair))
            || self.shared.pools.with(|pools| pools.limits_for(pair, tenant).is_some());
        may_come.then_some(()).ok_or_else(|| Refused::not_spoken(pair))
    }

    async fn translated(&self, request: Request<Incoming>) -> Result<Translation, Refused> {
        let (shared, config) = (&self.shared, self.config());
        if !shared.ready.load(SeqCst) || shared.is_draining() {
            return Err(Refused::of(ErrorCode::ShuttingDown, "the server starts, or goes down"));
        }
        let Some(_turn) = shared.gateway.turn(config.requests_max) else {
            return Err(Refused::of(ErrorCode::Overloaded, "too many recordings at once"));
        };
        let upload = Duration::from_millis(config.upload_timeout_ms);
        let form = timeout(upload, Form::read(request, config.recording_bytes_max));
        let Form { terms, audio } = form.await.map_err(|_| Refused::too_slow())??;
        self.spoken(&terms)?;
        let begun = Instant::now();
        let (recording, terms, bytes_max) = (audio, terms.clone(), config.recording_bytes_max);
        let read = tokio::task::spawn_blocking(move || {
            recording::read(recording, &terms, bytes_max).map(|recording| (recording, terms))
        });
        let (recording, terms) = read.await.map_err(|_| Refused::ours())??;
        let until = begun + Duration::from_millis(config.answer_timeout_ms);
        let mut inside = Inside::open(self, self.limits()).await;
        let outcome = timeout_at(until, async {
            inside.say(session_init(&terms, false)).await?;
            let session_id = inside.session().await?;
            let form = (recording.format, recording.sample_rate);
            inside.say(utterance(&session_id, 0, &terms, form, &recording.audio)).await?;
            let done = inside.done().await?;
            Ok((session_id, done))
        });
        let (session_id, done) = outcome.await.map_err(|_| Refused::too_late())??;
        inside.part(&session_id);
        let mut translation = Translation {
            text: done.text_asr,
            translation: done.text_translated,
            audio: done.tts_audio,
            audio_format: done.tts_format,
            duration_ms: begun.elapsed().as_millis() as u64,
            job_id: done.job_id,
            trace_id: done.trace_id,
        };
        if terms.answer_format.as_deref() != Some("pcm16") {
            recording::as_wav(&mut translation);
        }
        Ok(translation)
    }
}
