//! Records of builds: `prune-histories`, `debug histories`, `debug ctl` and `debug monitor`.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use clap::Args;
use driver::Connection;
use jiff::tz::TimeZone;
use proto::control::control_client::ControlClient;
use proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
    BuildResultInfo, Descriptor, Exporter, UpdateBuildHistoryRequest,
};
use serde_json::{Map, Value, json};
use tonic::transport::Channel;

use super::template;
use crate::format::{TabWriter, Template, timestamp};
use crate::printer;

/// Fields whose values are maps of the user's: nothing of them is left out.
const MAPS: [&str; 4] = ["FrontendAttrs", "Attrs", "ExporterResponse", "annotations"];

/// Flags of `prune-histories` and of `debug histories`.
#[derive(Debug, Args)]
pub(super) struct HistoriesArgs {
    /// Format the output using the given Go template, e.g, '{{json .}}'
    #[arg(long, value_name = "string")]
    format: Option<String>,
}

/// Flags of `debug ctl`.
#[derive(Debug, Args)]
pub(super) struct CtlArgs {
    /// Pin build so it will not be garbage collected
    #[arg(long)]
    pin: bool,
    /// Unpin build so it will be garbage collected
    #[arg(long)]
    unpin: bool,
    /// Delete build record
    #[arg(long)]
    delete: bool,
    /// The build
    #[arg(value_name = "ref")]
    reference: Option<String>,
}

/// Flags of `debug monitor`.
#[derive(Debug, Args)]
pub(super) struct MonitorArgs {
    /// show completed builds
    #[arg(long)]
    completed: bool,
    /// show events for a specific build
    #[arg(long = "ref", value_name = "string", default_value = "")]
    reference: String,
}

/// Lists records.
pub(super) async fn histories(
    connection: &Connection,
    args: &HistoriesArgs,
) -> Result<(), diag::Error> {
    let mut shown = Table::new(args, true)?;
    let mut events = listen(connection, everything()).await?;
    while let Some(event) = events.next().await? {
        shown.show(&event)?;
    }
    shown.end();
    Ok(())
}

/// Removes all records but those that are pinned, and prints what was removed. One that cannot be removed
/// keeps no other from it.
pub(super) async fn prune(
    connection: &Connection,
    args: &HistoriesArgs,
) -> Result<(), diag::Error> {
    let mut shown = Table::new(args, false)?;
    let mut failed: Option<diag::Error> = None;
    let mut events = listen(connection, everything()).await?;
    while let Some(event) = events.next().await? {
        let record = event.record.as_ref().filter(|record| !record.pinned);
        let Some(record) = record else { continue };
        let request = UpdateBuildHistoryRequest {
            r#ref: record.r#ref.clone(),
            delete: true,
            ..UpdateBuildHistoryRequest::default()
        };
        match update(connection, request).await {
            Ok(()) => shown.show(&event)?,
            Err(error) => failed = Some(failed.unwrap_or(error)),
        }
    }
    shown.end();
    failed.map_or(Ok(()), Err)
}

impl CtlArgs {
    /// Whose record, and what becomes of it.
    pub(super) fn request(&self) -> Result<UpdateBuildHistoryRequest, diag::Error> {
        let wrong = match (&self.reference, self.pin, self.unpin, self.delete) {
            (None, ..) => "build ref must be specified",
            (_, false, false, false) => "must specify one of --pin, --unpin, --delete",
            (_, true, true, _) => "cannot specify both --pin and --unpin",
            (_, pin, unpin, true) if pin || unpin => {
                "cannot specify --delete with --pin or --unpin"
            }
            (Some(reference), pinned, _, delete) => {
                return Ok(UpdateBuildHistoryRequest {
                    r#ref: reference.clone(),
                    pinned,
                    delete,
                    ..UpdateBuildHistoryRequest::default()
                });
            }
        };
        Err(diag::Error::invalid(wrong))
    }
}

/// Changes or removes a record.
pub(super) async fn update(
    connection: &Connection,
    request: UpdateBuildHistoryRequest,
) -> Result<(), diag::Error> {
    let answer = control(connection).update_build_history(request).await;
    answer.map_err(|status| connection.call_error(&status, "failed to update build history"))?;
    Ok(())
}

/// Prints what happens to builds until the server ends it.
pub(super) async fn monitor(
    connection: &Connection,
    args: &MonitorArgs,
) -> Result<(), diag::Error> {
    let request = BuildHistoryRequest {
        active_only: !args.completed,
        r#ref: args.reference.clone(),
        ..BuildHistoryRequest::default()
    };
    let mut events = listen(connection, request).await?;
    while let Some(event) = events.next().await? {
        let record = event.record.clone().unwrap_or_default();
        let kind = event.r#type().as_str_name();
        printer::out_line(format!("event: {kind} ref:{}", record.r#ref));
        printer::out(told(&record));
    }
    Ok(())
}

/// What happens to builds.
pub(super) struct Events<'a> {
    connection: &'a Connection,
    stream: tonic::Streaming<BuildHistoryEvent>,
}

impl Events<'_> {
    /// The next event; nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<BuildHistoryEvent>, diag::Error> {
        let event = self.stream.message().await;
        event.map_err(|status| {
            let context = "failed to receive build history";
            self.connection.call_error(&status, context)
        })
    }
}

/// Asks for events.
pub(super) async fn listen(
    connection: &Connection,
    request: BuildHistoryRequest,
) -> Result<Events<'_>, diag::Error> {
    let stream = control(connection).listen_build_history(request).await;
    let stream =
        stream.map_err(|status| connection.call_error(&status, "failed to list build history"))?;
    Ok(Events {
        connection,
        stream: stream.into_inner(),
    })
}

fn control(connection: &Connection) -> ControlClient<Channel> {
    ControlClient::new(connection.channel.clone()).max_decoding_message_size(64 << 20)
}

fn everything() -> BuildHistoryRequest {
    BuildHistoryRequest {
        early_exit: true,
        ..BuildHistoryRequest::default()
    }
}

/// Records as a table, or as a template wants them.
struct Table {
    template: Option<Template>,
    pinned: bool,
    header: Option<TabWriter>,
}

impl Table {
    fn new(args: &HistoriesArgs, pinned: bool) -> Result<Self, diag::Error> {
        let template = args.format.as_deref().map(template).transpose()?;
        let mut header = TabWriter::tabbed();
        header.write("TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION");
        header.line(if pinned { "\tPINNED" } else { "" });
        Ok(Table {
            header: template.is_none().then_some(header),
            template,
            pinned,
        })
    }

    fn show(&mut self, event: &BuildHistoryEvent) -> Result<(), diag::Error> {
        if let Some(template) = &self.template {
            let value = event_value(event, template.is_whole_json());
            printer::out_line(template.render(&value)?);
            return Ok(());
        }
        let record = event.record.clone().unwrap_or_default();
        let mut writer = self.header.take().unwrap_or_else(TabWriter::tabbed);
        writer.write(&format!(
            "{}\t{}\t{}\t{}\t{}",
            event.r#type().as_str_name(),
            record.r#ref,
            time_text(record.created_at.map(|time| (time.seconds, time.nanos))),
            time_text(record.completed_at.map(|time| (time.seconds, time.nanos))),
            record.generation,
        ));
        let star = if record.pinned { "\t*" } else { "\t" };
        writer.line(if self.pinned { star } else { "" });
        printer::out(writer.finish());
        Ok(())
    }

    fn end(self) {
        if let Some(header) = self.header {
            printer::out(header.finish());
        }
    }
}

/// RFC 3339 with seconds, in the user's time zone.
fn time_text(time: Option<(i64, i32)>) -> String {
    let Some((seconds, nanos)) = time else {
        return String::new();
    };
    let time = timestamp(seconds, nanos).to_zoned(TimeZone::system());
    let text = time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string();
    match text.strip_suffix("+00:00") {
        Some(text) => format!("{text}Z"),
        None => text,
    }
}

/// What is told of a record besides its name, a line each.
fn told(record: &BuildHistoryRecord) -> String {
    let mut text = String::new();
    let mut line = |line: String| text += &format!("  {line}\n");
    if record.num_total_steps != 0 {
        let (cached, total) = (record.num_cached_steps, record.num_total_steps);
        line(format!("cache: {cached}/{total}"));
    }
    if record.num_warnings != 0 {
        line(format!("warnings: {}", record.num_warnings));
    }
    for (name, blob) in [("logs", &record.logs), ("trace", &record.trace)] {
        if let Some(blob) = blob {
            line(format!("{name}: {}", blob_text(blob)));
        }
    }
    let by_platform: BTreeMap<_, _> = record.results.iter().collect();
    let results = by_platform
        .into_iter()
        .map(|(platform, result)| (format!("[{platform}] "), result));
    let whole = record.result.iter().map(|result| (String::new(), result));
    for (prefix, result) in whole.chain(results) {
        let several: BTreeMap<_, _> = result.results.iter().collect();
        let mut images: Vec<&Descriptor> = several.into_values().collect();
        if images.is_empty() {
            images.extend(&result.result_deprecated);
        }
        for image in images {
            line(format!("{prefix}descriptor: {}", blob_text(image)));
        }
        for attestation in &result.attestations {
            line(format!("{prefix}attestation: {}", blob_text(attestation)));
        }
    }
    text
}

fn blob_text(blob: &Descriptor) -> String {
    let mut text = format!(
        "media_type:{:?} digest:{:?} size:{}",
        blob.media_type, blob.digest, blob.size
    );
    let annotations: BTreeMap<_, _> = blob.annotations.iter().collect();
    for (key, value) in annotations {
        text += &format!(" annotations:{{key:{key:?} value:{value:?}}}");
    }
    text
}

/// An event as templates see it, with every field; or as JSON, where numbers stand for kinds and what is
/// empty is left out.
fn event_value(event: &BuildHistoryEvent, as_json: bool) -> Value {
    let record = event.record.as_ref().map(record_value);
    let kind = match as_json {
        true => json!(event.r#type),
        false => json!(kind_name(event.r#type())),
    };
    let mut value = json!({ "type": kind, "record": record });
    if as_json {
        drop_empty(&mut value);
    }
    value
}

fn kind_name(kind: BuildHistoryEventType) -> &'static str {
    kind.as_str_name()
}

fn record_value(record: &BuildHistoryRecord) -> Value {
    let results: BTreeMap<_, _> = record.results.iter().collect();
    let results: Map<String, Value> = results
        .into_iter()
        .map(|(platform, result)| (platform.clone(), result_value(result)))
        .collect();
    let error = record.error.as_ref().map(|error| {
        let encode = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
        let details = error.details.iter();
        let details: Vec<Value> = details
            .map(|detail| json!({"type_url": detail.type_url, "value": encode(&detail.value)}))
            .collect();
        json!({"code": error.code, "message": error.message, "details": details})
    });
    let time = |time: Option<(i64, i32)>| {
        time.map(|(seconds, nanos)| json!({"seconds": seconds, "nanos": nanos}))
    };
    json!({
        "Ref": record.r#ref,
        "Frontend": record.frontend,
        "FrontendAttrs": sorted(&record.frontend_attrs),
        "Exporters": record.exporters.iter().map(exporter_value).collect::<Vec<_>>(),
        "error": error,
        "CreatedAt": time(record.created_at.map(|time| (time.seconds, time.nanos))),
        "CompletedAt": time(record.completed_at.map(|time| (time.seconds, time.nanos))),
        "logs": record.logs.as_ref().map(blob_value),
        "ExporterResponse": sorted(&record.exporter_response),
        "Result": record.result.as_ref().map(result_value),
        "Results": results,
        "Generation": record.generation,
        "trace": record.trace.as_ref().map(blob_value),
        "pinned": record.pinned,
        "numCachedSteps": record.num_cached_steps,
        "numTotalSteps": record.num_total_steps,
        "numCompletedSteps": record.num_completed_steps,
        "externalError": record.external_error.as_ref().map(blob_value),
        "numWarnings": record.num_warnings,
    })
}

fn exporter_value(exporter: &Exporter) -> Value {
    json!({"Type": exporter.r#type, "Attrs": sorted(&exporter.attrs)})
}

fn result_value(result: &BuildResultInfo) -> Value {
    let results: BTreeMap<_, _> = result.results.iter().collect();
    let results: Map<String, Value> = results
        .into_iter()
        .map(|(number, blob)| (number.to_string(), blob_value(blob)))
        .collect();
    json!({
        "ResultDeprecated": result.result_deprecated.as_ref().map(blob_value),
        "Attestations": result.attestations.iter().map(blob_value).collect::<Vec<_>>(),
        "Results": results,
    })
}

fn blob_value(blob: &Descriptor) -> Value {
    json!({
        "media_type": blob.media_type,
        "digest": blob.digest,
        "size": blob.size,
        "annotations": sorted(&blob.annotations),
    })
}

fn sorted(map: &HashMap<String, String>) -> Value {
    let sorted: BTreeMap<_, _> = map.iter().collect();
    json!(sorted)
}

/// Takes out the fields that Go's encoder would leave out.
fn drop_empty(value: &mut Value) {
    if let Value::Array(items) = value {
        items.iter_mut().for_each(drop_empty);
    }
    let Value::Object(fields) = value else { return };
    fields.retain(|_, field| match field {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    });
    let nested = fields.iter_mut();
    nested
        .filter(|(name, _)| !MAPS.contains(&name.as_str()))
        .for_each(|(_, field)| drop_empty(field));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> BuildHistoryEvent {
        let attrs = [("no-cache".to_owned(), String::new())];
        let record = BuildHistoryRecord {
            r#ref: "abc".into(),
            frontend_attrs: attrs.into(),
            num_total_steps: 3,
            num_cached_steps: 1,
            logs: Some(Descriptor {
                digest: "sha256:1".into(),
                size: 7,
                ..Descriptor::default()
            }),
            ..BuildHistoryRecord::default()
        };
        BuildHistoryEvent {
            r#type: BuildHistoryEventType::Complete.into(),
            record: Some(record),
        }
    }

    #[test]
    fn json_is_that_of_go_and_templates_see_every_field() {
        assert_eq!(
            event_value(&event(), true).to_string(),
            r#"{"type":1,"record":{"Ref":"abc","FrontendAttrs":{"no-cache":""},"logs":{"digest":"sha256:1","size":7},"numCachedSteps":1,"numTotalSteps":3}}"#
        );
        let text = "{{.Type}} {{.Record.Ref}} {{.Record.Pinned}}";
        let shown = template(text).unwrap();
        assert!(!shown.is_whole_json());
        let value = event_value(&event(), false);
        assert_eq!(shown.render(&value).unwrap(), "COMPLETE abc false");
        assert!(template("json").unwrap().is_whole_json());
    }

    #[test]
    fn events_are_told_in_lines() {
        assert_eq!(
            told(&event().record.unwrap()),
            "  cache: 1/3\n  logs: media_type:\"\" digest:\"sha256:1\" size:7\n"
        );
    }

    #[test]
    fn a_record_is_changed_in_one_way() {
        let args = |flags: &str| CtlArgs {
            pin: flags.contains('p'),
            unpin: flags.contains('u'),
            delete: flags.contains('d'),
            reference: flags.contains('r').then(|| "abc".to_owned()),
        };
        let error = |flags: &str| args(flags).request().unwrap_err().to_string();
        assert_eq!(error("p"), "build ref must be specified");
        assert_eq!(error("r"), "must specify one of --pin, --unpin, --delete");
        assert_eq!(error("rpu"), "cannot specify both --pin and --unpin");
        assert_eq!(
            error("rdu"),
            "cannot specify --delete with --pin or --unpin"
        );
        let request = args("rp").request().unwrap();
        assert!(request.pinned && !request.delete && request.r#ref == "abc");
        let request = args("ru").request().unwrap();
        assert!(!request.pinned && !request.delete);
        assert!(args("rd").request().unwrap().delete);
    }
}
