//! The connection string of an Application Insights resource:
//! <https://learn.microsoft.com/azure/azure-monitor/app/connection-strings>.

use std::net::IpAddr;
use std::str::FromStr;

use url::{Host, Url};

/// Longest connection string, in bytes, as documented.
pub const CONNECTION_STRING_BYTES_MAX: usize = 4_096;
/// Where telemetry of a resource without an endpoint of its own goes.
const GLOBAL_ENDPOINT: &str = "https://dc.services.visualstudio.com";

/// Where to send telemetry, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// Names the resource; not a secret.
    pub instrumentation_key: String,
    /// Where items are posted to, without a path.
    pub endpoint: Url,
}

/// Why a text is not a connection string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionStringError {
    /// Longer than [`CONNECTION_STRING_BYTES_MAX`].
    #[error("it has {0} bytes, more than the {CONNECTION_STRING_BYTES_MAX} that one may have")]
    TooLong(usize),
    /// A part without `=`.
    #[error("part {0} is not `key=value`; copy the whole string from the portal")]
    NotAPair(usize),
    /// No key.
    #[error("it has no `InstrumentationKey`; copy the whole string from the portal")]
    NoKey,
    /// The key is not one.
    #[error("`InstrumentationKey` is not a UUID; copy it from the portal")]
    BadKey,
    /// An endpoint that is no address, or sends in the clear to another machine.
    #[error("`{0}` is not an https:// address (http:// is for this machine only)")]
    BadEndpoint(&'static str),
    /// Another way to be authorized than by key.
    #[error("`Authorization` is `{0}`; only `ikey` is known")]
    Authorization(String),
}

impl FromStr for ConnectionString {
    type Err = ConnectionStringError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ConnectionStringError as E;
        if text.len() > CONNECTION_STRING_BYTES_MAX {
            return Err(E::TooLong(text.len()));
        }
        let (mut key, mut endpoint, mut suffix, mut location) = (None, None, None, None);
        for (number, part) in text.split(';').enumerate() {
            if part.trim().is_empty() {
                continue;
            }
            let (name, value) = part.split_once('=').ok_or(E::NotAPair(number + 1))?;
            let value = value.trim();
            match name.trim().to_ascii_lowercase().as_str() {
                "instrumentationkey" => key = Some(value.to_ascii_lowercase()),
                "ingestionendpoint" => endpoint = Some(value.to_owned()),
                "endpointsuffix" => suffix = Some(value.to_owned()),
                "location" => location = Some(value.to_owned()),
                "authorization" if !value.eq_ignore_ascii_case("ikey") => {
                    return Err(E::Authorization(value.to_owned()));
                }
                // Of other products, or of a later version.
                _ => {}
            }
        }
        let instrumentation_key = key.ok_or(E::NoKey)?;
        if !is_uuid(&instrumentation_key) {
            return Err(E::BadKey);
        }
        let endpoint = match (endpoint, suffix) {
            (Some(endpoint), _) => address(&endpoint, "IngestionEndpoint")?,
            (None, Some(suffix)) => {
                let location = location.map_or(String::new(), |location| format!("{location}."));
                address(&format!("https://{location}dc.{suffix}"), "EndpointSuffix")?
            }
            (None, None) => address(GLOBAL_ENDPOINT, "IngestionEndpoint")?,
        };
        Ok(Self {
            instrumentation_key,
            endpoint,
        })
    }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    groups == [8, 4, 4, 4, 12]
        && text
            .bytes()
            .all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn address(text: &str, key: &'static str) -> Result<Url, ConnectionStringError> {
    let bad = || ConnectionStringError::BadEndpoint(key);
    let mut url = Url::parse(text).map_err(|_| bad())?;
    let is_here = match url.host().ok_or_else(bad)? {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(ip) => IpAddr::V4(ip).is_loopback(),
        Host::Ipv6(ip) => IpAddr::V6(ip).is_loopback(),
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && is_here) {
        return Err(bad());
    }
    url.set_path("");
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "InstrumentationKey=00000000-1111-2222-3333-444444444444";

    fn endpoint(text: &str) -> Result<String, ConnectionStringError> {
        Ok(text.parse::<ConnectionString>()?.endpoint.to_string())
    }

    #[test]
    fn what_the_portal_gives_is_taken() {
        let portal = format!(
            "{KEY};IngestionEndpoint=https://westeurope-5.in.applicationinsights.azure.com/;LiveEndpoint=https://x/;ApplicationId=1;"
        );
        assert_eq!(
            endpoint(&portal).as_deref(),
            Ok("https://westeurope-5.in.applicationinsights.azure.com/")
        );
        assert_eq!(
            endpoint(KEY).as_deref(),
            Ok("https://dc.services.visualstudio.com/")
        );
        let suffix = format!("{KEY};EndpointSuffix=ai.contoso.com;Location=westus2");
        assert_eq!(
            endpoint(&suffix).as_deref(),
            Ok("https://westus2.dc.ai.contoso.com/")
        );
        let here = format!(" {KEY} ; ingestionendpoint = http://127.0.0.1:8080/x ");
        assert_eq!(endpoint(&here).as_deref(), Ok("http://127.0.0.1:8080/"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        use ConnectionStringError as E;
        let with = |rest: &str| endpoint(&format!("{KEY};{rest}"));
        assert_eq!(endpoint(""), Err(E::NoKey));
        assert_eq!(endpoint("InstrumentationKey=x"), Err(E::BadKey));
        assert_eq!(with("x"), Err(E::NotAPair(2)));
        for bad in ["http://example.com", "ftp://127.0.0.1", "nonsense"] {
            let error = Err(E::BadEndpoint("IngestionEndpoint"));
            assert_eq!(with(&format!("IngestionEndpoint={bad}")), error, "{bad}");
        }
        assert_eq!(
            with("Authorization=aad"),
            Err(E::Authorization("aad".to_owned()))
        );
        assert!(matches!(
            endpoint(&"x".repeat(5_000)),
            Err(E::TooLong(5_000))
        ));
    }
}
