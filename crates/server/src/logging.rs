//! What the server says in its log, on stderr: lines for people, or JSON objects with the keys that
//! stock's have.

use std::fmt;
use std::io::IsTerminal;

use diag::{Error, Result};
use jiff::Timestamp;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{Config, LogConfig};

/// Starts logging as the configuration says.
///
/// # Errors
/// It names a level or a format that there is not.
pub fn start(config: &Config) -> Result<()> {
    let LogConfig { format, level } = &config.log;
    let level = match level.to_lowercase().as_str() {
        "" if config.trace => "trace",
        "" if config.debug => "debug",
        "" => "info",
        "fatal" | "panic" | "error" => "error",
        "warn" | "warning" => "warn",
        "info" => "info",
        "debug" => "debug",
        "trace" => "trace",
        _ => return Err(Error::invalid(format!("unsupported log level: {level:?}"))),
    };
    let filter = EnvFilter::try_new(level).map_err(|error| Error::invalid(error.to_string()))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr);
    let started = match format.as_str() {
        "json" => builder.event_format(Json).try_init(),
        "text" | "" => {
            let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
            let colors = std::io::stderr().is_terminal() && !plain;
            builder.with_ansi(colors).try_init()
        }
        other => return Err(Error::invalid(format!("unsupported log type {other:?}"))),
    };
    started.map_err(|error| Error::internal(format!("logging: {error}")))
}

/// One object a line: `level`, `msg`, `time`, and the fields of the event.
struct Json;

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let Fields(mut object) = fields;
        let mut put = |key: &str, value: &str| object.insert(key.to_owned(), value.into());
        put("level", level_name(*event.metadata().level()));
        let now = Timestamp::from_second(Timestamp::now().as_second());
        put("time", &now.unwrap_or_default().to_string());
        writeln!(writer, "{}", Value::Object(object))
    }
}

/// A level as stock calls it.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// What an event says, by name; its message is `msg`.
struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, field: &Field, value: impl Into<Value>) {
        let name = match field.name() {
            "message" => "msg",
            name => name,
        };
        self.0.insert(name.to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, value.to_string());
    }
}
