//! Azure Service Bus over REST, both sides of the wire.
//!
//! What a message and a request look like is built for WebAssembly too, for
//! components that send by themselves; the client, the listener and all that
//! opens a socket are not.

#[cfg(not(target_family = "wasm"))]
pub mod atom;
pub mod broker_properties;
#[cfg(not(target_family = "wasm"))]
pub mod client;
pub mod connection_string;
pub mod properties;
pub mod refusal;
pub mod sas;
pub mod secret;
pub mod sending;
#[cfg(not(target_family = "wasm"))]
pub mod server;
pub mod wire;

/// A builder of HTTP clients that can speak TLS: with the one implementation of
/// cryptography of this program, which its HTTP library is built without.
#[cfg(not(target_family = "wasm"))]
pub fn http_client() -> reqwest::ClientBuilder {
    // Another part of the process may have chosen one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // What is sent here goes to where the user said: no proxy of the environment.
    reqwest::Client::builder().no_proxy()
}
