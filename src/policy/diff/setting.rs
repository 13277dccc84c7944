//! One setting of a policy.

use crate::policy::diff::value::{Exposure, Value};

/// A key and its effective value.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Relative to `[[listener]]`, or to the root for process settings.
    pub(crate) key: &'static str,
    pub(crate) value: Value,
    pub(crate) exposure: Exposure,
}

/// A setting without effect on protection.
pub(crate) fn plain(key: &'static str, value: impl ToString) -> Setting {
    Setting { key, value: Value::One(value.to_string()), exposure: Exposure::None }
}

/// A setting without effect on protection that may be unset.
pub(crate) fn optional(key: &'static str, value: Option<impl ToString>) -> Setting {
    let value = value.map_or(Value::Unset, |value| Value::One(value.to_string()));
    Setting { key, value, exposure: Exposure::None }
}

/// A setting with an effect on protection. A higher degree admits more.
pub(crate) fn graded(key: &'static str, value: impl ToString, degree: u64) -> Setting {
    plain(key, value).exposing(Exposure::degree(degree))
}

pub(crate) fn list(key: &'static str, values: Vec<String>) -> Setting {
    Setting { key, value: Value::Many(values), exposure: Exposure::None }
}

impl Setting {
    /// Returns the same setting with this exposure.
    pub(crate) fn exposing(self, exposure: Exposure) -> Self {
        Self { exposure, ..self }
    }
}
