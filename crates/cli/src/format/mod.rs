//! How values are written for people and scripts, in the forms Go programs use.

use serde_json::Value;

mod duration;
mod size;
mod table;
mod template;
mod time;
mod usage;

pub(crate) use driver::parse_duration;
pub(crate) use duration::{go_duration, human_duration};
pub(crate) use size::{binary_size, buildctl_size, decimal_size};
pub(crate) use table::TabWriter;
pub(crate) use template::{Template, template_body};
pub(crate) use time::{go_time, timestamp};
pub(crate) use usage::{RecordWords, write_details};

/// A list as Go programs write it in JSON: an empty one is `null`.
pub(crate) fn list_or_null<T: Clone + Into<Value>>(items: &[T]) -> Value {
    match items.is_empty() {
        true => Value::Null,
        false => items.to_vec().into(),
    }
}
