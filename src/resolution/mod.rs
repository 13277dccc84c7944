//! What is known of the sources whose addresses change: the last good addresses, their age, and why there is no newer answer.

pub(crate) mod observation;
pub(crate) mod settings;
