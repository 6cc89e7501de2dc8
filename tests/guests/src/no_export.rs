//! A component that is no worker: it exports something else.
#![cfg(target_family = "wasm")]

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package test:other;
            interface thing { answer: func() -> u32; }
            world other { export thing; }
        ",
    });
}

use bindings::exports::test::other::thing::Guest;

struct NoExport;

impl Guest for NoExport {
    fn answer() -> u32 {
        42
    }
}

mod export {
    #![expect(unsafe_code, reason = "generated glue crosses the component boundary")]
    use super::{NoExport, bindings};
    bindings::export!(NoExport with_types_in bindings);
}
