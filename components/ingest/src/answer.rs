//! What goes back to the client, before it becomes a WASI response.

use serde::Serialize;

/// Where a job's page is: this, then its id.
const JOB_PAGES: &str = "/api/jobs/";

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header names, in lower case, and values, in visible ASCII.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Accepted<'a> {
    job_id: &'a str,
    status: &'static str,
}

impl Answer {
    /// The queue has the job of this id, for good.
    pub fn accepted(job_id: &str) -> Self {
        let document = Accepted {
            job_id,
            status: "accepted",
        };
        let mut answer = Self::json(202, "application/json", &document);
        answer.header("location", format!("{JOB_PAGES}{}", path_segment(job_id)));
        answer
    }

    /// A JSON document.
    pub(crate) fn json(status: u16, content_type: &str, document: &impl Serialize) -> Self {
        let body = serde_json::to_vec(document)
            .expect("a struct of strings, numbers and lists of them always has a JSON form");
        let mut answer = Self {
            status,
            headers: Vec::new(),
            body,
        };
        answer.header("content-type", content_type);
        // Without it the body would be sent in chunks, its end in a packet of
        // its own, for which a client's delayed ACK can cost 40 ms.
        answer.header("content-length", answer.body.len().to_string());
        answer
    }

    pub(crate) fn header(&mut self, name: &'static str, value: impl Into<String>) {
        self.headers.push((name, value.into()));
    }
}

/// `text` as one segment of a URL's path (RFC 3986 `pchar`, the rest
/// percent-encoded).
fn path_segment(text: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => segment.push(char::from(byte)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
            | b',' | b';' | b'=' | b':' | b'@' => segment.push(char::from(byte)),
            _ => {
                segment.push('%');
                segment.push(char::from(HEX[usize::from(byte >> 4)]));
                segment.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_accepted_job_is_named_and_located() {
        let answer = Answer::accepted("order-17");
        assert_eq!(answer.status, 202);
        assert_eq!(answer.body, br#"{"jobId":"order-17","status":"accepted"}"#);
        let header = |name| {
            let found = answer.headers.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(header("location"), Some("/api/jobs/order-17"));
        assert_eq!(header("content-type"), Some("application/json"));
        assert_eq!(header("content-length"), Some("40"));
    }

    #[test]
    fn an_awkward_id_survives_body_and_location() {
        let answer = Answer::accepted(r#"a/b?"\%#"#);
        assert_eq!(
            answer.body,
            br#"{"jobId":"a/b?\"\\%#","status":"accepted"}"#
        );
        let location = ("location", "/api/jobs/a%2Fb%3F%22%5C%25%23".to_owned());
        assert!(answer.headers.contains(&location));
    }
}
