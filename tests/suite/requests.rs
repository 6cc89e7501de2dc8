//! Bad requests: told what is wrong, never a 5xx, never a stuck connection,
//! wherever the queue is.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::rig::{Rig, manifest};
use crate::two_ways::Ends;

/// Sends bytes as they are and reads until the other side closes.
fn raw(rig: &Rig, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(rig.app_address()).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(rig: &Rig, content_type: &str, body: &[u8]) -> (u16, String) {
    let head = format!(
        "POST /api/IngestJob HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = raw(rig, &[head.as_bytes(), body].concat());
    (answer[9..12].parse().unwrap(), answer)
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong_with_them_on_both_ways() {
    for ends in Ends::both("worker", "").await {
        println!("{}", ends.name);
        a_bad_request_is_told_everything_that_is_wrong_with_it(&ends.front);
        a_problem_names_the_path_without_its_query(&ends.front);
        a_wrong_method_is_told_the_right_one(&ends.front);
    }
}

fn a_bad_request_is_told_everything_that_is_wrong_with_it(rig: &Rig) {
    let deep = format!(
        "{{\"jobType\":\"t\",\"payload\":{}{}}}",
        "[".repeat(5_000),
        "]".repeat(5_000)
    );
    let long = format!(
        "{{\"jobType\":\"t\",\"payload\":\"{}\"}}",
        "x".repeat(300_000)
    );
    let longer = format!(
        "{{\"jobType\":\"t\",\"payload\":\"{}\"}}",
        "x".repeat(3_000_000)
    );
    let json = "application/json";
    for (content_type, body, status, told) in [
        (json, b"{".as_slice(), 400, "application/problem+json"),
        (json, b"", 400, "application/problem+json"),
        (json, b"\xff\xfe{}", 400, "application/problem+json"),
        (json, br#"{"jobTyp":1}"#, 400, "\"/jobTyp\""),
        (
            json,
            br#"{"jobType":1,"jobId":"a b","delaySeconds":-1}"#,
            400,
            "\"/delaySeconds\"",
        ),
        (
            json,
            br#"{"jobType":1,"jobId":"a b","delaySeconds":-1}"#,
            400,
            "\"/payload\"",
        ),
        (
            json,
            br#"{"jobType":"t","payload":1,"properties":{"k":1}}"#,
            400,
            "\"/properties/k\"",
        ),
        (json, deep.as_bytes(), 400, "application/problem+json"),
        (json, long.as_bytes(), 413, "application/problem+json"),
        (json, longer.as_bytes(), 413, "application/problem+json"),
        (
            "text/plain",
            br#"{"jobType":"t","payload":1}"#,
            415,
            "application/problem+json",
        ),
        (json, br#"{"jobType":"t","payload":1}"#, 202, "accepted"),
    ] {
        let (got, answer) = post(rig, content_type, body);
        assert_eq!(got, status, "{answer}");
        assert!(answer.contains(told), "{told} is missing from {answer}");
    }
}

fn a_problem_names_the_path_without_its_query(rig: &Rig) {
    let answer = raw(
        rig,
        b"GET /api/IngestJob?secret=1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert!(
        answer.contains("\"instance\":\"/api/IngestJob\""),
        "{answer}"
    );
}

fn a_wrong_method_is_told_the_right_one(rig: &Rig) {
    let answer = raw(
        rig,
        b"DELETE /api/IngestJob HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert!(
        answer.starts_with("HTTP/1.1 405") && answer.to_lowercase().contains("allow: post"),
        "{answer}"
    );
    let answer = raw(
        rig,
        b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[test]
fn a_client_that_stops_sending_holds_up_no_one_and_is_let_go() {
    let settings = "[application.trigger.servicebus]\nrequest_timeout = \"2s\"\n";
    let rig = Rig::up(&(manifest(&[("jobs", "worker", "")]) + settings));
    let mut slow = TcpStream::connect(rig.app_address()).unwrap();
    slow.write_all(b"POST /api/IngestJob HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        .unwrap();
    assert_eq!(
        post(&rig, "application/json", br#"{"jobType":"t","payload":1}"#).0,
        202
    );
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}
