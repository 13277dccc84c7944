//! What is known of the sources whose addresses change: the last good addresses, their age, and why there is no newer answer.

#[allow(dead_code, unreachable_pub, reason = "the agent process uses it")]
pub(crate) mod observation;
#[allow(dead_code, unreachable_pub, reason = "the agent process uses it")]
pub(crate) mod settings;
