//! No `Authorization` text panics the verifier, and none is let in without the key. A signed token is let in until its
//! second, for what is under its resource and nothing else. A changed token is let in exactly when it still says the
//! same: the same bytes of `sr` and `se`, the same `sig` and `skn` after percent-decoding, each once.
//!
//! An input is lines: changes of three characters each (what, where, with what), the resource, the name of the key,
//! the key, the second, and the path of the request. The whole of it is also tried as a header.

#![no_main]

use libfuzzer_sys::fuzz_target;
use orchestrator_servicebus::sas::{
    AUTHORIZATION_BYTES_MAX, Claim, Rights, Rule, SasError, Verifier, sign,
};
use orchestrator_servicebus::secret::Secret;
use percent_encoding::percent_decode_str;

const SCHEME: &str = "SharedAccessSignature";
const CLAIMS: [Claim; 3] = [Claim::Listen, Claim::Send, Claim::Manage];

fuzz_target!(|text: &str| {
    lets_no_stranger_in(text);
    let mut lines = text.splitn(6, '\n');
    let mut next = || lines.next().unwrap_or_default();
    let (changes, resource, name, key) = (next(), next(), next(), Secret::new(next()));
    let expiry = next().parse().unwrap_or(1_767_225_600).max(1);
    let path = next();

    let token = sign(resource, name, &key, expiry);
    assert!(token.bytes().all(|byte| matches!(byte, b' '..=b'~')));
    let verify = |header: &str, path: &str, check_scope: bool, now: u64| {
        verifier(name, &key, check_scope).verify(Some(header), path, Claim::Manage, now)
    };
    if token.len() > AUTHORIZATION_BYTES_MAX {
        assert_eq!(verify(&token, path, false, 0), Err(SasError::Malformed));
        return;
    }
    assert_eq!(verify(&token, path, false, expiry - 1), Ok(()));
    assert_eq!(verify(&token, path, false, expiry), Err(SasError::Expired));
    match verify(&token, path, true, expiry - 1) {
        // What covers a path covers what is under it; a query is not part of a path.
        Ok(()) if !path.contains(['?', '#']) => {
            let under = format!("{path}/x");
            assert_eq!(verify(&token, &under, true, expiry - 1), Ok(()));
        }
        Ok(()) | Err(SasError::OutOfScope) => {}
        Err(other) => panic!("{token} for {path}: {other:?}"),
    }

    let orders = sign("sb://ns/orders", name, &key, expiry);
    if orders.len() <= AUTHORIZATION_BYTES_MAX && verify(&orders, path, true, 0).is_ok() {
        assert!(is_under_orders(path), "{path}");
    }

    let changed = change(&token, changes);
    let is_let_in = verify(&changed, path, false, 0).is_ok();
    let says_the_same = changed.len() <= AUTHORIZATION_BYTES_MAX
        && meaning(&changed).is_some_and(|changed| Some(changed) == meaning(&token));
    assert_eq!(is_let_in, says_the_same, "{changed} for {token}");
});

fn verifier(name: &str, key: &Secret, check_scope: bool) -> Verifier {
    let rights = Rights {
        manage: true,
        ..Rights::default()
    };
    let rule = Rule {
        name: name.to_owned(),
        key: key.clone(),
        rights,
    };
    Verifier::new(vec![rule], check_scope)
}

/// Tries the text where it can do most, with the laxest verifier.
fn lets_no_stranger_in(text: &str) {
    // A key that depends on the text: no signature from an earlier input, which the fuzzer may remember, is one here.
    let key = Secret::new(format!("the key for {text}"));
    let verifier = verifier("root", &key, false);
    for header in [
        text.to_owned(),
        format!("{SCHEME} {text}"),
        format!("{SCHEME} sr=x&sig={text}&se=99999999999&skn=root"),
        format!("{SCHEME} sr=x&se=99999999999&skn=root&{text}"),
    ] {
        let claim = CLAIMS[text.len() % CLAIMS.len()];
        let outcome = verifier.verify(Some(&header), text, claim, 0);
        assert!(
            matches!(
                outcome,
                Err(SasError::Malformed | SasError::UnknownKey | SasError::BadSignature)
            ),
            "{header}: {outcome:?}"
        );
    }
}

/// Whether a path names `orders` or something under it whoever resolves it: decoded, in any case, without dots.
fn is_under_orders(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = percent_decode_str(path).decode_utf8_lossy().to_lowercase();
    let mut segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.next() == Some("orders") && segments.all(|segment| !matches!(segment, "." | ".."))
}

fn change(token: &str, changes: &str) -> String {
    let mut token: Vec<char> = token.chars().collect();
    let changes: Vec<char> = changes.chars().collect();
    for change in changes.chunks_exact(3).take(4) {
        let at = u32::from(change[1]) as usize % token.len();
        match u32::from(change[0]) % 4 {
            0 => token[at] = change[2],
            1 => token.insert(at, change[2]),
            2 if token.len() > 1 => {
                token.remove(at);
            }
            _ => {
                // Nothing but another way to write it, where percent-decoding is done.
                let mut bytes = [0; 4];
                let encoded: String = token[at]
                    .encode_utf8(&mut bytes)
                    .bytes()
                    .map(|byte| format!("%{byte:02x}"))
                    .collect();
                token.splice(at..=at, encoded.chars());
            }
        }
    }
    token.into_iter().collect()
}

/// What a token says: all that a change of it must keep.
#[derive(Debug, PartialEq)]
struct Meaning {
    resource: String,
    expiry: String,
    signature: Vec<u8>,
    key_name: Vec<u8>,
}

/// `None` for what is no token.
fn meaning(header: &str) -> Option<Meaning> {
    let (scheme, parameters) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let parameters: Vec<_> = parameters
        .trim_start()
        .split('&')
        .map(|parameter| parameter.split_once('='))
        .collect::<Option<_>>()?;
    let once = |wanted: &str| {
        let is_wanted = |(name, _): &&(&str, &str)| name.eq_ignore_ascii_case(wanted);
        let mut values = parameters.iter().filter(is_wanted);
        let value = values.next()?.1;
        values.next().is_none().then_some(value)
    };
    Some(Meaning {
        resource: once("sr")?.to_owned(),
        expiry: once("se")?.to_owned(),
        signature: percent_decode_str(once("sig")?).collect(),
        key_name: percent_decode_str(once("skn")?).collect(),
    })
}
