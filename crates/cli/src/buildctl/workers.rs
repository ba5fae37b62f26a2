//! `debug workers` and `debug info`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use driver::Connection;
use oci::Platform;
use proto::control::control_client::ControlClient;
use proto::control::{InfoRequest, ListWorkersRequest};
use proto::worker::{BuildkitVersion, CdiDevice, GcPolicy, WorkerRecord};
use serde_json::{Value, json};

use super::template;
use crate::format::{TabWriter, buildctl_size, go_duration};
use crate::printer;

/// Flags of `debug workers`.
#[derive(Debug, Args)]
pub(super) struct WorkersArgs {
    /// containerd-style filter string slice
    #[arg(short, long, value_name = "string")]
    filter: Vec<String>,
    /// Verbose output
    #[arg(short, long)]
    verbose: bool,
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long, value_name = "string")]
    format: Option<String>,
}

/// Flags of `debug info`.
#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long, value_name = "string")]
    format: Option<String>,
}

/// Lists workers.
pub(super) async fn workers(
    connection: &Connection,
    args: &WorkersArgs,
) -> Result<(), diag::Error> {
    let request = ListWorkersRequest {
        filter: args.filter.clone(),
    };
    let workers = ControlClient::new(connection.channel.clone())
        .list_workers(request)
        .await
        .map_err(|status| connection.call_error(&status, "failed to list workers"))?
        .into_inner()
        .record;
    if let Some(format) = &args.format {
        let value: Value = workers.iter().map(worker_json).collect();
        printer::out_line(template(format)?.render(&value)?);
        return Ok(());
    }
    let mut writer = TabWriter::tabbed();
    if args.verbose {
        for worker in &workers {
            write_worker(&mut writer, worker);
        }
    } else {
        writer.line("ID\tPLATFORMS");
        for worker in &workers {
            writer.line(format!("{}\t{}", worker.id, platforms(worker).join(",")));
        }
    }
    printer::out(writer.finish());
    Ok(())
}

/// Prints the server's version.
pub(super) async fn info(connection: &Connection, args: &InfoArgs) -> Result<(), diag::Error> {
    let version = ControlClient::new(connection.channel.clone())
        .info(InfoRequest {})
        .await
        .map_err(|status| connection.call_error(&status, "failed to call info"))?
        .into_inner()
        .buildkit_version
        .unwrap_or_default();
    if let Some(format) = &args.format {
        let value = json!({ "buildkitVersion": version_json(&version) });
        printer::out_line(template(format)?.render(&value)?);
        return Ok(());
    }
    let mut writer = TabWriter::spaced();
    writer.line(format!("BuildKit:\t{}", version_text(&version)));
    printer::out(writer.finish());
    Ok(())
}

fn version_text(version: &BuildkitVersion) -> String {
    format!(
        "{} {} {}",
        version.package, version.version, version.revision
    )
}

fn version_json(version: &BuildkitVersion) -> Value {
    json!({
        "package": version.package,
        "version": version.version,
        "revision": version.revision,
    })
}

fn platforms(worker: &WorkerRecord) -> Vec<String> {
    worker
        .platforms
        .iter()
        .map(|platform| {
            Platform::new(&platform.os, &platform.architecture, &platform.variant).to_string()
        })
        .collect()
}

fn worker_json(worker: &WorkerRecord) -> Value {
    let labels: BTreeMap<&String, &String> = worker.labels.iter().collect();
    let platforms: Vec<Value> = worker
        .platforms
        .iter()
        .map(|platform| {
            let mut value = json!({ "architecture": platform.architecture, "os": platform.os });
            if !platform.variant.is_empty() {
                value["variant"] = platform.variant.clone().into();
            }
            value
        })
        .collect();
    json!({
        "id": worker.id,
        "labels": labels,
        "platforms": platforms,
        "gcPolicy": worker.gc_policy.iter().map(rule_json).collect::<Vec<_>>(),
        "buildkitVersion": version_json(&worker.buildkit_version.clone().unwrap_or_default()),
        "cdiDevices": devices_json(worker),
    })
}

/// The devices, or `null` as Go writes an empty list.
fn devices_json(worker: &WorkerRecord) -> Value {
    let device = |device: &CdiDevice| {
        let annotations: BTreeMap<&String, &String> = device.annotations.iter().collect();
        json!({
            "name": device.name,
            "autoAllow": device.auto_allow,
            "annotations": annotations,
            "onDemand": device.on_demand,
        })
    };
    match worker.cdi_devices.as_slice() {
        [] => Value::Null,
        devices => devices.iter().map(device).collect(),
    }
}

fn rule_json(rule: &GcPolicy) -> Value {
    json!({
        "all": rule.all,
        "filter": rule.filters,
        "keepDuration": rule.keep_duration,
        "reservedSpace": rule.reserved_space,
        "maxUsedSpace": rule.max_used_space,
        "minFreeSpace": rule.min_free_space,
    })
}

fn write_worker(writer: &mut TabWriter, worker: &WorkerRecord) {
    writer.line(format!("ID:\t{}", worker.id));
    writer.line(format!("Platforms:\t{}", platforms(worker).join(",")));
    let version = worker.buildkit_version.clone().unwrap_or_default();
    writer.line(format!("BuildKit:\t{}", version_text(&version)));
    writer.line("Labels:");
    let labels: BTreeMap<&String, &String> = worker.labels.iter().collect();
    for (key, value) in labels {
        writer.line(format!("\t{key}:\t{value}"));
    }
    write_devices(writer, worker);
    for (index, rule) in worker.gc_policy.iter().enumerate() {
        writer.line(format!("GC Policy rule#{index}:"));
        writer.line(format!("\tAll:\t{}", rule.all));
        if !rule.filters.is_empty() {
            writer.line(format!("\tFilters:\t{}", rule.filters.join(" ")));
        }
        if rule.keep_duration > 0 {
            let duration = go_duration(Duration::from_nanos(rule.keep_duration as u64));
            writer.line(format!("\tKeep duration:\t{duration}"));
        }
        for (name, bytes) in [
            ("Reserved space", rule.reserved_space),
            ("Minimum free space", rule.min_free_space),
            ("Maximum used space", rule.max_used_space),
        ] {
            if bytes > 0 {
                writer.line(format!("\t{name}:\t{}", buildctl_size(bytes)));
            }
        }
    }
    writer.write("\n");
}

fn write_devices(writer: &mut TabWriter, worker: &WorkerRecord) {
    if worker.cdi_devices.is_empty() {
        return;
    }
    writer.line("Devices:");
    for device in &worker.cdi_devices {
        writer.line(format!("\tName:\t{}", device.name));
        match device.on_demand {
            true => writer.line("\tOnDemand:\ttrue"),
            false => writer.line(format!("\tAutoAllow:\t{}", device.auto_allow)),
        }
        let annotations: BTreeMap<&String, &String> = device.annotations.iter().collect();
        for (key, value) in annotations {
            writer.line(format!("\tAnnotations:\t{key}:\t{value}"));
        }
    }
    writer.write("\n");
}
