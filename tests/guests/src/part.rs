//! A part of another component: exports `test:parts/teller`, which tells the
//! variable `greeting` as each interface gives it, and what they say of one that
//! is not there.
#![cfg(target_family = "wasm")]

use spin_sdk::variables;

use bindings::exports::test::parts::teller::Guest;
use bindings::fermyon::spin::variables as spin2;
use bindings::wasi::config::store;

mod bindings {
    wit_bindgen::generate!({
        inline: "
            package test:parts@1.0.0;

            interface teller { tell: async func() -> list<string>; }

            world part {
                import fermyon:spin/variables@2.0.0;
                import wasi:config/store@0.2.0-draft-2024-09-27;
                export teller;
            }

            package fermyon:spin@2.0.0 {
                interface variables {
                    variant error {
                        invalid-name(string),
                        undefined(string),
                        provider(string),
                        other(string),
                    }
                    get: func(name: string) -> result<string, error>;
                }
            }

            package wasi:config@0.2.0-draft-2024-09-27 {
                interface store {
                    variant error { upstream(string), io(string) }
                    get: func(key: string) -> result<option<string>, error>;
                    get-all: func() -> result<list<tuple<string, string>>, error>;
                }
            }
        ",
        generate_all,
    });
}

struct Part;

impl Guest for Part {
    async fn tell() -> Vec<String> {
        vec![
            variables::get("greeting").await.unwrap_or_else(said),
            spin2::get("greeting").unwrap_or_else(said),
            format!("{:?}", store::get("greeting")),
            format!("{:?}", store::get_all().map(|all| all.len())),
            variables::get("nobody").await.unwrap_or_else(said),
            variables::get("No-Name").await.unwrap_or_else(said),
        ]
    }
}

fn said(error: impl std::fmt::Debug) -> String {
    format!("{error:?}")
}

mod export {
    #![expect(unsafe_code, reason = "generated glue crosses the component boundary")]
    use super::{Part, bindings};
    bindings::export!(Part with_types_in bindings);
}
