//! What a request says before its body.

use crate::problem::Problem;
use crate::request::BODY_BYTES_MAX;

/// Length of a version 00 `traceparent`, in bytes:
/// `00-<32 hex>-<16 hex>-<2 hex>`.
const TRACEPARENT_BYTES: usize = 55;

/// What the handler needs of the headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Length of the body, where the client said it.
    pub content_length: Option<usize>,
    /// The W3C trace context to go on with, if it is a valid one.
    pub traceparent: Option<String>,
}

impl Head {
    /// Reads method and headers, or says why they rule the request out.
    pub fn read(is_post: bool, headers: &[(String, Vec<u8>)]) -> Result<Self, Problem> {
        if !is_post {
            return Err(Problem::MethodNotAllowed);
        }
        let mut content_types = values(headers, "content-type");
        match (content_types.next(), content_types.next()) {
            (Some(value), None) => check_media_type(value)?,
            (Some(_), Some(_)) => {
                return Err(unsupported("The request has two content types"));
            }
            (None, _) => return Err(unsupported("The request has no content type")),
        }
        if let Some(coding) = values(headers, "content-encoding")
            .find(|coding| !coding.trim_ascii().eq_ignore_ascii_case(b"identity"))
        {
            let coding = String::from_utf8_lossy(coding);
            return Err(Problem::UnsupportedMediaType(format!(
                "The body is encoded as `{coding}`; send it as it is, without `Content-Encoding`."
            )));
        }
        let content_length = values(headers, "content-length")
            .next()
            .and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<u64>().ok());
        let content_length = match content_length.map(usize::try_from) {
            Some(Ok(length)) if length <= BODY_BYTES_MAX => Some(length),
            Some(_) => return Err(Problem::TooLarge),
            None => None,
        };
        let mut traceparents = values(headers, "traceparent");
        let traceparent = match (traceparents.next(), traceparents.next()) {
            (Some(value), None) => traceparent(value),
            // Two of them contradict each other: neither is to be believed.
            _ => None,
        };
        Ok(Self {
            content_length,
            traceparent,
        })
    }
}

fn values<'a>(
    headers: &'a [(String, Vec<u8>)],
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> {
    headers
        .iter()
        .filter(move |(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_slice())
}

fn unsupported(found: &str) -> Problem {
    Problem::UnsupportedMediaType(format!("{found}; send JSON as `application/json`."))
}

/// Accepts `application/json` and `application/<anything>+json`, in UTF-8.
fn check_media_type(value: &[u8]) -> Result<(), Problem> {
    let refused = || {
        unsupported(&format!(
            "The content type is `{}`",
            String::from_utf8_lossy(value)
        ))
    };
    let value = std::str::from_utf8(value).map_err(|_| refused())?;
    let mut parts = value.split(';');
    let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = match essence.strip_prefix("application/") {
        Some("json") => true,
        Some(subtype) => subtype
            .strip_suffix("+json")
            .is_some_and(|name| !name.is_empty()),
        None => false,
    };
    if !is_json {
        return Err(refused());
    }
    let charset = parts
        .filter_map(|parameter| parameter.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    match charset {
        Some((_, charset))
            if !charset
                .trim()
                .trim_matches('"')
                .eq_ignore_ascii_case("utf-8") =>
        {
            Err(Problem::UnsupportedMediaType(format!(
                "The charset is `{}`; JSON is sent in UTF-8.",
                charset.trim()
            )))
        }
        _ => Ok(()),
    }
}

/// A valid `traceparent` in its version 00 form. A later version may have more
/// to it; its first four parts are read as version 00, as W3C asks.
fn traceparent(value: &[u8]) -> Option<String> {
    let value = std::str::from_utf8(value).ok()?.trim_ascii();
    let known = value.get(..TRACEPARENT_BYTES)?;
    let rest = &value[TRACEPARENT_BYTES..];
    let mut parts = known.split('-');
    let [version, trace, parent, flags] =
        [parts.next()?, parts.next()?, parts.next()?, parts.next()?];
    let is_hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length| is_hex(part, length) && part.bytes().any(|b| b != b'0');
    let is_valid = is_hex(version, 2)
        && version != "ff"
        && is_id(trace, 32)
        && is_id(parent, 16)
        && is_hex(flags, 2)
        && (rest.is_empty() || (version != "00" && rest.starts_with('-')));
    is_valid.then(|| format!("00{}", &known[2..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(headers: &[(&str, &str)]) -> Result<Head, Problem> {
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()))
            .collect();
        Head::read(true, &headers)
    }

    fn is_accepted(content_type: &str) -> bool {
        match read(&[("content-type", content_type)]) {
            Ok(_) => true,
            Err(Problem::UnsupportedMediaType(_)) => false,
            Err(other) => panic!("{content_type}: {other:?}"),
        }
    }

    #[test]
    fn only_post_is_taken() {
        assert_eq!(Head::read(false, &[]), Err(Problem::MethodNotAllowed));
    }

    #[test]
    fn json_media_types_are_taken_and_others_not() {
        for accepted in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\";q=1",
            "application/vnd.acme.order+json",
            "application/problem+json ; profile=x",
        ] {
            assert!(is_accepted(accepted), "{accepted}");
        }
        for refused in [
            "",
            "text/plain",
            "text/json",
            "application/jsonp",
            "application/+json",
            "application/json, text/plain",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-16",
        ] {
            assert!(!is_accepted(refused), "{refused}");
        }
        assert!(read(&[]).is_err());
        let json = ("content-type", "application/json");
        assert!(read(&[json, json]).is_err());
        let bytes = vec![b'a', 0xff];
        assert!(Head::read(true, &[("content-type".to_owned(), bytes)]).is_err());
    }

    #[test]
    fn a_compressed_body_is_refused_by_name() {
        let json = ("content-type", "application/json");
        assert!(read(&[json, ("content-encoding", "identity")]).is_ok());
        let Err(Problem::UnsupportedMediaType(detail)) =
            read(&[json, ("Content-Encoding", "gzip")])
        else {
            panic!("gzip was taken");
        };
        assert!(detail.contains("`gzip`"));
    }

    #[test]
    fn a_body_known_to_be_too_large_is_refused_at_once() {
        let json = ("Content-Type", "application/json");
        let length =
            |value| read(&[json, ("content-length", value)]).map(|head| head.content_length);
        assert_eq!(length("262144"), Ok(Some(262_144)));
        assert_eq!(length("262145"), Err(Problem::TooLarge));
        assert_eq!(length("18446744073709551615"), Err(Problem::TooLarge));
        // Not a length: the body itself is counted instead.
        assert_eq!(length("-1"), Ok(None));
        assert_eq!(length("many"), Ok(None));
        assert_eq!(read(&[json]).unwrap().content_length, None);
    }

    #[test]
    fn a_valid_trace_context_goes_on_and_an_invalid_one_is_dropped() {
        let json = ("content-type", "application/json");
        let trace = |value| read(&[json, ("traceparent", value)]).unwrap().traceparent;
        assert_eq!(trace(TRACE).as_deref(), Some(TRACE));
        let later = format!("cc{}-what-comes", &TRACE[2..]);
        assert_eq!(trace(&later).as_deref(), Some(TRACE));
        for invalid in [
            "",
            "00",
            &TRACE[..54],
            &format!("{TRACE}-x"),
            &format!("cc{}x", &TRACE[2..]),
            &format!("ff{}", &TRACE[2..]),
            &TRACE.to_uppercase(),
            &TRACE.replace('-', "_"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473--00f067aa0ba902b7-01",
            "☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃☃",
        ] {
            assert_eq!(trace(invalid), None, "{invalid}");
        }
        let twice = [json, ("traceparent", TRACE), ("traceparent", TRACE)];
        assert_eq!(read(&twice).unwrap().traceparent, None);
    }
}
