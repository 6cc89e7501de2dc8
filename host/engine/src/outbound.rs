//! Which hosts a guest may call: the manifest's `allowed_outbound_hosts`.
//!
//! An entry is `scheme://host[:port]`, as in Spin: the scheme may be `*`
//! (`http` or `https`), the host may be `*` or begin with `*.`, the port may
//! be `*` and is otherwise the scheme's own. Without entries nothing is allowed.

use std::sync::Arc;

use http::{HeaderValue, Uri};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

/// A checked list of allowed hosts. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Arc<[Pattern]>);

#[derive(Clone, Debug, PartialEq)]
struct Pattern {
    scheme: Option<String>,
    host: HostPattern,
    port: PortPattern,
}

#[derive(Clone, Debug, PartialEq)]
enum HostPattern {
    Any,
    Subdomains(String),
    Exactly(String),
}

#[derive(Clone, Debug, PartialEq)]
enum PortPattern {
    Any,
    OfScheme,
    Exactly(u16),
}

/// An entry of `allowed_outbound_hosts` that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{entry}` is not an allowed host: {why}; write it as `https://host`, `http://host:port` or `https://*.host`"
)]
pub struct AllowedHostError {
    entry: String,
    why: &'static str,
}

impl AllowedHosts {
    /// Reads the entries of a manifest.
    pub fn parse<S: AsRef<str>>(entries: &[S]) -> std::result::Result<Self, AllowedHostError> {
        entries
            .iter()
            .map(|entry| Pattern::parse(entry.as_ref()))
            .collect::<std::result::Result<_, _>>()
            .map(Self)
    }

    /// True if a guest may call nobody.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if a guest may call this address.
    pub fn allows(&self, uri: &Uri) -> bool {
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return false;
        };
        let own_port = if scheme == "https" { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(own_port);
        self.0
            .iter()
            .any(|pattern| pattern.allows(scheme, host, port, own_port))
    }
}

impl Pattern {
    fn parse(entry: &str) -> std::result::Result<Self, AllowedHostError> {
        let refuse = |why| AllowedHostError {
            entry: entry.to_owned(),
            why,
        };
        let (scheme, rest) = entry
            .split_once("://")
            .ok_or_else(|| refuse("it has no `scheme://`"))?;
        let scheme = match scheme {
            "*" => None,
            "http" | "https" => Some(scheme.to_owned()),
            _ => return Err(refuse("only `http`, `https` and `*` are schemes here")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('/') {
            return Err(refuse("it has a path, and paths cannot be told apart"));
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, "*")) => (host, PortPattern::Any),
            Some((host, port)) if !port.ends_with(']') => (
                host,
                PortPattern::Exactly(
                    port.parse()
                        .map_err(|_| refuse("its port is not a number"))?,
                ),
            ),
            _ => (rest, PortPattern::OfScheme),
        };
        let host = match host {
            "" => return Err(refuse("it has no host")),
            "*" => HostPattern::Any,
            host => match host.strip_prefix("*.") {
                Some(domain) => {
                    HostPattern::Subdomains(format!(".{}", domain.to_ascii_lowercase()))
                }
                None if host.contains('*') => {
                    return Err(refuse("a `*` can only be the first label"));
                }
                None => HostPattern::Exactly(host.to_ascii_lowercase()),
            },
        };
        Ok(Self { scheme, host, port })
    }

    fn allows(&self, scheme: &str, host: &str, port: u16, own_port: u16) -> bool {
        let host = host.to_ascii_lowercase();
        self.scheme
            .as_deref()
            .is_none_or(|allowed| allowed == scheme)
            && match &self.host {
                HostPattern::Any => true,
                HostPattern::Subdomains(suffix) => host.ends_with(suffix),
                HostPattern::Exactly(allowed) => host == *allowed,
            }
            && match self.port {
                PortPattern::Any => true,
                PortPattern::OfScheme => port == own_port,
                PortPattern::Exactly(allowed) => port == allowed,
            }
    }
}

/// Lets a request through only to an allowed host, under the trace of the job
/// that it is made for.
pub(crate) struct OutboundHooks {
    pub allowed: AllowedHosts,
    pub traceparent: Option<HeaderValue>,
}

/// W3C trace context.
const TRACEPARENT: &str = "traceparent";

type IoResult = Box<dyn Future<Output = std::result::Result<(), Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, IoResult)>;

impl WasiHttpHooks for OutboundHooks {
    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: IoResult,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let allowed = self.allowed.allows(request.uri());
        if let Some(traceparent) = &self.traceparent {
            // A guest that traces by itself knows better.
            let headers = request.headers_mut();
            headers
                .entry(TRACEPARENT)
                .or_insert_with(|| traceparent.clone());
        }
        Box::new(async move {
            if !allowed {
                return Err(Error::HttpRequestDenied);
            }
            let (response, io) = wasmtime_wasi_http::default_send_request(request, options).await?;
            Ok((
                response.map(http_body_util::BodyExt::boxed_unsync),
                Box::new(io) as IoResult,
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(entry: &str, uri: &str) -> bool {
        AllowedHosts::parse(&[entry])
            .expect(entry)
            .allows(&uri.parse().expect("a URI"))
    }

    #[test]
    fn an_entry_allows_what_it_says_and_no_more() {
        for (entry, uri, allowed) in [
            (
                "https://api.example.com",
                "https://api.example.com/v1",
                true,
            ),
            ("https://api.example.com", "http://api.example.com/", false),
            (
                "https://api.example.com",
                "https://api.example.com:8443/",
                false,
            ),
            ("https://api.example.com", "https://API.example.com/", true),
            ("http://localhost:8080", "http://localhost:8080/", true),
            ("http://localhost:8080", "http://localhost/", false),
            ("http://localhost:*", "http://localhost:1234/", true),
            ("https://*.example.com", "https://a.b.example.com/", true),
            ("https://*.example.com", "https://example.com/", false),
            ("https://*.example.com", "https://evilexample.com/", false),
            ("*://*:*", "http://10.0.0.1:9/", true),
        ] {
            assert_eq!(allows(entry, uri), allowed, "{entry} {uri}");
        }
    }

    #[test]
    fn nothing_is_allowed_without_entries() {
        assert!(!AllowedHosts::default().allows(&"http://localhost/".parse().expect("a URI")));
    }

    #[test]
    fn a_bad_entry_is_refused_with_a_reason() {
        for entry in [
            "example.com",
            "ftp://example.com",
            "http://",
            "http://a.*.b",
            "http://a:x",
            "http://a/b",
        ] {
            let error = AllowedHosts::parse(&[entry]).expect_err(entry).to_string();
            assert!(
                error.contains(entry) && error.contains("write it as"),
                "{error}"
            );
        }
    }
}
