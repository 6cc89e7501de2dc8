//! A part of another component, as `part`, that sends a job when it is asked.
#![cfg(target_family = "wasm")]

use bindings::exports::test::parts::teller::Guest;
use bindings::orchestrator::pipeline::queue;
use bindings::orchestrator::pipeline::types::Message;

mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        inline: "
            package test:parts@1.0.0;
            interface teller { tell: async func() -> list<string>; }
            world part-sends {
                import orchestrator:pipeline/queue@0.1.0;
                export teller;
            }
        ",
        generate_all,
    });
}

struct PartSends;

impl Guest for PartSends {
    async fn tell() -> Vec<String> {
        let message = Message {
            id: "uninvited".to_owned(),
            job_type: "t".to_owned(),
            payload: Vec::new(),
            content_type: String::new(),
            properties: Vec::new(),
            delay_ms: None,
            queue: None,
            traceparent: None,
        };
        vec![format!("{:?}", queue::send(message).await)]
    }
}

mod export {
    #![expect(unsafe_code, reason = "generated glue crosses the component boundary")]
    use super::{PartSends, bindings};
    bindings::export!(PartSends with_types_in bindings);
}
