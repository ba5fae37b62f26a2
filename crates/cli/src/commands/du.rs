//! `du`.

use std::collections::BTreeMap;
use std::time::Duration;

use builder::{Builder, LoadOptions};
use clap::Args;
use driver::Connection;
use futures::future::try_join_all;
use jiff::Timestamp;
use proto::control::control_client::ControlClient;
use proto::control::{DiskUsageRequest, UsageRecord};
use serde_json::{Map, Value, json};

use super::prune_filter::{RecordFilter, filter};
use super::{tell_stand_in, timeout};
use crate::app::App;
use crate::display::LazyDisplay;
use crate::format::{
    TabWriter, Template, decimal_size, go_time, human_duration, list_or_null, template_body,
    timestamp,
};
use crate::printer;

const DEFAULT_TABLE: &str = "table {{.ID}}\t{{.Reclaimable}}\t{{.Size}}\t{{.LastUsedAt}}";
const PRETTY: &str = "ID:           {{.ID}}
{{- if .Parents }}
Parents:
{{- range .Parents }}
 - {{.}}
{{- end }}
{{- end }}
Created at:   {{.CreatedAt}}
Mutable:      {{.Mutable}}
Reclaimable:  {{.Reclaimable}}
Shared:       {{.Shared}}
Size:         {{.Size}}
{{- if .Description}}
Description:  {{ .Description }}
{{- end }}
Usage count:  {{.UsageCount}}
{{- if .LastUsedAt}}
Last used:    {{ .LastUsedAt }}
{{- end }}
{{- if .Type}}
Type:         {{ .Type }}
{{- end }}
";

/// Flags of `du`.
#[derive(Debug, Args)]
#[command(override_usage = "du")]
pub(crate) struct DuArgs {
    /// Provide filter values
    #[arg(long, value_name = "filter", value_parser = filter)]
    filter: Vec<String>,
    /// Shorthand for "--format=pretty"
    #[arg(long)]
    verbose: bool,
    /// Format the output
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Override the default timeout for loading builder status
    #[arg(long, value_name = "duration", default_value = "20s", value_parser = timeout)]
    timeout: Duration,
    #[arg(hide = true)]
    pub(crate) arguments: Vec<String>,
}

/// Prints what a builder's caches hold; a builder that does not run is booted.
pub(crate) async fn run(app: &App, args: &DuArgs) -> Result<(), diag::Error> {
    let given = args.format.as_deref().filter(|format| !format.is_empty());
    let format = match given {
        Some(_) if args.verbose => {
            return Err(diag::Error::invalid(
                "--format and --verbose cannot be used together",
            ));
        }
        None if args.verbose => PRETTY,
        None | Some("table") => DEFAULT_TABLE,
        Some("pretty") => PRETTY,
        Some(format) => format,
    };
    let filter = RecordFilter::parse(&args.filter)?;
    let is_table = format.starts_with("table");
    let body = if format == "json" {
        "{{json .}}"
    } else {
        format
    };
    let template = Template::parse(&template_body(body))?;
    let mut builder = app.load_builder()?;
    let connections = connect_all(&mut builder, args.timeout).await?;
    let asked = connections.iter().map(|connection| async {
        let request = DiskUsageRequest {
            filter: filter.filters.clone(),
            age_limit: 0,
        };
        let answer = ControlClient::new(connection.channel.clone())
            .max_decoding_message_size(64 << 20)
            .disk_usage(request)
            .await
            .map_err(|status| connection.call_error(&status, "failed to get disk usage"))?;
        Ok::<_, diag::Error>(answer.into_inner().record)
    });
    let records: Vec<UsageRecord> = try_join_all(asked).await?.into_iter().flatten().collect();
    let mut rows = String::new();
    for record in &records {
        rows.push_str(&template.render(&record_value(record, is_table))?);
        rows.push('\n');
    }
    if is_table {
        let mut writer = TabWriter::table();
        writer.line(template.render_header(&headers())?);
        writer.write(&rows);
        rows = writer.finish();
    }
    printer::out(rows);
    if (format == DEFAULT_TABLE || format == PRETTY) && args.filter.is_empty() {
        printer::out(summary(&records));
    }
    Ok(())
}

/// Boots what does not run and connects to all nodes.
pub(super) async fn connect_all(
    builder: &mut Builder,
    timeout: Duration,
) -> Result<Vec<Connection>, diag::Error> {
    let options = LoadOptions {
        status: false,
        timeout: (!timeout.is_zero()).then_some(timeout),
    };
    builder.load_nodes(options).await?;
    tell_stand_in(builder);
    if let Some(error) = builder.nodes().iter().find_map(|node| node.error.clone()) {
        return Err(error);
    }
    let display = LazyDisplay::default();
    let progress = display.progress();
    let connections = try_join_all(builder.nodes().iter().map(|node| node.boot(&progress))).await;
    drop(progress);
    display.finish();
    connections
}

fn headers() -> Value {
    json!({
        "ID": "ID",
        "Parents": "PARENTS",
        "CreatedAt": "CREATED AT",
        "Mutable": "MUTABLE",
        "Reclaimable": "RECLAIMABLE",
        "Shared": "SHARED",
        "Size": "SIZE",
        "Description": "DESCRIPTION",
        "UsageCount": "USAGE COUNT",
        "LastUsedAt": "LAST ACCESSED",
        "Type": "TYPE",
    })
}

/// A record as templates see it, keys in order of the alphabet.
fn record_value(record: &UsageRecord, is_table: bool) -> Value {
    let star = |shown: bool| if shown && is_table { "*" } else { "" };
    let size = decimal_size(record.size);
    let created = record
        .created_at
        .as_ref()
        .map(|time| go_time(timestamp(time.seconds, time.nanos)));
    let fields: BTreeMap<&str, Value> = BTreeMap::from([
        ("CreatedAt", created.unwrap_or_default().into()),
        ("Description", record.description.clone().into()),
        (
            "ID",
            format!("{}{}", record.id, star(record.mutable)).into(),
        ),
        ("LastUsedAt", last_used(record).into()),
        ("Mutable", record.mutable.into()),
        ("Parents", list_or_null(&record.parents)),
        ("Reclaimable", (!record.in_use).into()),
        ("Shared", record.shared.into()),
        ("Size", format!("{size}{}", star(record.shared)).into()),
        ("Type", record.record_type.clone().into()),
        ("UsageCount", record.usage_count.into()),
    ]);
    let map: Map<String, Value> = fields
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect();
    Value::Object(map)
}

/// How long ago a record was used; empty when it never was.
pub(super) fn last_used(record: &UsageRecord) -> String {
    let Some(time) = &record.last_used_at else {
        return String::new();
    };
    let elapsed = Timestamp::now().duration_since(timestamp(time.seconds, time.nanos));
    let elapsed = Duration::try_from(elapsed).unwrap_or_default();
    format!("{} ago", human_duration(elapsed))
}

fn summary(records: &[UsageRecord]) -> String {
    let (mut total, mut reclaimable, mut shared) = (0, 0, 0);
    for record in records {
        if record.size > 0 {
            total += record.size;
            if !record.in_use {
                reclaimable += record.size;
            }
        }
        if record.shared {
            shared += record.size;
        }
    }
    let mut writer = TabWriter::tabbed();
    if shared > 0 {
        writer.line(format!("Shared:\t{}", decimal_size(shared)));
        writer.line(format!("Private:\t{}", decimal_size(total - shared)));
    }
    writer.line(format!("Reclaimable:\t{}", decimal_size(reclaimable)));
    writer.line(format!("Total:\t{}", decimal_size(total)));
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_shown_with_its_parents_and_without_what_it_lacks() {
        let record = UsageRecord {
            id: "x".into(),
            parents: vec!["p".into()],
            size: 1500,
            record_type: "regular".into(),
            ..UsageRecord::default()
        };
        let template = Template::parse(&template_body(PRETTY)).unwrap();
        assert_eq!(
            template.render(&record_value(&record, false)).unwrap(),
            "ID:           x\nParents:\n - p\nCreated at:   \nMutable:      false\n\
             Reclaimable:  true\nShared:       false\nSize:         1.5kB\nUsage count:  0\n\
             Type:         regular\n"
        );
    }
}
