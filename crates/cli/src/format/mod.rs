//! How values are written for people and scripts, in the forms Go programs use.

mod duration;
mod size;
mod table;
mod template;
mod time;

pub(crate) use driver::parse_duration;
pub(crate) use duration::{go_duration, human_duration};
pub(crate) use size::{binary_size, buildctl_size, decimal_size};
pub(crate) use table::TabWriter;
pub(crate) use template::Template;
pub(crate) use time::{go_time, timestamp};
