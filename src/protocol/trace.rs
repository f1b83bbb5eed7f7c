//! The context of a trace, as the W3C has it (`traceparent`): where in somebody's trace a job
//! stands.

use std::fmt;
use std::str::FromStr;

use bincode::de::Decoder;
use bincode::enc::Encoder;
use bincode::error::{DecodeError, EncodeError};
use bincode::{Decode, Encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ids::{BadId, JobId};

/// A place in a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace; never 0.
    pub trace: u128,
    /// The span that what follows is a child of; never 0.
    pub parent: u64,
    /// Whether whoever began the trace wants it recorded.
    pub sampled: bool,
}

impl TraceParent {
    /// The name of the field on the wire, and of the extension of nodes.
    pub const NAME: &str = "traceparent";

    /// The span of a job, in the trace of its client or in one of its own.
    pub fn of_job(job: JobId, client: Option<TraceParent>) -> Self {
        // The lower half of an id is drawn by chance, so it tells spans apart.
        let parent = (job.0 as u64).max(1);
        match client {
            Some(client) => Self { parent, ..client },
            None => Self { trace: job.0.max(1), parent, sampled: true },
        }
    }
}

impl FromStr for TraceParent {
    type Err = BadId;

    /// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, in small letters. A later version may
    /// have more behind it.
    fn from_str(text: &str) -> Result<Self, BadId> {
        const BAD: BadId = BadId("traceparent");
        let (head, rest) = text.split_at_checked(55).ok_or(BAD)?;
        let parts: Vec<&str> = head.split('-').collect();
        let [version, trace, parent, flags] = parts[..] else { return Err(BAD) };
        let small = |part: &&str| part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let lengths = [version, trace, parent, flags].map(str::len) == [2, 32, 16, 2];
        let ends = rest.is_empty() || (version != "00" && rest.starts_with('-'));
        if !parts.iter().all(small) || !lengths || version == "ff" || !ends {
            return Err(BAD);
        }
        let number = |part| u128::from_str_radix(part, 16).map_err(|_| BAD);
        let (trace, parent) = (number(trace)?, number(parent)? as u64);
        let sampled = number(flags)? & 1 == 1;
        if trace == 0 || parent == 0 { Err(BAD) } else { Ok(Self { trace, parent, sampled }) }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace, parent, sampled } = self;
        write!(f, "00-{trace:032x}-{parent:016x}-{:02x}", u8::from(*sampled))
    }
}

impl<'de> Deserialize<'de> for TraceParent {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for TraceParent {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// The client's place in its trace, as a job carries it. It is not kept on disk: spans are made of
/// times that mean nothing in another life of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traced(pub Option<TraceParent>);

impl Encode for Traced {
    fn encode<E: Encoder>(&self, _: &mut E) -> Result<(), EncodeError> {
        Ok(())
    }
}

impl<C> Decode<C> for Traced {
    fn decode<D: Decoder<Context = C>>(_: &mut D) -> Result<Self, DecodeError> {
        Ok(Self(None))
    }
}

bincode::impl_borrow_decode!(Traced);

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_context_is_read_and_written_alike() {
        let context: TraceParent = TEXT.parse().unwrap();
        assert_eq!((context.trace >> 64) as u64, 0x4bf9_2f35_77b3_4da6);
        assert_eq!((context.parent, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.to_string(), TEXT);
        let later = TEXT.replacen("00", "cc", 1) + "-what-comes-then";
        assert_eq!(later.parse(), Ok(context));
        let unsampled: TraceParent = TEXT.replace("-01", "-fe").parse().unwrap();
        assert!(!unsampled.sampled);
    }

    #[test]
    fn what_is_no_context_is_refused() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        for bad in [
            "".to_owned(),
            TEXT[1..].to_owned(),
            TEXT.to_uppercase(),
            format!("{TEXT}-more"),
            format!("{TEXT}é"),
            TEXT.replacen("00", "ff", 1),
            TEXT.replace(trace, &"0".repeat(32)),
            TEXT.replace("00f067aa0ba902b7", &"0".repeat(16)),
            TEXT.replace(trace, &trace.replace("4b", "+b")),
            TEXT.replace('-', "_"),
            "é".repeat(40),
        ] {
            assert!(bad.parse::<TraceParent>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_job_is_a_span_of_its_clients_trace_or_of_one_of_its_own() {
        let client: TraceParent = TEXT.parse().unwrap();
        let job = JobId(7 << 64 | 9);
        let inside = TraceParent::of_job(job, Some(client));
        assert_eq!((inside.trace, inside.parent), (client.trace, 9));
        let alone = TraceParent::of_job(job, None);
        assert_eq!((alone.trace, alone.parent, alone.sampled), (job.0, 9, true));
        let zero = TraceParent::of_job(JobId(0), None);
        assert!(zero.to_string().parse::<TraceParent>().is_ok());
    }

    #[test]
    fn nothing_of_it_is_kept_on_disk() {
        let config = bincode::config::standard();
        let traced = Traced(TEXT.parse().ok());
        let bytes = bincode::encode_to_vec(traced, config).unwrap();
        assert!(bytes.is_empty());
        let (back, _): (Traced, _) = bincode::decode_from_slice(&bytes, config).unwrap();
        assert_eq!(back, Traced(None));
    }
}
