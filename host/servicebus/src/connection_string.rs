//! Connection strings, as the Azure portal and the official emulator hand them out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::secret::Secret;

/// Longest connection string, in bytes. A ready-made signature, its longest
/// part, takes a few hundred.
pub const CONNECTION_STRING_BYTES_MAX: usize = 8 * 1024;

const ENDPOINT: &str = "Endpoint";
const KEY_NAME: &str = "SharedAccessKeyName";
const KEY: &str = "SharedAccessKey";
const SIGNATURE: &str = "SharedAccessSignature";
const ENTITY_PATH: &str = "EntityPath";
const EMULATOR: &str = "UseDevelopmentEmulator";
/// What a ready-made signature starts with: the scheme of the `Authorization` header it becomes.
const SIGNATURE_PREFIX: &str = "SharedAccessSignature ";

/// Where a namespace is, how to be let in, and perhaps which entity is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// Where the namespace is served.
    pub endpoint: Endpoint,
    /// How to be let in.
    pub auth: Auth,
    /// The queue (or other entity) that the string is for; `None`: the whole namespace.
    pub entity_path: Option<String>,
}

/// Where a namespace is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// With or without TLS.
    pub scheme: Scheme,
    /// `host` or `host:port`, as given; an IPv6 address in brackets. No user, no path.
    pub authority: String,
}

impl Endpoint {
    /// The start of every address: `https://host:port`, without a slash at the end.
    pub fn origin(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        format!("{scheme}://{}", self.authority)
    }
}

/// With or without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Without: to this machine only.
    Http,
    /// With.
    Https,
}

/// How to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// A key to sign with.
    Key {
        /// Name of the rule the key belongs to.
        name: String,
        /// The key, used as the text it is.
        key: Secret,
    },
    /// A ready-made `SharedAccessSignature …`: visible ASCII, the whole `Authorization` header.
    Signature(Secret),
    /// Only an endpoint was given: Entra ID is to be used.
    None,
}

/// Why a text is not a connection string. Never repeats a value, as any value may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// Longer than [`CONNECTION_STRING_BYTES_MAX`].
    #[error(
        "the connection string has {0} bytes, more than the {CONNECTION_STRING_BYTES_MAX} allowed; copy it again"
    )]
    TooLong(usize),
    /// A part between semicolons is not `key=value`.
    #[error("part {0} of the connection string is not `key=value`; parts are separated by `;`")]
    NotKeyValue(usize),
    /// A key appears more than once.
    #[error("`{0}` appears more than once in the connection string; keep one")]
    Duplicate(&'static str),
    /// A key has no value.
    #[error("`{0}` is empty in the connection string; give it a value or leave it out")]
    Empty(&'static str),
    /// The one key that every connection string needs is not there.
    #[error("`Endpoint` is missing in the connection string; add `Endpoint=sb://<host>/`")]
    MissingEndpoint,
    /// One half of a pair is not there.
    #[error("`{missing}` is missing beside `{present}` in the connection string; give both")]
    MissingBeside {
        /// The key to add.
        missing: &'static str,
        /// The key that needs it.
        present: &'static str,
    },
    /// Both a key and a ready-made signature are given.
    #[error(
        "`SharedAccessSignature` and `SharedAccessKey` are both in the connection string; keep one"
    )]
    KeyAndSignature,
    /// The endpoint would send the credentials unencrypted over a network.
    #[error("`Endpoint` uses `http://` for a host that is not this machine; use `sb://`")]
    PlainHttp,
    /// A value is not what its key needs.
    #[error("`{key}` in the connection string must be {expected}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What its value must be.
        expected: &'static str,
    },
}

impl FromStr for ConnectionString {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, ConnectionStringError> {
        if text.len() > CONNECTION_STRING_BYTES_MAX {
            return Err(ConnectionStringError::TooLong(text.len()));
        }
        let parts = Parts::read(text)?;
        let endpoint = parts
            .endpoint
            .ok_or(ConnectionStringError::MissingEndpoint)?;
        let auth = match (parts.key_name, parts.key, parts.signature) {
            (None, None, None) => Auth::None,
            (None, None, Some(signature)) => Auth::Signature(checked_signature(signature)?),
            (_, _, Some(_)) => return Err(ConnectionStringError::KeyAndSignature),
            (Some(name), Some(key), None) => Auth::Key {
                name: name.to_owned(),
                key: Secret::new(key),
            },
            (Some(_), None, None) => {
                return Err(ConnectionStringError::MissingBeside {
                    missing: KEY,
                    present: KEY_NAME,
                });
            }
            (None, Some(_), None) => {
                return Err(ConnectionStringError::MissingBeside {
                    missing: KEY_NAME,
                    present: KEY,
                });
            }
        };
        Ok(Self {
            endpoint: parse_endpoint(endpoint, parse_emulator(parts.emulator)?)?,
            auth,
            entity_path: parts.entity_path.map(str::to_owned),
        })
    }
}

/// The values of the known keys, as written.
#[derive(Default)]
struct Parts<'a> {
    endpoint: Option<&'a str>,
    key_name: Option<&'a str>,
    key: Option<&'a str>,
    signature: Option<&'a str>,
    entity_path: Option<&'a str>,
    emulator: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn read(text: &'a str) -> Result<Self, ConnectionStringError> {
        let mut parts = Self::default();
        for (index, part) in text.split(';').enumerate() {
            // White space comes with files and shells; no key and no value starts or ends with it.
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            // Keys of 32 bytes in base64 end in `=` themselves: only the first one separates.
            let Some((key, value)) = part.split_once('=') else {
                return Err(ConnectionStringError::NotKeyValue(index + 1));
            };
            let (key, value) = (key.trim_end(), value.trim_start());
            let slots = [
                (ENDPOINT, &mut parts.endpoint),
                (KEY_NAME, &mut parts.key_name),
                (KEY, &mut parts.key),
                (SIGNATURE, &mut parts.signature),
                (ENTITY_PATH, &mut parts.entity_path),
                (EMULATOR, &mut parts.emulator),
            ];
            for (name, slot) in slots {
                if !key.eq_ignore_ascii_case(name) {
                    continue;
                }
                if value.is_empty() {
                    return Err(ConnectionStringError::Empty(name));
                }
                if slot.replace(value).is_some() {
                    return Err(ConnectionStringError::Duplicate(name));
                }
            }
        }
        Ok(parts)
    }
}

fn checked_signature(text: &str) -> Result<Secret, ConnectionStringError> {
    let is_header = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let has_prefix = text
        .get(..SIGNATURE_PREFIX.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(SIGNATURE_PREFIX));
    if is_header && has_prefix {
        Ok(Secret::new(text))
    } else {
        Err(ConnectionStringError::Invalid {
            key: SIGNATURE,
            expected: "a whole token that starts with `SharedAccessSignature sr=` or alike, in ASCII",
        })
    }
}

fn parse_emulator(value: Option<&str>) -> Result<bool, ConnectionStringError> {
    match value {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok(true),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(ConnectionStringError::Invalid {
            key: EMULATOR,
            expected: "`true` or `false`",
        }),
    }
}

fn parse_endpoint(text: &str, emulator: bool) -> Result<Endpoint, ConnectionStringError> {
    let invalid = ConnectionStringError::Invalid {
        key: ENDPOINT,
        expected: "`sb://<host>[:<port>]/` (or with `https://`), without user, path and query",
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(invalid);
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    let Some(host) = host_of(authority) else {
        return Err(invalid);
    };
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        // The emulator has no TLS. Elsewhere it cannot be meant, and keys must not travel in the open.
        "sb" if emulator && is_loopback(host) => Scheme::Http,
        "sb" | "https" => Scheme::Https,
        "http" if is_loopback(host) => Scheme::Http,
        "http" => return Err(ConnectionStringError::PlainHttp),
        _ => return Err(invalid),
    };
    Ok(Endpoint {
        scheme,
        authority: authority.to_owned(),
    })
}

/// The host in `host`, `host:port`, `[v6]` or `[v6]:port`; `None` if the text is something else.
fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = if authority.starts_with('[') {
        let (host, port) = authority.split_at(authority.find(']')? + 1);
        let address = host.strip_prefix('[')?.strip_suffix(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        (
            host,
            if port.is_empty() {
                None
            } else {
                Some(port.strip_prefix(':')?)
            },
        )
    } else {
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        };
        let is_name = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        if !is_name {
            return None;
        }
        (host, port)
    };
    if let Some(port) = port {
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port != 0);
        if !is_port {
            return None;
        }
    }
    Some(host)
}

fn is_loopback(host: &str) -> bool {
    if let Some(address) = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        return address.parse() == Ok(IpAddr::V6(Ipv6Addr::LOCALHOST));
    }
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConnectionString, ConnectionStringError> {
        text.parse()
    }

    fn origin(text: &str) -> Result<String, ConnectionStringError> {
        Ok(parse(text)?.endpoint.origin())
    }

    #[test]
    fn reads_what_the_portal_gives() {
        let parsed = parse(
            "Endpoint=sb://myns.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=a+b/c=;EntityPath=in/orders",
        )
        .unwrap();
        assert_eq!(
            parsed.endpoint.origin(),
            "https://myns.servicebus.windows.net"
        );
        assert_eq!(
            parsed.auth,
            Auth::Key {
                name: "Root".into(),
                key: Secret::new("a+b/c="),
            }
        );
        assert_eq!(parsed.entity_path.as_deref(), Some("in/orders"));
    }

    #[test]
    fn keys_ignore_case_order_blanks_and_unknown_neighbours() {
        let parsed = parse(
            " sharedaccesskey=k== ; TRANSPORTTYPE=Amqp;TransportType=Amqp;ENDPOINT=SB://Host:5671;sharedAccessKeyName=n;;\n",
        )
        .unwrap();
        assert_eq!(parsed.endpoint.origin(), "https://Host:5671");
        assert_eq!(
            parsed.auth,
            Auth::Key {
                name: "n".into(),
                key: Secret::new("k=="),
            }
        );
        assert_eq!(parsed.entity_path, None);
    }

    #[test]
    fn an_endpoint_alone_means_entra_id() {
        assert_eq!(
            parse("Endpoint=https://h.example/").unwrap().auth,
            Auth::None
        );
    }

    #[test]
    fn takes_a_ready_made_signature() {
        let token = "SharedAccessSignature sr=https%3a%2f%2fh&sig=abc%3d&se=1&skn=n";
        let parsed = parse(&format!("Endpoint=sb://h;SharedAccessSignature={token}")).unwrap();
        assert_eq!(parsed.auth, Auth::Signature(Secret::new(token)));
        for bad in ["sr=x&sig=y", "SharedAccessSignature sr=é", "Bearer x"] {
            let error = parse(&format!("Endpoint=sb://h;SharedAccessSignature={bad}")).unwrap_err();
            assert!(error.to_string().contains("`SharedAccessSignature`"));
            assert!(!error.to_string().contains(bad));
        }
    }

    #[test]
    fn the_emulator_string_means_plain_http_on_this_machine_only() {
        let emulator = "SharedAccessKeyName=RootManageSharedAccessKey;SharedAccessKey=SAS_KEY_VALUE;UseDevelopmentEmulator=true;";
        for (endpoint, expected) in [
            ("sb://localhost", "http://localhost"),
            ("sb://LOCALHOST:5300/", "http://LOCALHOST:5300"),
            ("sb://127.1.2.3:80", "http://127.1.2.3:80"),
            ("sb://[::1]:8080", "http://[::1]:8080"),
            ("https://localhost", "https://localhost"),
            ("sb://emulator", "https://emulator"),
            ("sb://10.0.0.1", "https://10.0.0.1"),
        ] {
            assert_eq!(
                origin(&format!("Endpoint={endpoint};{emulator}")).as_deref(),
                Ok(expected)
            );
        }
        assert_eq!(
            origin("Endpoint=sb://localhost;UseDevelopmentEmulator=false").as_deref(),
            Ok("https://localhost")
        );
        assert!(matches!(
            origin("Endpoint=sb://localhost;UseDevelopmentEmulator=yes"),
            Err(ConnectionStringError::Invalid { key: EMULATOR, .. })
        ));
    }

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for host in ["localhost:1", "127.0.0.1", "127.255.0.1:9231", "[::1]"] {
            let text = format!("Endpoint=http://{host}/");
            assert_eq!(origin(&text), Ok(format!("http://{host}")));
        }
        for host in [
            "h.example",
            "128.0.0.1",
            "127.0.0.1.example",
            "localhost.example",
            "[::2]",
            "[::ffff:10.0.0.1]",
        ] {
            assert_eq!(
                origin(&format!("Endpoint=http://{host}/")),
                Err(ConnectionStringError::PlainHttp)
            );
        }
    }

    #[test]
    fn refuses_what_is_no_endpoint() {
        for endpoint in [
            "host",
            "amqp://host",
            "sb://",
            "sb:///",
            "sb://host/path",
            "sb://host//",
            "sb://host?x",
            "sb://host#x",
            "sb://user:pass@host",
            "sb://localhost:80@evil.example",
            "sb://host:",
            "sb://host:0",
            "sb://host:+1",
            "sb://host:65536",
            "sb://host:1:2",
            "sb://::1",
            "sb://[::1",
            "sb://[::1]x",
            "sb://[::1]:",
            "sb://[name]",
            "sb://ho st",
            "sb://höst",
        ] {
            let error = origin(&format!("Endpoint={endpoint}")).unwrap_err();
            assert!(
                matches!(error, ConnectionStringError::Invalid { key: ENDPOINT, .. }),
                "{endpoint}: {error}"
            );
        }
    }

    #[test]
    fn errors_name_the_key_and_no_value() {
        for (text, expected) in [
            ("", "`Endpoint` is missing"),
            (
                "SharedAccessKeyName=n;SharedAccessKey=hush",
                "`Endpoint` is missing",
            ),
            ("Endpoint=", "`Endpoint` is empty"),
            ("Endpoint=sb://h;hush", "part 2 of"),
            (
                "Endpoint=sb://h;SharedAccessKeyName=n",
                "`SharedAccessKey` is missing beside `SharedAccessKeyName`",
            ),
            (
                "Endpoint=sb://h;SharedAccessKey=hush",
                "`SharedAccessKeyName` is missing beside `SharedAccessKey`",
            ),
            (
                "Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=",
                "`SharedAccessKey` is empty",
            ),
            (
                "Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=hush;SharedAccessSignature=SharedAccessSignature hush",
                "are both in",
            ),
            (
                "Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessSignature=SharedAccessSignature hush",
                "are both in",
            ),
            (
                "Endpoint=sb://h;SharedAccessKey=hush;sharedaccesskey=hush",
                "`SharedAccessKey` appears more than once",
            ),
            (
                "Endpoint=sb://h;endpoint=sb://h",
                "`Endpoint` appears more than once",
            ),
            (
                "Endpoint=sb://u:hush@h",
                "`Endpoint` in the connection string must be",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let long = format!(
            "Endpoint=sb://h;X={}",
            "x".repeat(CONNECTION_STRING_BYTES_MAX)
        );
        assert_eq!(
            parse(&long),
            Err(ConnectionStringError::TooLong(long.len()))
        );
    }

    #[test]
    fn debug_shows_no_secret() {
        for text in [
            "Endpoint=sb://h;SharedAccessKeyName=n;SharedAccessKey=hush",
            "Endpoint=sb://h;SharedAccessSignature=SharedAccessSignature sig=hush",
        ] {
            let shown = format!("{:?}", parse(text).unwrap());
            assert!(!shown.contains("hush") && shown.contains("***"), "{shown}");
        }
    }
}
