//! Azure Service Bus over REST, both sides of the wire.

pub mod atom;
pub mod broker_properties;
pub mod client;
pub mod connection_string;
pub mod properties;
pub mod sas;
pub mod secret;
pub mod server;
pub mod wire;

/// A builder of HTTP clients that can speak TLS: with the one implementation of
/// cryptography of this program, which its HTTP library is built without.
pub fn http_client() -> reqwest::ClientBuilder {
    // Another part of the process may have chosen one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // What is sent here goes to where the user said: no proxy of the environment.
    reqwest::Client::builder().no_proxy()
}
