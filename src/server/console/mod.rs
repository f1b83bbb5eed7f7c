//! The operators' pages, and what keeps them up to date.
//!
//! One task makes a picture of each view about once a second, for as long as somebody looks at it,
//! and all viewers are given the same bytes. Who is slow to take them misses pictures; nothing
//! waits for a viewer, and nothing is done on the way of an utterance. Pictures are made on a
//! thread that may block, beside the runtime's own.

mod jobs;
mod pictures;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use hyper::body::Incoming;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::Value;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tracing::warn;

use super::routes::{Routes, fault};
use super::shared::{Shared, going_down};
use super::whence::Whence;
use crate::tenant::KeyKind;
use crate::transport::Body;
use pictures::Painter;

/// Time between two pictures of a view.
const PERIOD: Duration = Duration::from_secs(1);

/// What can be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    Overview,
    Nodes,
    Pools,
    Jobs,
    Sessions,
}

impl View {
    const ALL: [View; 5] = [View::Overview, View::Nodes, View::Pools, View::Jobs, View::Sessions];

    fn as_str(self) -> &'static str {
        match self {
            View::Overview => "overview",
            View::Nodes => "nodes",
            View::Pools => "pools",
            View::Jobs => "jobs",
            View::Sessions => "sessions",
        }
    }
}

/// A view as it was, in the form in which it is sent.
#[derive(Debug, Clone)]
struct Picture {
    made: Instant,
    /// Grows with each picture that shows something else than the one before, or is to be told
    /// again.
    number: u64,
    event: Bytes,
}

/// Who looks at what, and the latest picture of it.
#[derive(Debug)]
pub(super) struct Console {
    views: [watch::Sender<Option<Picture>>; View::ALL.len()],
    viewers: AtomicUsize,
    /// Somebody begins to look.
    wake: Notify,
    /// Searches may read a lot: one at a time.
    search: Semaphore,
}

impl Default for Console {
    fn default() -> Self {
        Self {
            views: View::ALL.map(|_| watch::Sender::new(None)),
            viewers: AtomicUsize::new(0),
            wake: Notify::new(),
            search: Semaphore::new(1),
        }
    }
}

impl Console {
    fn is_watched(&self, view: View) -> bool {
        self.views[view as usize].receiver_count() > 0
    }

    /// Shows all who look. A view that has not changed is told to those alone who have not seen it,
    /// save the overview, by which a page knows that it is still told.
    fn show(&self, view: View, value: &Value) {
        let event = Bytes::from(format!("event: {}\ndata: {value}\n\n", view.as_str()));
        self.views[view as usize].send_modify(|picture| {
            let (before, same) = match picture {
                Some(before) => (before.number, before.event == event),
                None => (0, false),
            };
            let number = before + u64::from(view == View::Overview || !same);
            *picture = Some(Picture { made: Instant::now(), number, event });
        });
    }

    /// The pictures of a view from now on, and the one there is if it is a fresh one.
    fn look_at(&self, view: View) -> Pictures {
        let mut from = self.views[view as usize].subscribe();
        let fresh = |picture: &Picture| picture.made.elapsed() < PERIOD;
        if from.borrow().as_ref().is_some_and(fresh) {
            from.mark_changed();
        }
        self.wake.notify_one();
        Pictures { from, seen: 0 }
    }
}

/// A viewer's place; there are only so many.
struct Place(Arc<Shared>);

impl Place {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let max = shared.settings.with(|version| version.config.console.viewers_max);
        let room = |n: usize| (n < max).then_some(n + 1);
        shared.console.viewers.fetch_update(SeqCst, SeqCst, room).ok()?;
        Some(Self(Arc::clone(shared)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.console.viewers.fetch_sub(1, SeqCst);
    }
}

/// Somebody who looks at the overview, and at one other view or none.
struct Viewer {
    place: Place,
    /// The key by whose grace; none where none was asked for.
    key: Option<u64>,
    whence: Whence,
    overview: Pictures,
    view: Option<Pictures>,
    closing: watch::Receiver<bool>,
}

/// The pictures of one view, and the number of the last that was seen.
struct Pictures {
    from: watch::Receiver<Option<Picture>>,
    seen: u64,
}

impl Pictures {
    /// The latest picture, once there is one that was not seen.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.from.changed().await.ok()?;
            let latest = self.from.borrow_and_update();
            if let Some(picture) = latest.as_ref().filter(|picture| picture.number > self.seen) {
                self.seen = picture.number;
                return Some(picture.event.clone());
            }
        }
    }
}

impl Viewer {
    /// The next picture; none when the server goes, or the key is no longer good.
    async fn next(&mut self) -> Option<Bytes> {
        let view = async {
            match &mut self.view {
                Some(pictures) => pictures.next().await,
                None => std::future::pending().await,
            }
        };
        let picture = tokio::select! {
            biased;
            () = going_down(&mut self.closing) => None,
            picture = view => picture,
            picture = self.overview.next() => picture,
        };
        picture.filter(|_| self.may_look())
    }

    fn may_look(&self) -> bool {
        let keys = &self.place.0.keys;
        match self.key {
            Some(key) => keys.is_good(key, self.place.0.now().unix_ms),
            None => self.whence == Whence::Here || keys.is_open(KeyKind::Admin),
        }
    }
}

/// Makes pictures for as long as somebody looks.
pub(super) async fn feed(shared: Arc<Shared>) {
    let console = &shared.console;
    let mut painter = Some(Painter::new(Arc::clone(&shared)));
    let mut due = [Instant::now(); View::ALL.len()];
    loop {
        let watched = View::ALL.into_iter().filter(|view| console.is_watched(*view));
        let Some(next) = watched.map(|view| due[view as usize]).min() else {
            console.wake.notified().await;
            continue;
        };
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = console.wake.notified() => continue,
        }
        let now = Instant::now();
        let is_due = |view: &View| console.is_watched(*view) && due[*view as usize] <= now;
        let views: Vec<View> = View::ALL.into_iter().filter(is_due).collect();
        let Some(mut at_work) = painter.take() else { return };
        let painted = tokio::task::spawn_blocking(move || {
            let pictures: Vec<(View, Value)> =
                views.into_iter().map(|view| (view, at_work.paint(view))).collect();
            (at_work, pictures)
        });
        let Ok((back, pictures)) = painted.await else {
            warn!("the console's pictures cannot be made any more");
            return;
        };
        painter = Some(back);
        for (view, value) in pictures {
            console.show(view, &value);
            due[view as usize] = now + PERIOD;
        }
    }
}

/// Files of the pages: their names, their kinds, what is in them.
const FILES: [(&str, &str, &str); 8] = [
    ("", "text/html; charset=utf-8", include_str!("files/index.html")),
    ("/console.css", "text/css; charset=utf-8", include_str!("files/console.css")),
    ("/main.js", SCRIPT, include_str!("files/main.js")),
    ("/page.js", SCRIPT, include_str!("files/page.js")),
    ("/feed.js", SCRIPT, include_str!("files/feed.js")),
    ("/views.js", SCRIPT, include_str!("files/views.js")),
    ("/jobs.js", SCRIPT, include_str!("files/jobs.js")),
    ("/talk.js", SCRIPT, include_str!("files/talk.js")),
];
/// What runs beside a page and hands it what the microphone hears.
const CAPTURE: (&str, &str, &str) = ("/capture.js", SCRIPT, include_str!("files/capture.js"));
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// What goes with each file. Pages run no script and load nothing that is not from here, and stand
/// in no frame of others.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self' data:; worker-src 'self'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("permissions-policy"), "microphone=(self), camera=(), geolocation=()"),
    (header::CACHE_CONTROL, "no-cache"),
];

impl Routes {
    fn has_console(&self) -> bool {
        self.shared.settings.with(|version| version.config.console.enabled)
    }

    /// `/console` and below: the pages themselves, which say nothing of anybody.
    pub(super) fn console_file(&self, path: &str) -> Response<Body> {
        let name = path.strip_prefix("/console").unwrap_or_default();
        let mut files = FILES.iter().chain([&CAPTURE]);
        let found = files.find(|(file, ..)| *file == name);
        match found.filter(|_| self.has_console()) {
            Some((_, kind, text)) => {
                let mut response = Response::new(Body::from(*text));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
                for (name, value) in HEADERS {
                    headers.insert(name, HeaderValue::from_static(value));
                }
                response
            }
            None => fault(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    /// `/api/v1/console/{what}`: what the pages show.
    pub(super) async fn console(
        &self,
        what: &str,
        request: &Request<Incoming>,
        whence: Whence,
    ) -> Response<Body> {
        let query = request.uri().query().unwrap_or_default().as_bytes();
        let asked = |name: &str| {
            let mut pairs = form_urlencoded::parse(query);
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        match what {
            _ if !self.has_console() => fault(StatusCode::NOT_FOUND, "the console is turned off"),
            "feed" => {
                let key = match self.admit_operator(request, whence) {
                    Ok(key) => key,
                    Err(refusal) => return refusal,
                };
                let wanted = asked("view").unwrap_or_else(|| "overview".to_owned());
                match View::ALL.into_iter().find(|view| view.as_str() == wanted) {
                    Some(view) => self.feed(view, key, whence),
                    None => fault(StatusCode::BAD_REQUEST, "no such view"),
                }
            }
            "jobs" => self.search(asked("q"), asked("before")).await,
            _ => fault(StatusCode::NOT_FOUND, "no such page"),
        }
    }

    /// Server-sent events: pictures of the overview and of the view, for as long as they are read.
    fn feed(&self, view: View, key: Option<u64>, whence: Whence) -> Response<Body> {
        let shared = &self.shared;
        let Some(place) = Place::take(shared) else {
            return fault(StatusCode::SERVICE_UNAVAILABLE, "as many consoles are open as may be");
        };
        let closing = shared.closing.subscribe();
        let overview = shared.console.look_at(View::Overview);
        let view = (view != View::Overview).then(|| shared.console.look_at(view));
        let viewer = Viewer { place, key, whence, overview, view, closing };
        let pictures = stream::unfold(viewer, |mut viewer| async move {
            let picture = viewer.next().await?;
            Some((picture, viewer))
        });
        let patience_ms =
            shared.settings.with(|version| version.config.transport.write_progress_timeout_ms);
        let patience = Duration::from_millis(patience_ms);
        let mut response = Response::new(Body::live(pictures, patience));
        let headers = response.headers_mut();
        let events = HeaderValue::from_static("text/event-stream");
        headers.insert(header::CONTENT_TYPE, events);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What is told at once, if anything is.
    async fn told(pictures: &mut Pictures) -> Option<Bytes> {
        tokio::time::timeout(Duration::ZERO, pictures.next()).await.ok()?
    }

    #[tokio::test]
    async fn who_is_slow_misses_pictures_and_gets_the_latest() {
        let console = Console::default();
        let mut slow = console.look_at(View::Nodes);
        for number in 0..5 {
            console.show(View::Nodes, &json!(number));
        }
        assert_eq!(told(&mut slow).await.unwrap(), "event: nodes\ndata: 4\n\n");
        assert_eq!(told(&mut slow).await, None, "the others are gone");
    }

    #[tokio::test]
    async fn what_has_not_changed_is_told_again_of_the_overview_alone() {
        let console = Console::default();
        for (view, again) in [(View::Overview, true), (View::Pools, false)] {
            let mut pictures = console.look_at(view);
            console.show(view, &json!(1));
            assert!(told(&mut pictures).await.is_some());
            console.show(view, &json!(1));
            assert_eq!(told(&mut pictures).await.is_some(), again, "{view:?}");
            console.show(view, &json!(2));
            assert!(told(&mut pictures).await.is_some());
        }
    }

    #[tokio::test]
    async fn who_comes_is_shown_what_is_fresh_and_all_share_it() {
        tokio::time::pause();
        let console = Console::default();
        console.show(View::Jobs, &json!(1));
        let (mut a, mut b) = (console.look_at(View::Jobs), console.look_at(View::Jobs));
        let shown = [told(&mut a).await.unwrap(), told(&mut b).await.unwrap()];
        assert_eq!(shown[0].as_ptr(), shown[1].as_ptr());
        tokio::time::advance(PERIOD).await;
        let mut late = console.look_at(View::Jobs);
        assert_eq!(told(&mut late).await, None, "it is old");
        console.show(View::Jobs, &json!(1));
        assert!(told(&mut late).await.is_some(), "the same, but not seen by this one");
        assert_eq!(told(&mut a).await, None);
    }
}
