use super::*;
use crate::faults::{FAULTS_NAMED_MAX, Fault};

fn parse(body: &str) -> Result<JobRequest<'_>, Faults> {
    JobRequest::parse(body.as_bytes())
}

/// A body that is right but for `more`, members after the required ones.
fn with(more: &str) -> String {
    format!(r#"{{"jobType":"t","payload":1,{more}}}"#)
}

fn faults(body: &str) -> Vec<Fault> {
    parse(body).unwrap_err().named().to_vec()
}

fn pointers(body: &str) -> Vec<String> {
    let faults = faults(body);
    faults.into_iter().map(|fault| fault.pointer).collect()
}

/// Checks that `more` spoils a body in one place, for a reason that says `part`.
fn refuses(more: &str, pointer: &str, part: &str) {
    let faults = faults(&with(more));
    assert_eq!(faults.len(), 1, "{more}: {faults:?}");
    assert_eq!(faults[0].pointer, pointer, "{more}");
    assert!(faults[0].detail.contains(part), "{more}: {faults:?}");
}

#[test]
fn the_smallest_job_is_taken() {
    let job = parse(r#"{"jobType":"demo","payload":{"n":1}}"#).unwrap();
    let expected = JobRequest {
        job_type: "demo".into(),
        payload: r#"{"n":1}"#,
        job_id: None,
        delay_ms: 0,
        properties: Vec::new(),
    };
    assert_eq!(job, expected);
}

#[test]
fn a_job_with_everything_is_taken() {
    let body = r#" {"properties":{"b":"2","a":"\u2603"}, "delaySeconds": 1.5,
        "jobId":"order/17~!", "payload":null, "job\u0054ype":"é\n"} "#;
    let job = parse(body).unwrap();
    assert_eq!(job.job_type, "é\n");
    assert_eq!(job.payload, "null");
    assert_eq!(job.job_id.as_deref(), Some("order/17~!"));
    assert_eq!(job.delay_ms, 1_500);
    let expected = [("b", "2"), ("a", "☃")].map(|(n, v)| (n.to_owned(), v.to_owned()));
    assert_eq!(job.properties, expected);
}

#[test]
fn the_payload_is_passed_on_character_for_character() {
    for payload in [
        r#"{"b": 1.0, "a" : [ ]}"#,
        r#"{"a":1,"a":2}"#,
        "1e999",
        "-0",
        "123456789012345678901234567890",
        r#""\ud800 \u0000 \/ \"""#,
        "true",
        r#""""#,
    ] {
        let body = format!("{{\"payload\" :\t{payload}\n, \"jobType\": \"t\"}}");
        assert_eq!(parse(&body).unwrap().payload, payload);
    }
    let wide = format!("[{}0]", "0,".repeat(100_000));
    let body = format!(r#"{{"jobType":"t","payload":{wide}}}"#);
    assert_eq!(parse(&body).unwrap().payload, wide);
}

#[test]
fn every_fault_is_named_at_once() {
    let body = r#"{"jobType":7,"jobId":"a b","delaySeconds":-1,"color":1,"a/b~":2,
        "properties":{"x":1,"y":"ok","":"v","z":null}}"#;
    assert_eq!(
        pointers(body),
        [
            "/color",
            "/a~1b~0",
            "/jobType",
            "/payload",
            "/jobId",
            "/delaySeconds",
            "/properties/x",
            "/properties/",
            "/properties/z",
        ]
    );
    assert_eq!(pointers("{}"), ["/jobType", "/payload"]);
}

#[test]
fn malformed_json_is_one_fault_with_its_place() {
    for (body, place) in [
        ("{", "line 1 column 1"),
        ("{\"jobType\":\n nope}", "line 2 column 3"),
        (r#"{"jobType":"t","payload":{"a":1,}}"#, "line 1 column 33"),
        (r#"{"jobType":"t","payload":1} x"#, "line 1 column 29"),
        (r#"{"jobType":"t","payload":01}"#, "line 1 column 27"),
        (r#"{"jobType":"t","payload":"a	b"}"#, "line 1 column 27"),
        ("[1,", "line 1 column 3"),
        ("nul", "line 1 column 3"),
        ("{\"jobType\":\"t\",\"payload\":1}\0", "line 1 column 28"),
        (r#"{"\ud800":1}"#, "line 1 column"),
        (r#"{'jobType':'t'}"#, "line 1 column 2"),
    ] {
        let faults = faults(body);
        assert_eq!(faults.len(), 1, "{body}");
        assert_eq!(faults[0].pointer, "", "{body}");
        assert!(
            faults[0].detail.starts_with("the body is not JSON: "),
            "{faults:?}"
        );
        assert!(faults[0].detail.contains(place), "{body}: {faults:?}");
    }
}

#[test]
fn a_body_that_is_no_object_says_what_it_is() {
    for (body, kind) in [
        ("[]", "an array"),
        (" null ", "null"),
        ("1e999", "a number"),
        ("\"x\"", "a string"),
    ] {
        assert_eq!(
            faults(body),
            [Fault {
                pointer: String::new(),
                detail: format!("the body must be an object, not {kind}"),
            }]
        );
    }
}

#[test]
fn bytes_that_are_not_utf8_are_refused_with_their_place() {
    let error = JobRequest::parse(b"{\"jobType\":\"\xff\"}").unwrap_err();
    assert_eq!(
        error.named()[0].detail,
        "the body is not UTF-8 from byte 12 on"
    );
    let marked = faults("\u{feff}{}");
    assert!(marked[0].detail.contains("byte order mark"));
    let empty = faults(" \n");
    assert!(empty[0].detail.contains("is empty"));
}

#[test]
fn depth_bombs_are_refused() {
    let nested = |levels: usize| {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        format!(r#"{{"jobType":"t","payload":{open}{close}}}"#)
    };
    assert!(parse(&nested(PAYLOAD_DEPTH_MAX)).is_ok());
    assert_eq!(pointers(&nested(PAYLOAD_DEPTH_MAX + 1)), ["/payload"]);
    assert_eq!(pointers(&nested(100_000)), ["/payload"]);
    assert_eq!(pointers(&"[".repeat(200_000)), [""]);
    assert_eq!(pointers(&"{\"a\":".repeat(50_000)), [""]);
    let deep = format!(
        r#""properties":{{"a":{}1{}}}"#,
        "[".repeat(9_000),
        "]".repeat(9_000)
    );
    refuses(&deep, "/properties/a", "must be a string, not an array");
}

#[test]
fn repeated_fields_are_refused() {
    refuses(r#""payload":2"#, "/payload", "more than once");
    refuses(r#""job\u0054ype":"t""#, "/jobType", "more than once");
    let twice = r#""properties":{"a":"1","\u0061":"2"}"#;
    refuses(twice, "/properties/a", "more than once");
}

#[test]
fn job_types_are_held_to_their_length() {
    let body = |length| format!(r#"{{"payload":0,"jobType":"{}"}}"#, "t".repeat(length));
    assert!(parse(&body(1)).is_ok());
    assert!(parse(&body(JOB_TYPE_BYTES_MAX)).is_ok());
    assert_eq!(pointers(&body(0)), ["/jobType"]);
    assert_eq!(pointers(&body(JOB_TYPE_BYTES_MAX + 1)), ["/jobType"]);
}

#[test]
fn job_ids_are_visible_ascii() {
    let longest = "x".repeat(JOB_ID_BYTES_MAX);
    for good in ["!", "~", "a", "...", "\\\"", "\\u0041", &longest] {
        assert!(
            parse(&with(&format!(r#""jobId":"{good}""#))).is_ok(),
            "{good}"
        );
    }
    refuses(r#""jobId":"""#, "/jobId", "1 to 128 bytes");
    refuses(&format!(r#""jobId":"{longest}x""#), "/jobId", "it has 129");
    refuses(r#""jobId":"a b""#, "/jobId", "' '");
    refuses(r#""jobId":"a\u0000""#, "/jobId", "'\\0'");
    refuses(r#""jobId":"é""#, "/jobId", "'é'");
    refuses(r#""jobId":"\u007f""#, "/jobId", "visible ASCII");
    refuses(r#""jobId":".""#, "/jobId", "URL");
    refuses(r#""jobId":".\u002e""#, "/jobId", "URL");
    refuses(r#""jobId":null"#, "/jobId", "not null");
    refuses(r#""jobId":"\udfff""#, "/jobId", "surrogate");
}

#[test]
fn delays_are_numbers_of_seconds() {
    for (seconds, ms) in [
        ("0", 0),
        ("-0", 0),
        ("0.0004", 0),
        ("0.25", 250),
        ("2", 2_000),
        ("1e1", 10_000),
        ("31536000", 31_536_000_000),
    ] {
        let body = with(&format!(r#""delaySeconds":{seconds}"#));
        assert_eq!(parse(&body).unwrap().delay_ms, ms, "{seconds}");
    }
    for seconds in ["-0.001", "31536000.001", "1e999", "-1e999"] {
        let more = format!(r#""delaySeconds":{seconds}"#);
        refuses(&more, "/delaySeconds", "from 0 to 31536000");
    }
    let long = format!(r#""delaySeconds":{}"#, "9".repeat(100_000));
    refuses(&long, "/delaySeconds", "from 0 to 31536000");
    refuses(r#""delaySeconds":"1""#, "/delaySeconds", "not a string");
    refuses(r#""delaySeconds":"inf""#, "/delaySeconds", "not a string");
    refuses(r#""delaySeconds":null"#, "/delaySeconds", "not null");
}

#[test]
fn properties_are_held_to_their_bounds() {
    let object = |count: usize| {
        let members: Vec<_> = (0..count).map(|i| format!(r#""k{i}":"""#)).collect();
        format!(r#""properties":{{{}}}"#, members.join(","))
    };
    assert_eq!(parse(&with(&object(0))).unwrap().properties, []);
    let most = with(&object(PROPERTIES_MAX));
    assert_eq!(parse(&most).unwrap().properties.len(), PROPERTIES_MAX);
    refuses(&object(PROPERTIES_MAX + 1), "/properties", "it has 65");
    refuses(r#""properties":[]"#, "/properties", "not an array");
    refuses(r#""properties":{"\ud800":""}"#, "/properties", "Unicode");
    let property = |name: usize, value: usize| {
        let (name, value) = ("n".repeat(name), "v".repeat(value));
        format!(r#""properties":{{"{name}":"{value}"}}"#)
    };
    let largest = property(PROPERTY_NAME_BYTES_MAX, PROPERTY_VALUE_BYTES_MAX);
    assert!(parse(&with(&largest)).is_ok());
    let long_name = format!("/properties/{}", "n".repeat(PROPERTY_NAME_BYTES_MAX + 1));
    refuses(
        &property(PROPERTY_NAME_BYTES_MAX + 1, 0),
        &long_name,
        "name",
    );
    refuses(
        &property(1, PROPERTY_VALUE_BYTES_MAX + 1),
        "/properties/n",
        "it has 4097",
    );
}

#[test]
fn a_body_full_of_faults_is_answered_within_bounds() {
    let unknown = r#""":1,"#.repeat(52_000);
    let error = parse(&with(&format!(r#"{unknown}"z":1"#))).unwrap_err();
    assert_eq!(error.named().len(), FAULTS_NAMED_MAX);
    assert_eq!(error.count(), 52_001);
    let members: Vec<_> = (0..20_000).map(|i| format!(r#""{i}":1"#)).collect();
    let error = parse(&with(&format!(r#""properties":{{{}}}"#, members.join(",")))).unwrap_err();
    assert_eq!(error.count(), 20_001);
}

#[test]
fn new_ids_are_version_7_and_sort_by_time() {
    let earlier = new_job_id(1_700_000_000_000, &[0xff; 10]);
    let later = new_job_id(1_700_000_000_001, &[0; 10]);
    assert_eq!(earlier, "018bcfe5-6800-7fff-bfff-ffffffffffff");
    assert!(earlier < later);
}
