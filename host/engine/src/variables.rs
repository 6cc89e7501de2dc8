//! A component's variables, under each name that guests know them by: WASI's
//! own interface in both of its drafts, and those of Spin's SDKs.

use std::collections::BTreeMap;

use wasmtime::component::{Accessor, HasSelf, Linker};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};

use crate::bindings::variables::fermyon::spin::variables as spin2;
use crate::bindings::variables::spin::variables::variables as spin3;
use crate::bindings::variables::wasi::config::store as draft;
use crate::state::GuestState;

/// What the manifest gives a component to read.
#[derive(Default)]
pub struct Variables {
    values: BTreeMap<String, String>,
    standard: WasiConfigVariables,
}

impl FromIterator<(String, String)> for Variables {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let values: BTreeMap<_, _> = variables.into_iter().collect();
        Self {
            standard: values.clone().into_iter().collect(),
            values,
        }
    }
}

impl Variables {
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn get(&self, name: &str) -> Result<String, Missing> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        let is_name = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if is_name {
            Err(Missing::Undefined(format!(
                "no variable `{name}`: the manifest gives this component none of that name"
            )))
        } else {
            Err(Missing::Invalid(format!(
                "`{name}` is no name of a variable: these have lower-case letters, digits and `_`"
            )))
        }
    }
}

enum Missing {
    Undefined(String),
    Invalid(String),
}

pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    wasmtime_wasi_config::add_to_linker(linker, |state: &mut GuestState| {
        WasiConfig::from(&state.variables().standard)
    })?;
    draft::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    spin2::add_to_linker::<_, HasSelf<_>>(linker, |state| state)?;
    spin3::add_to_linker::<_, HasSelf<_>>(linker, |state| state)
}

impl draft::Host for GuestState {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, draft::Error>> {
        Ok(Ok(self.variables().values.get(&key).cloned()))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, draft::Error>> {
        Ok(Ok(self.variables().values.clone().into_iter().collect()))
    }
}

impl spin2::Host for GuestState {
    fn get(&mut self, name: String) -> wasmtime::Result<Result<String, spin2::Error>> {
        Ok(self
            .variables()
            .get(&name)
            .map_err(|missing| match missing {
                Missing::Undefined(why) => spin2::Error::Undefined(why),
                Missing::Invalid(why) => spin2::Error::InvalidName(why),
            }))
    }
}

impl spin3::Host for GuestState {}

impl spin3::HostWithStore<GuestState> for HasSelf<GuestState> {
    async fn get(
        accessor: &Accessor<GuestState, Self>,
        name: String,
    ) -> wasmtime::Result<Result<String, spin3::Error>> {
        let got = accessor.with(|mut access| access.get().variables().get(&name));
        Ok(got.map_err(|missing| match missing {
            Missing::Undefined(why) => spin3::Error::Undefined(why),
            Missing::Invalid(why) => spin3::Error::InvalidName(why),
        }))
    }
}
