//! What a node that can says when it comes: which program run it is, which jobs it works on, and
//! which results it was never told were taken. And what it is answered.
//!
//! All of it is an extension: a node that does not offer it is never sent any of it.

use serde::{Deserialize, Serialize};

use super::ids::JobId;
use super::{lenient, limits};

/// The name of the extension in `extensions`.
pub const RESULT_ACK: &str = "result_ack";

/// One attempt at a job, as both ends name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Attempt {
    /// The job.
    pub job_id: JobId,
    /// The attempt.
    pub attempt_id: u32,
}

/// What the node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// New with each start of the node's program; never empty.
    pub boot_id: String,
    /// Attempts it works on, or is about to.
    pub inflight: Vec<Attempt>,
    /// Attempts it has answered without being told that the answer was taken.
    pub unacked: Vec<Attempt>,
    /// Entries that were not read: beyond the bound, or of no sense.
    pub ignored: usize,
}

/// What becomes of an attempt that a node named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Go on with it; or, of an answer, keep it: whether it was taken is told later.
    Keep,
    /// Nobody waits for it: stop, forget.
    Cancel,
    /// Send the answer again.
    Send,
}

impl Action {
    /// Name on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Keep => "keep",
            Action::Cancel => "cancel",
            Action::Send => "send",
        }
    }
}

/// The answer about one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// The attempt.
    #[serde(flatten)]
    pub attempt: Attempt,
    /// What becomes of it.
    pub action: Action,
}

/// What became of a result; the node need not keep it any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AckStatus {
    /// It is the job's outcome and on disk; or it said that the node cannot, and the job went on.
    Committed,
    /// It had come before, and what it said is on disk.
    Duplicate,
    /// The attempt does not count.
    Stale,
    /// No such job is known.
    Unknown,
}

impl AckStatus {
    /// Name on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            AckStatus::Committed => "committed",
            AckStatus::Duplicate => "duplicate",
            AckStatus::Stale => "stale",
            AckStatus::Unknown => "unknown",
        }
    }
}

/// The fields of a registration that make a hello.
#[derive(Default, Deserialize)]
pub(super) struct HelloWire {
    #[serde(default, deserialize_with = "lenient::entries::<_, _, 16>")]
    extensions: Vec<String>,
    #[serde(default, deserialize_with = "lenient::opt_any")]
    boot_id: Option<String>,
    #[serde(default)]
    inflight: Attempts,
    #[serde(default)]
    unacked: Attempts,
}

type Attempts = lenient::Entries<AttemptWire, { limits::HELLO_ENTRIES_MAX }>;

#[derive(Deserialize)]
struct AttemptWire {
    job_id: JobText,
    #[serde(deserialize_with = "lenient::int")]
    attempt_id: u32,
}

impl HelloWire {
    /// Whether the node offers an extension.
    pub(super) fn offers(&self, name: &str) -> bool {
        self.extensions.iter().any(|e| e == name)
    }

    /// The hello, if the node offers the extension and says which run of its program it is.
    pub(super) fn read(self) -> Option<Hello> {
        let offered = self.offers(RESULT_ACK);
        let boot_id = self.boot_id.unwrap_or_default();
        if !offered || boot_id.is_empty() || boot_id.len() > limits::ID_BYTES_MAX {
            return None;
        }
        let (inflight, beyond) = attempts(self.inflight);
        let (unacked, also) = attempts(self.unacked);
        Some(Hello { boot_id, inflight, unacked, ignored: beyond + also })
    }
}

fn attempts(entries: Attempts) -> (Vec<Attempt>, usize) {
    let read = |AttemptWire { job_id: JobText(job_id), attempt_id }| Attempt { job_id, attempt_id };
    let given = entries.given;
    let read: Vec<Attempt> = entries.read.into_iter().map(read).collect();
    let ignored = given - read.len();
    (read, ignored)
}

/// A job's id as text.
struct JobText(JobId);

impl<'de> Deserialize<'de> for JobText {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: serde_json::Value) -> Option<Hello> {
        serde_json::from_str::<HelloWire>(&json.to_string()).unwrap().read()
    }

    #[test]
    fn who_does_not_offer_it_or_has_no_boot_id_says_no_hello() {
        let long = "x".repeat(limits::ID_BYTES_MAX + 1);
        for json in [
            serde_json::json!({}),
            serde_json::json!({"boot_id": "b"}),
            serde_json::json!({"extensions": ["result_ack"]}),
            serde_json::json!({"extensions": ["result_ack"], "boot_id": 7}),
            serde_json::json!({"extensions": ["result_ack"], "boot_id": long}),
            serde_json::json!({"extensions": "result_ack", "boot_id": "b"}),
        ] {
            assert_eq!(read(json.clone()), None, "{json}");
        }
        let bare = read(serde_json::json!({"extensions": [1, "result_ack"], "boot_id": "b",
            "inflight": 3, "unacked": null}));
        assert_eq!(bare, Some(Hello { boot_id: "b".into(), ..Hello::default() }));
    }

    #[test]
    fn odd_entries_and_those_beyond_the_bound_are_counted_and_left_out() {
        let entry = |n: u128| serde_json::json!({"job_id": JobId(n), "attempt_id": 769.0});
        let many: Vec<_> = (0..limits::HELLO_ENTRIES_MAX as u128 + 5).map(entry).collect();
        let hello = read(serde_json::json!({"extensions": ["result_ack"], "boot_id": "b",
            "inflight": many, "unacked": [7, {"job_id": "x", "attempt_id": 1},
                {"job_id": JobId(3)}, entry(4)]}))
        .unwrap();
        assert_eq!(hello.inflight.len(), limits::HELLO_ENTRIES_MAX);
        assert_eq!(hello.unacked, [Attempt { job_id: JobId(4), attempt_id: 769 }]);
        assert_eq!(hello.ignored, 5 + 3);
    }
}
