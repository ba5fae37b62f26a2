//! `du` and `prune`.

use std::time::Duration;

use clap::Args;
use driver::Connection;
use proto::control::control_client::ControlClient;
use proto::control::{DiskUsageRequest, PruneRequest, UsageRecord};
use serde_json::{Value, json};

use super::template;
use crate::format::{
    RecordWords, TabWriter, buildctl_size, go_time, list_or_null, parse_duration, timestamp,
    write_details,
};
use crate::printer;

/// Flags of `du`.
#[derive(Debug, Args)]
pub(super) struct DuArgs {
    /// Filter records
    #[arg(short, long, value_name = "string")]
    filter: Vec<String>,
    /// Verbose output
    #[arg(short, long)]
    verbose: bool,
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long, value_name = "string")]
    format: Option<String>,
}

/// Flags of `prune`.
#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Keep data newer than this limit
    #[arg(long, value_name = "duration", default_value = "0s", value_parser = parse_duration)]
    keep_duration: Duration,
    /// Keep data below this limit (in MB)
    #[arg(long, value_name = "float", default_value = "0")]
    keep_storage: f64,
    /// Always allow data above this limit (in MB)
    #[arg(long, value_name = "float", default_value = "0")]
    keep_storage_min: f64,
    /// Keep free data below this limit (in MB)
    #[arg(long, value_name = "float", default_value = "0")]
    free_storage: f64,
    /// Filter records
    #[arg(short, long, value_name = "string")]
    filter: Vec<String>,
    /// Include internal/frontend references
    #[arg(long)]
    all: bool,
    /// Verbose output
    #[arg(short, long)]
    verbose: bool,
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long, value_name = "string")]
    format: Option<String>,
}

/// Prints what the cache holds.
pub(super) async fn du(connection: &Connection, args: &DuArgs) -> Result<(), diag::Error> {
    let request = DiskUsageRequest {
        filter: args.filter.clone(),
        age_limit: 0,
    };
    let records = ControlClient::new(connection.channel.clone())
        .max_decoding_message_size(64 << 20)
        .disk_usage(request)
        .await
        .map_err(|status| connection.call_error(&status, "failed to call diskusage"))?
        .into_inner()
        .record;
    if let Some(format) = &args.format {
        let value: Value = records.iter().map(record_json).collect();
        printer::out_line(template(format)?.render(&value)?);
        return Ok(());
    }
    let mut writer = TabWriter::tabbed();
    if args.verbose {
        records
            .iter()
            .for_each(|record| write_details(&mut writer, record, &WORDS));
    } else {
        write_header(&mut writer);
        records
            .iter()
            .for_each(|record| write_row(&mut writer, record));
    }
    printer::out(writer.finish());
    if args.filter.is_empty() {
        printer::out(summary(&records));
    }
    Ok(())
}

/// Removes from the cache and prints what was removed.
pub(super) async fn prune(connection: &Connection, args: &PruneArgs) -> Result<(), diag::Error> {
    let megabytes = |value: f64| (value * 1e6) as i64;
    let request = PruneRequest {
        filter: args.filter.clone(),
        all: args.all,
        keep_duration: args.keep_duration.as_nanos() as i64,
        reserved_space: megabytes(args.keep_storage_min),
        max_used_space: megabytes(args.keep_storage),
        min_free_space: megabytes(args.free_storage),
    };
    let template = args.format.as_deref().map(template).transpose()?;
    let failed = |status: tonic::Status| connection.call_error(&status, "failed to call prune");
    let mut records = ControlClient::new(connection.channel.clone())
        .prune(request)
        .await
        .map_err(failed)?
        .into_inner();
    let (mut total, mut first) = (0, true);
    while let Some(record) = records.message().await.map_err(failed)? {
        total += record.size;
        if let Some(template) = &template {
            printer::out_line(template.render(&record_json(&record))?);
            continue;
        }
        let mut writer = TabWriter::tabbed();
        if args.verbose {
            write_details(&mut writer, &record, &WORDS);
        } else {
            if std::mem::take(&mut first) {
                write_header(&mut writer);
            }
            write_row(&mut writer, &record);
        }
        printer::out(writer.finish());
    }
    if template.is_none() {
        let mut writer = TabWriter::tabbed();
        writer.line(format!("Total:\t{}", buildctl_size(total)));
        printer::out(writer.finish());
    }
    Ok(())
}

fn time_text(time: Option<(i64, i32)>) -> String {
    time.map(|(seconds, nanos)| go_time(timestamp(seconds, nanos)))
        .unwrap_or_default()
}

fn created(record: &UsageRecord) -> Option<(i64, i32)> {
    record
        .created_at
        .as_ref()
        .map(|time| (time.seconds, time.nanos))
}

fn last_used(record: &UsageRecord) -> Option<(i64, i32)> {
    record
        .last_used_at
        .as_ref()
        .map(|time| (time.seconds, time.nanos))
}

fn record_json(record: &UsageRecord) -> Value {
    let time = |time: Option<(i64, i32)>| {
        time.map(|(seconds, nanos)| timestamp(seconds, nanos).to_string())
    };
    json!({
        "id": record.id,
        "mutable": record.mutable,
        "inUse": record.in_use,
        "size": record.size,
        "createdAt": time(created(record)),
        "lastUsedAt": time(last_used(record)),
        "usageCount": record.usage_count,
        "parents": list_or_null(&record.parents),
        "description": record.description,
        "recordType": record.record_type,
        "shared": record.shared,
    })
}

fn write_header(writer: &mut TabWriter) {
    writer.line("ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED");
}

fn write_row(writer: &mut TabWriter, record: &UsageRecord) {
    let star = |shown: bool| if shown { "*" } else { "" };
    let id = format!("{}{}", record.id, star(record.mutable));
    let size = format!("{}{}", buildctl_size(record.size), star(record.shared));
    writer.line(format!("{id:<71}\t{:<11}\t{size}\t", !record.in_use));
}

/// How `buildctl` words the details of a record.
const WORDS: RecordWords = RecordWords {
    parents: "Parents",
    between_parents: ";",
    size: buildctl_size,
    last_used: |record| time_text(last_used(record)),
};

fn summary(records: &[UsageRecord]) -> String {
    let size = |keep: fn(&&UsageRecord) -> bool| -> i64 {
        records.iter().filter(keep).map(|record| record.size).sum()
    };
    let total = size(|record| record.size > 0);
    let reclaimable = size(|record| record.size > 0 && !record.in_use);
    let shared = size(|record| record.shared);
    let mut writer = TabWriter::tabbed();
    if shared > 0 {
        writer.line(format!("Shared:\t{}", buildctl_size(shared)));
        writer.line(format!("Private:\t{}", buildctl_size(total - shared)));
    }
    writer.line(format!("Reclaimable:\t{}", buildctl_size(reclaimable)));
    writer.line(format!("Total:\t{}", buildctl_size(total)));
    writer.finish()
}
