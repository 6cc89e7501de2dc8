//! Any text around a known secret is refused or read without a panic. No error ever shows the secret, wherever in the
//! text it stands; what was read shows it neither, but still has it. What was read is written and reads back to the
//! same, goes to a plain host, and without TLS only to this machine.
//!
//! An input is one byte that says where the secret stands, and then three texts with a zero byte between them: what
//! is before it, the rest of its own value, and what is after it.

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use orchestrator_servicebus::connection_string::{Auth, ConnectionString, Scheme};

const SECRET: &str = "Zq7!hush!pX2";
const TOKEN_START: &str = "SharedAccessSignature sr=x&sig=";

/// Where the secret stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Key,
    Signature,
    /// In place of a port, which is also where a password in an address is.
    Password,
    /// In a part with a key of its own or with none, as after a wrong separator.
    OwnPart,
    /// Anywhere, perhaps in a value that may be shown.
    Anywhere,
}

const PLACES: [Place; 5] = [
    Place::Key,
    Place::Signature,
    Place::Password,
    Place::OwnPart,
    Place::Anywhere,
];

fuzz_target!(|data: &[u8]| {
    let Some((place, texts)) = data.split_first() else {
        return;
    };
    let Ok(texts) = std::str::from_utf8(texts) else {
        return;
    };
    // The fuzzer learns the secret from comparisons; a second copy of it could be in a value that may be shown.
    if texts.contains(SECRET) {
        return;
    }
    let place = PLACES[usize::from(*place) % PLACES.len()];
    let mut texts = texts.splitn(3, '\0');
    let mut next = || texts.next().unwrap_or_default();
    let (before, rest, after) = (next(), next(), next());
    let text = match place {
        Place::Key => format!("{before};SharedAccessKey={SECRET}{rest};{after}"),
        Place::Signature => {
            format!("{before};SharedAccessSignature={TOKEN_START}{SECRET}{rest};{after}")
        }
        Place::Password => format!("{before};Endpoint=sb://user:{SECRET}{rest};{after}"),
        Place::OwnPart => format!("{before};{SECRET}{rest};{after}"),
        Place::Anywhere => format!("{before}{SECRET}{after}"),
    };
    let read = match text.parse::<ConnectionString>() {
        Ok(read) => read,
        Err(error) => {
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains(SECRET), "{shown}");
            return;
        }
    };
    let shown = format!("{read:?} {read:#?}");
    assert!(
        place == Place::Anywhere || !shown.contains(SECRET),
        "{place:?}: {shown}"
    );
    let own_value = format!("{SECRET}{rest}");
    let own_value = own_value.split(';').next().unwrap_or_default().trim_end();
    match (place, &read.auth) {
        (Place::Key, Auth::Key { key, .. }) => assert_eq!(key.expose(), own_value),
        (Place::Signature, Auth::Signature(token)) => {
            assert_eq!(token.expose(), format!("{TOKEN_START}{own_value}"));
        }
        (Place::Key | Place::Signature | Place::Password, auth) => panic!("{place:?}: {auth:?}"),
        (Place::OwnPart | Place::Anywhere, _) => {}
    }
    check_endpoint(&read);
    assert_eq!(written(&read).parse().as_ref(), Ok(&read));
});

fn check_endpoint(read: &ConnectionString) {
    let authority = &read.endpoint.authority;
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']')
    };
    assert!(authority.bytes().all(is_plain), "{authority}");
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    assert!(!host.is_empty(), "{authority}");
    let is_this_machine = || {
        let address = host.trim_start_matches('[').trim_end_matches(']');
        host.eq_ignore_ascii_case("localhost")
            || address
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback())
    };
    assert!(
        read.endpoint.scheme == Scheme::Https || is_this_machine(),
        "{}",
        read.endpoint.origin()
    );
}

fn written(read: &ConnectionString) -> String {
    let mut text = format!("Endpoint={}/", read.endpoint.origin());
    match &read.auth {
        Auth::Key { name, key } => {
            let key = key.expose();
            text += &format!(";SharedAccessKeyName={name};SharedAccessKey={key}");
        }
        Auth::Signature(token) => text += &format!(";SharedAccessSignature={}", token.expose()),
        Auth::None => {}
    }
    if let Some(path) = &read.entity_path {
        text += &format!(";EntityPath={path}");
    }
    text
}
