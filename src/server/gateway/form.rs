//! The form in which a recording comes.

use bytes::Bytes;
use http_body_util::BodyDataStream;
use hyper::body::Incoming;
use hyper::{Request, header};
use multer::{Constraints, Field, Multipart, SizeLimit};

use super::answer::Refused;
use crate::protocol::gateway::Terms;

/// The field with the recording.
const AUDIO: &str = "audio";
/// The other fields.
const FIELDS: [&str; 7] = [
    "src_lang",
    "tgt_lang",
    "auto_langs",
    "audio_format",
    "sample_rate",
    "answer_format",
    "trace_id",
];
/// Bytes of one of them.
const FIELD_BYTES_MAX: usize = 512;
/// Bytes of a form beside its recording.
const AROUND_BYTES_MAX: usize = 16 * 1024;

/// A form as it came; what is in it has still to be understood.
pub(super) struct Form {
    pub(super) terms: Terms,
    pub(super) audio: Bytes,
}

impl Form {
    /// Reads it, with a recording of up to so many bytes.
    pub(super) async fn read(
        request: Request<Incoming>,
        bytes_max: usize,
    ) -> Result<Self, Refused> {
        let whole_max = (bytes_max + AROUND_BYTES_MAX) as u64;
        let says = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
        let length: Option<u64> = says(header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
        if length.is_some_and(|length| length > whole_max) {
            return Err(too_long(bytes_max));
        }
        let kind = says(header::CONTENT_TYPE).unwrap_or_default();
        let boundary = multer::parse_boundary(kind)
            .map_err(|_| Refused::unsupported("the body is to be multipart/form-data"))?;
        let sizes = SizeLimit::new()
            .whole_stream(whole_max)
            .per_field(FIELD_BYTES_MAX as u64)
            .for_field(AUDIO, bytes_max as u64);
        let fields = FIELDS.into_iter().chain([AUDIO]).collect();
        let constraints = Constraints::new().allowed_fields(fields).size_limit(sizes);
        let body = BodyDataStream::new(request.into_body());
        let mut parts = Multipart::with_constraints(body, boundary, constraints);
        let (mut terms, mut audio) = (Terms::default(), None);
        let refused = |error| malformed(&error, bytes_max);
        while let Some(field) = parts.next_field().await.map_err(refused)? {
            match field.name() {
                Some(AUDIO) => {
                    let bytes = field.bytes().await.map_err(refused)?;
                    once(AUDIO, audio.replace(bytes).is_none())?;
                }
                _ => take(&mut terms, field, bytes_max).await?,
            }
        }
        match audio {
            Some(audio) if !audio.is_empty() => Ok(Self { terms, audio }),
            _ => Err(Refused::malformed("the field `audio` is missing or empty")),
        }
    }
}

async fn take(terms: &mut Terms, field: Field<'_>, bytes_max: usize) -> Result<(), Refused> {
    let name = field.name().unwrap_or_default().to_owned();
    let bytes = field.bytes().await.map_err(|error| malformed(&error, bytes_max))?;
    let text = std::str::from_utf8(&bytes)
        .map_err(|_| Refused::malformed(format!("the field `{name}` is not UTF-8")))?;
    let text = text.trim().to_owned();
    let fresh = match name.as_str() {
        "src_lang" => terms.src_lang.replace(text).is_none(),
        "tgt_lang" => terms.tgt_lang.replace(text).is_none(),
        "auto_langs" => {
            let langs = text.split(',').map(|lang| lang.trim().to_owned()).collect();
            terms.auto_langs.replace(langs).is_none()
        }
        "audio_format" => terms.audio_format.replace(text).is_none(),
        "answer_format" => terms.answer_format.replace(text).is_none(),
        "trace_id" => terms.trace_id.replace(text).is_none(),
        _ => {
            let rate = text.parse();
            let rate = rate.map_err(|_| Refused::malformed("`sample_rate` is not a number"))?;
            terms.sample_rate.replace(rate).is_none()
        }
    };
    once(&name, fresh)
}

fn once(name: &str, fresh: bool) -> Result<(), Refused> {
    match fresh {
        true => Ok(()),
        false => Err(Refused::malformed(format!("the field `{name}` is there twice"))),
    }
}

fn too_long(bytes_max: usize) -> Refused {
    Refused::too_long(format!("a recording may have {bytes_max} bytes"))
}

fn malformed(error: &multer::Error, bytes_max: usize) -> Refused {
    match error {
        multer::Error::FieldSizeExceeded { field_name: Some(name), .. } if name != AUDIO => {
            Refused::malformed(format!("the field `{name}` is longer than {FIELD_BYTES_MAX}"))
        }
        multer::Error::FieldSizeExceeded { .. } | multer::Error::StreamSizeExceeded { .. } => {
            too_long(bytes_max)
        }
        multer::Error::UnknownField { .. } => Refused::malformed(format!(
            "a field that is not known; there are {AUDIO}, {}",
            FIELDS.join(", ")
        )),
        other => Refused::malformed(format!("the form cannot be read: {other}")),
    }
}
