//! What clients said and were told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Judge, Line, text};
use crate::sim::counts::Counts;
use crate::sim::net::ConnId;

/// One result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) index: u64,
    pub(super) job: String,
    pub(super) kind: String,
    pub(super) text: String,
    pub(super) late: bool,
}

/// One session, as its client's link shows it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// The life of the server in which it was opened.
    pub(super) life: u64,
    pub(super) client: usize,
    pub(super) resume: bool,
    /// Checksums of the audio that was sent under an index.
    pub(super) spoken: BTreeMap<u64, Vec<u32>>,
    /// Indices that were sent more than once.
    repeated: BTreeSet<u64>,
    /// Accepted utterances, with their jobs.
    pub(super) accepted: BTreeMap<u64, String>,
    /// Numbered results.
    pub(super) words: BTreeMap<u64, Word>,
    /// Last words by index, as they left the server: numbers where they have one.
    pub(super) last: BTreeMap<u64, Option<u64>>,
    /// In which life of the server an utterance was first heard of.
    pub(super) first_life: BTreeMap<u64, u64>,
    /// Gaps that were announced.
    gaps: BTreeSet<u64>,
    /// Numbers up to which the client has confirmed.
    pub(super) acked: u64,
    /// Numbers up to which the client processed results that reached it.
    pub(super) got: u64,
    /// Results that reached the client, where they have no numbers.
    pub(super) got_indices: BTreeSet<u64>,
    /// Numbers up to which the client was told that they are gone.
    pub(super) gone: u64,
    /// The connection on which it was opened, or taken up last.
    conn: Option<ConnId>,
    /// The highest index that had a last word.
    highest: Option<u64>,
    /// The client ended the session, and was told that it is over.
    pub(super) closing: bool,
    pub(super) closed: bool,
    /// The client was told that there is no such session.
    pub(super) lost: bool,
    /// Chunks: number, packets up to its end, whether it is silent.
    pub(super) chunks: BTreeMap<u64, (u64, bool)>,
    /// Chunks that need not be sent again.
    pub(super) safe: u64,
    /// When a client came back, and the number it is owed up to then.
    owed: Option<(u64, u64)>,
    /// Utterances that were refused, or ended in something else than a result.
    pub(super) unheard: bool,
}

impl Judge {
    fn ledger(&mut self, session: &str) -> &mut Ledger {
        self.sessions.entry(session.to_owned()).or_default()
    }

    fn line(&mut self, conn: ConnId) -> &mut Line {
        self.lines.entry(conn).or_default()
    }

    /// A client sends a recording.
    pub(in crate::sim) fn client_spoke(&mut self, session: &str, index: u64, crc: u32) {
        self.ledger(session).spoken.entry(index).or_default().push(crc);
    }

    /// A client sends a recording again.
    pub(in crate::sim) fn client_repeats(&mut self, session: &str, index: u64) {
        self.ledger(session).repeated.insert(index);
    }

    /// A client sends a chunk, with packets up to `counter`.
    pub(in crate::sim) fn client_streamed(
        &mut self,
        session: &str,
        seq: u64,
        counter: u64,
        silent: bool,
    ) {
        self.ledger(session).chunks.insert(seq, (counter, silent));
    }

    /// A client confirms.
    pub(in crate::sim) fn client_acks(&mut self, session: &str, seq: u64) {
        let ledger = self.ledger(session);
        ledger.acked = ledger.acked.max(seq);
    }

    /// A client ends its session.
    pub(in crate::sim) fn client_closes(&mut self, session: &str) {
        self.ledger(session).closing = true;
    }

    /// A client asks to go on, with the right secret or not.
    pub(in crate::sim) fn client_resumes(
        &mut self,
        conn: ConnId,
        session: &str,
        last_seq: u64,
        right: bool,
    ) {
        self.line(conn).asked.push((session.to_owned(), last_seq, right));
    }

    /// Whether the question last answered on the connection had the right secret.
    pub(in crate::sim) fn client_was_right(&self, conn: Option<ConnId>) -> bool {
        let Some(line) = conn.and_then(|conn| self.lines.get(&conn)) else { return true };
        let at = line.heard_answers.saturating_sub(1);
        line.asked.get(at).is_none_or(|asked| asked.2)
    }

    pub(super) fn said_to_client(
        &mut self,
        conn: ConnId,
        client: usize,
        value: &Value,
        now: u64,
        counts: &mut Counts,
    ) {
        let heard_of = value["utterance_index"].as_u64();
        if let (Some(index), Some(session)) = (heard_of, self.line(conn).session.clone()) {
            let life = self.life;
            self.ledger(&session).first_life.entry(index).or_insert(life);
        }
        match text(value, "type") {
            "session_init_ack" => {
                let session = text(value, "session_id").to_owned();
                let resume = value["resume_secret"].is_string();
                let life = self.life;
                let ledger = self.ledger(&session);
                (ledger.client, ledger.resume, ledger.life) = (client, resume, life);
                ledger.conn = Some(conn);
                let line = self.line(conn);
                (line.session, line.next_seq) = (Some(session), Some(1));
            }
            "session_resume_ack" => self.said_resumed(conn, value, now, counts),
            "utterance_accepted" => self.said_accepted(conn, value),
            "audio_ack" => {
                let through = value["through"].as_u64().unwrap_or(0);
                if let Some(session) = self.line(conn).session.clone() {
                    let ledger = self.ledger(&session);
                    ledger.safe = ledger.safe.max(through);
                }
            }
            "translation_result" | "missing_result" => {
                self.said_word(conn, value, counts);
            }
            "session_close_ack" => {
                if let Some(session) = self.line(conn).session.clone() {
                    self.ledger(&session).closed = true;
                }
            }
            _ => {}
        }
    }

    fn said_resumed(&mut self, conn: ConnId, value: &Value, now: u64, counts: &mut Counts) {
        let line = self.line(conn);
        let Some((session, last_seq, right)) = line.asked.get(line.answered).cloned() else {
            return self.convict(format!("I6: an answer to a resume that nobody asked: {value}"));
        };
        line.answered += 1;
        let Some(from) = value["from_seq"].as_u64() else {
            if right {
                self.ledger(&session).lost = true;
            }
            return;
        };
        if !right {
            return self.convict(format!("I14: a wrong secret opened {session}"));
        }
        let line = self.line(conn);
        (line.session, line.next_seq) = (Some(session.clone()), Some(from));
        let recovered = value["recovered"] == true;
        if recovered != (from == last_seq + 1) {
            let text = format!("I6: {session} asked behind {last_seq} and goes on from {from}, ");
            return self.convict(text + &format!("recovered: {recovered}"));
        }
        let ledger = self.ledger(&session);
        ledger.conn = Some(conn);
        ledger.acked = ledger.acked.max(last_seq);
        if !recovered {
            counts.reached("gap_told");
            ledger.gone = ledger.gone.max(from - 1);
        }
        let highest = ledger.words.keys().next_back().copied().unwrap_or(0);
        ledger.owed = Some((now, highest));
    }

    fn said_accepted(&mut self, conn: ConnId, value: &Value) {
        let (index, job) = (value["utterance_index"].as_u64().unwrap_or(0), text(value, "job_id"));
        let Some(session) = self.line(conn).session.clone() else { return };
        let ledger = self.ledger(&session);
        match ledger.accepted.insert(index, job.to_owned()) {
            Some(before) if before != job => {
                self.convict(format!("I8: #{index} of {session} was {before}, and is now {job}"));
            }
            _ => {}
        }
    }

    fn said_word(&mut self, conn: ConnId, value: &Value, counts: &mut Counts) {
        let session = text(value, "session_id").to_owned();
        let own = self.line(conn).session.clone();
        if own.as_ref() != Some(&session) {
            return self.convict(format!("I14: a result of {session} went to {own:?}"));
        }
        let index = value["utterance_index"].as_u64().unwrap_or(u64::MAX);
        let reason = text(value, "reason").to_owned();
        if reason == "gap_timeout" {
            counts.reached("gap_announced");
            self.ledger(&session).gaps.insert(index);
            return;
        }
        let word = Word {
            index,
            job: text(value, "job_id").to_owned(),
            kind: if reason.is_empty() { "result".into() } else { reason },
            text: text(value, "text_asr").to_owned(),
            late: value["late"] == true,
        };
        if word.late {
            counts.reached("late_result");
        }
        self.look_at_content(&session, &word);
        match value["seq"].as_u64() {
            Some(seq) => self.said_numbered(conn, &session, seq, word, counts),
            None => self.said_plain(conn, &session, &word),
        }
    }

    /// A result speaks of the session and utterance it is for, and of audio that was sent there.
    fn look_at_content(&mut self, session: &str, word: &Word) {
        if word.kind != "result" || word.text.is_empty() {
            return;
        }
        if word.text == "LIE" {
            return self.convict(format!("I13: #{} of {session} was ended by a lie", word.index));
        }
        let mut parts = word.text.split('#');
        let (of, index, crc) = (parts.next(), parts.next(), parts.next());
        if of != Some(session) || index.and_then(|i| i.parse().ok()) != Some(word.index) {
            let sentence = format!("I14: #{} of {session} says {}", word.index, word.text);
            return self.convict(sentence);
        }
        let crc = crc.and_then(|c| u32::from_str_radix(c, 16).ok()).unwrap_or(0);
        let spoken = self.ledger(session).spoken.get(&word.index);
        let another = spoken.is_some_and(|crcs| !crcs.contains(&crc));
        let attempts = self.jobs.get(&word.job);
        if another || attempts.is_some_and(|a| a.iter().all(|a| a.crc != crc)) {
            self.convict(format!("I21: the audio of #{} of {session} is another", word.index));
        }
    }

    fn said_numbered(
        &mut self,
        conn: ConnId,
        session: &str,
        seq: u64,
        word: Word,
        counts: &mut Counts,
    ) {
        let line = self.line(conn);
        if line.next_seq != Some(seq) {
            let expected = line.next_seq;
            return self
                .convict(format!("I5: {session} was sent {seq} where {expected:?} was next"));
        }
        line.next_seq = Some(seq + 1);
        let ledger = self.ledger(session);
        if let Some(before) = ledger.words.get(&seq) {
            counts.reached("W7_sent_again");
            if *before != word {
                let sentence = format!("I9: number {seq} of {session} was {before:?}, is {word:?}");
                return self.convict(sentence);
            }
            return;
        }
        ledger.words.insert(seq, word.clone());
        if let Some(before) = ledger.last.insert(word.index, Some(seq))
            && before.is_some()
        {
            let (index, before) = (word.index, before.unwrap_or(0));
            return self.convict(format!(
                "I2: #{index} of {session} has two last words, {before} and {seq}"
            ));
        }
        let accepted = ledger.accepted.get(&word.index);
        if !word.job.is_empty() && accepted.is_some_and(|job| *job != word.job) {
            let sentence = format!("I8: #{} of {session} was accepted as another job", word.index);
            return self.convict(sentence);
        }
        ledger.unheard |= word.kind != "result";
        self.look_at_order(conn, session, &word);
    }

    /// A last word without a number: of a session that cannot come back, or of an utterance that
    /// never became a job.
    fn said_plain(&mut self, conn: ConnId, session: &str, word: &Word) {
        let ledger = self.ledger(session);
        ledger.unheard |= word.kind != "result";
        let index = word.index;
        let accepted = ledger.accepted.contains_key(&index);
        let refused = matches!(word.kind.as_str(), "overloaded" | "shutting_down");
        if accepted && refused {
            return self.convict(format!("I17: #{index} of {session} was accepted, then refused"));
        }
        let (resume, repeated) = (ledger.resume, ledger.repeated.contains(&index));
        if ledger.last.insert(index, None).is_some() && !resume && !repeated {
            return self.convict(format!("I2: #{index} of {session} has two last words"));
        }
        if resume && !refused {
            let kind = &word.kind;
            self.convict(format!("I5: #{index} of {session} ended in {kind} without a number"));
            return;
        }
        self.look_at_order(conn, session, word);
    }

    fn look_at_order(&mut self, conn: ConnId, session: &str, word: &Word) {
        let life = self.life;
        let ledger = self.ledger(session);
        // What still leaves by a connection that was replaced is read by nobody.
        if ledger.conn != Some(conn) {
            return;
        }
        // What was begun in an earlier life may be late without knowing it.
        let earlier = ledger.first_life.get(&word.index).is_none_or(|first| *first < life);
        let excused = word.late || ledger.repeated.contains(&word.index) || earlier;
        if ledger.highest.is_some_and(|highest| word.index < highest) && !excused {
            let (index, highest) = (word.index, ledger.highest.unwrap_or(0));
            return self.convict(format!("I23: #{index} of {session} came after #{highest}"));
        }
        ledger.highest = ledger.highest.max(Some(word.index));
    }

    /// A message reached a client.
    pub(in crate::sim) fn client_got(&mut self, conn: ConnId, value: &Value) {
        match text(value, "type") {
            "session_resume_ack" => self.line(conn).heard_answers += 1,
            "translation_result" | "missing_result" => {
                let session = text(value, "session_id").to_owned();
                let index = value["utterance_index"].as_u64().unwrap_or(u64::MAX);
                let ledger = self.ledger(&session);
                if let Some(seq) = value["seq"].as_u64() {
                    ledger.got = ledger.got.max(seq);
                    if ledger.owed.is_some_and(|(_, highest)| seq >= highest) {
                        ledger.owed = None;
                    }
                } else if text(value, "reason") != "gap_timeout" {
                    ledger.got_indices.insert(index);
                }
            }
            _ => {}
        }
    }

    /// The longest that a client which is back waits for what it was owed then.
    pub(in crate::sim) fn look_at_debts(&mut self, now: u64, within_us: u64) {
        let late = self.sessions.iter().find(|(_, ledger)| {
            let due = |(since, highest): (u64, u64)| {
                highest > ledger.got.max(ledger.gone) && now > since + within_us
            };
            !ledger.lost && ledger.owed.is_some_and(due)
        });
        if let Some((session, ledger)) = late {
            let sentence = format!(
                "L2: {session} is back since {:?} and has only {} of what it is owed",
                ledger.owed, ledger.got
            );
            self.convict(sentence);
        }
    }

    /// Forgets debts that were made while there were faults.
    pub(in crate::sim) fn faults_are_over(&mut self) {
        for ledger in self.sessions.values_mut() {
            ledger.owed = None;
        }
    }
}
