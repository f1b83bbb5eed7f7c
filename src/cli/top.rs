//! `utterd top`: a server as it is, again and again, on a terminal; once and plain elsewhere.

use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Paragraph};
use ratatui::{DefaultTerminal, Frame};
use serde_json::Value;

use super::http::{ServerArgs, Target, get_json};
use super::show::{self, Table, cell, rows};
use super::{Outcome, Signals, runtime, say};

/// How long keys are waited for before signals are looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// How long an answer may take before the server counts as silent.
const PATIENCE: Duration = Duration::from_secs(5);
/// Rows of each list in the plain print.
const ROWS_PLAIN: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print it once, as plain text.
    #[arg(long)]
    once: bool,
    /// Seconds between looks.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    every: f64,
    #[command(flatten)]
    server: ServerArgs,
}

fn seconds(text: &str) -> Result<f64, String> {
    let fits = |s: &f64| (0.1..=3_600.0).contains(s);
    text.parse().ok().filter(fits).ok_or_else(|| "0.1 to 3600 seconds".to_owned())
}

pub(super) fn run(args: &Args) -> Outcome {
    let (target, runtime) = (args.server.target()?, runtime()?);
    let look = || runtime.block_on(View::look(&target));
    if args.once || !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let view = look()?;
        say(view.plain().trim_end());
        return Ok(());
    }
    // A server that is not there is told of on a whole terminal.
    let first = look()?;
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    runtime.spawn(async move {
        Signals::caught().next().await;
        told.store(true, SeqCst);
    });
    // Also restored when this panics.
    let mut terminal = ratatui::try_init().context("this terminal cannot be drawn on")?;
    let every = Duration::from_secs_f64(args.every);
    let watched = watch(&mut terminal, (first, every), look, &stop);
    ratatui::try_restore().context("the terminal may need `reset`")?;
    Ok(watched?)
}

/// Draws until somebody asks for the end.
fn watch(
    terminal: &mut DefaultTerminal,
    (mut view, every): (View, Duration),
    look: impl Fn() -> anyhow::Result<View>,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut trouble = None;
    loop {
        terminal.draw(|frame| draw(frame, &view, trouble.as_deref()))?;
        let next = Instant::now() + every;
        while Instant::now() < next {
            let left = next.saturating_duration_since(Instant::now());
            if stop.load(SeqCst) || (event::poll(left.min(GLANCE))? && ends(&event::read()?)) {
                return Ok(());
            }
        }
        match look() {
            Ok(seen) => (view, trouble) = (seen, None),
            // It may be back at the next look.
            Err(error) => trouble = Some(format!("{error:#}")),
        }
    }
}

fn ends(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    let quit = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    key.kind == KeyEventKind::Press && (interrupt || quit)
}

/// What a server answered.
struct View {
    authority: String,
    stats: Value,
    nodes: Value,
    jobs: Value,
    sessions: Value,
}

impl View {
    async fn look(target: &Target) -> anyhow::Result<Self> {
        let get = |page: &'static str| async move {
            let answer = tokio::time::timeout(PATIENCE, get_json(target, page)).await;
            answer.with_context(|| format!("{} does not answer", target.authority()))?
        };
        Ok(Self {
            authority: target.authority().to_owned(),
            stats: get("/api/v1/stats").await?,
            nodes: get("/api/v1/nodes").await?,
            jobs: get("/api/v1/jobs").await?,
            sessions: get("/api/v1/sessions").await?,
        })
    }

    /// The state of the whole, in three lines.
    fn head(&self) -> String {
        let stats = &self.stats;
        let up = Duration::from_secs(stats["uptime_seconds"].as_u64().unwrap_or(0));
        let (mut used, mut max) = (0, 0);
        for node in rows(&self.nodes, "nodes").iter().filter(|node| node["state"] != "offline") {
            used += node["slots_used"].as_u64().unwrap_or(0);
            max += node["slots_max"].as_u64().unwrap_or(0);
        }
        let store = &stats["store"];
        let commit =
            store["last_commit_us"].as_u64().map(|us| format!("{:.1} ms", us as f64 / 1e3));
        format!(
            "utterd at {}, up {}\n\
             sessions {}   nodes {}   slots {used}/{max}   jobs {} ({} waiting)\n\
             disk {} {}   last commit {}   writes waiting {}   dead letters {}",
            self.authority,
            humantime::format_duration(up),
            cell(&self.sessions["total"]),
            cell(&stats["nodes"]["connected_nodes"]),
            cell(&stats["jobs"]["live"]),
            cell(&stats["jobs"]["waiting"]),
            cell(&store["health"]),
            cell(&store["pressure"]),
            commit.unwrap_or_else(|| "-".to_owned()),
            cell(&store["queued"]),
            cell(&store["dead_letters"]),
        )
    }

    /// Jobs that have not ended, then those that ended, the latest first.
    fn jobs(&self, rows_max: usize) -> String {
        let live = |job: &Value| matches!(job["state"].as_str(), Some(s) if is_live(s));
        let mut jobs: Vec<&Value> = rows(&self.jobs, "jobs").iter().collect();
        // An id begins with the time at which it was made.
        jobs.sort_by(|a, b| (live(b), b["job_id"].as_str()).cmp(&(live(a), a["job_id"].as_str())));
        let mut table = Table::new(&["JOB", "SESSION", "NO", "PAIR", "STATE", "LAST BORDER"]);
        for job in jobs.into_iter().take(rows_max) {
            let stamps = job["stamps_us"].as_object();
            let last = stamps.and_then(|s| s.iter().max_by_key(|(_, us)| us.as_u64()));
            let ms = |us: &Value| us.as_u64().unwrap_or(0) as f64 / 1e3;
            table.row([
                cell(&job["job_id"]),
                cell(&job["session_id"]),
                cell(&job["utterance_index"]),
                format!("{}:{}", cell(&job["src_lang"]), cell(&job["tgt_lang"])),
                cell(&job["state"]),
                last.map_or("-".to_owned(), |(name, us)| format!("{name} {:.1} ms", ms(us))),
            ]);
        }
        table.text()
    }

    fn plain(&self) -> String {
        let first = |text: String| text.lines().take(1 + ROWS_PLAIN).collect::<Vec<_>>().join("\n");
        let nodes = first(show::nodes(&self.nodes));
        let sessions = first(show::sessions(&self.sessions));
        let jobs = self.jobs(ROWS_PLAIN);
        format!("{}\n\nnodes\n{nodes}\n\njobs\n{jobs}\nsessions\n{sessions}\n", self.head())
    }
}

fn is_live(state: &str) -> bool {
    matches!(state, "queued" | "assigned" | "dispatched" | "running")
}

fn draw(frame: &mut Frame, view: &View, trouble: Option<&str>) {
    let nodes = show::nodes(&view.nodes);
    let wanted = u16::try_from(nodes.lines().count() + 2).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(4),
        Constraint::Max(wanted.min(frame.area().height / 3).max(4)),
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ]);
    let [head, of_nodes, of_jobs, of_sessions, foot] = areas.areas(frame.area());
    frame.render_widget(Paragraph::new(view.head()), head);
    let jobs = view.jobs(usize::from(of_jobs.height));
    list(frame, of_nodes, " nodes ", &nodes);
    list(frame, of_jobs, " jobs ", &jobs);
    list(frame, of_sessions, " sessions ", &show::sessions(&view.sessions));
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let line = match trouble {
        Some(trouble) => Line::styled(format!("not up to date: {trouble}"), bold),
        None => Line::raw("q ends it"),
    };
    frame.render_widget(line, foot);
}

/// A table under a title, its heads set apart.
fn list(frame: &mut Frame, area: ratatui::layout::Rect, title: &str, table: &str) {
    let heads = Style::new().add_modifier(Modifier::BOLD);
    let mut text = Text::default();
    for (at, row) in table.lines().enumerate() {
        let style = if at == 0 { heads } else { Style::new() };
        text.push_line(Line::styled(row.to_owned(), style));
    }
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(title)), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    fn view() -> View {
        let stamps = json!({"received": 0, "cut": 900, "placed": 1_500});
        let job = |id: &str, state: &str| {
            json!({"job_id": id, "session_id": "s-1", "utterance_index": 3, "state": state,
                "src_lang": "zh", "tgt_lang": "en", "stamps_us": stamps})
        };
        View {
            authority: "h:1".to_owned(),
            stats: json!({"uptime_seconds": 61, "nodes": {"connected_nodes": 1},
                "jobs": {"live": 1, "waiting": 0}, "store": {"health": "well", "pressure": "none",
                "last_commit_us": 1_250, "queued": 2, "dead_letters": 0}}),
            nodes: json!({"nodes": [{"node_id": "gpu-\u{1b}[31m7", "state": "ready",
                "slots_used": 1, "slots_max": 4, "pairs_total": 2}]}),
            jobs: json!({"jobs": [job("job-1", "succeeded"), job("job-0", "running"),
                job("job-2", "succeeded")]}),
            sessions: json!({"sessions": [], "total": 0}),
        }
    }

    fn drawn(trouble: Option<&str>, (width, height): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &view(), trouble)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells = buffer.content().chunks(usize::from(width));
        cells.map(|row| row.iter().map(|c| c.symbol()).collect::<String>() + "\n").collect()
    }

    #[test]
    fn a_server_fits_on_a_terminal() {
        let text = drawn(None, (100, 30));
        for shown in ["up 1m 1s", "slots 1/4", "jobs 1 (0 waiting)", "gpu-[31m7", "q ends it"] {
            assert!(text.contains(shown), "no {shown} in\n{text}");
        }
        let at = |id: &str| text.find(id).unwrap();
        assert!(at("job-0") < at("job-2") && at("job-2") < at("job-1"), "{text}");
        assert!(text.contains("placed 1.5 ms"), "{text}");
        assert!(drawn(Some("no server"), (100, 30)).contains("not up to date: no server"));
    }

    #[test]
    fn no_terminal_is_too_small_to_draw_on() {
        for size in [(1, 1), (3, 2), (20, 5), (300, 4)] {
            assert!(!drawn(None, size).is_empty());
        }
    }
}
