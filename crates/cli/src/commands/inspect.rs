//! `inspect`.

use std::time::Duration;

use builder::{Builder, LoadOptions, Node, format_in_groups};
use clap::Args;
use driver::Origin;

use super::{tell_stand_in, timeout};
use crate::app::App;
use crate::display::LazyDisplay;
use crate::format::{TabWriter, binary_size, go_duration, go_time};
use crate::printer;

/// Flags of `inspect`.
#[derive(Debug, Args)]
#[command(override_usage = "inspect [NAME]")]
pub(crate) struct InspectArgs {
    /// Ensure builder has booted before inspecting
    #[arg(long)]
    bootstrap: bool,
    /// Override the default timeout for loading builder status
    #[arg(long, value_name = "duration", default_value = "20s", value_parser = timeout)]
    timeout: Duration,
    #[arg(hide = true)]
    pub(crate) name: Vec<String>,
}

/// Prints what a builder is.
pub(crate) async fn run(app: &App, args: &InspectArgs) -> Result<(), diag::Error> {
    let mut builder = Builder::load(&app.docker, app.builder_name(args.name.first()))?;
    let options = LoadOptions::with_status(args.timeout);
    let mut loaded = builder.load_nodes(options).await;
    tell_stand_in(&builder);
    if args.bootstrap {
        // Who asks for a builder that runs is told that there is none.
        loaded?;
        loaded = Ok(());
        let display = LazyDisplay::default();
        let booted = builder.boot(&display.progress()).await;
        display.finish();
        if booted? {
            loaded = builder.load_nodes(options).await;
        }
    }
    let mut writer = TabWriter::spaced();
    writer.line(format!("Name:\t{}", builder.name()));
    writer.line(format!("Driver:\t{}", builder.group.driver));
    if let Some(time) = builder.last_activity {
        writer.line(format!("Last Activity:\t{}", go_time(time)));
    }
    if let Some(reason) = &builder.broken {
        writer.line(format!("Broken:\t{reason}"));
    }
    if let Err(error) = loaded {
        writer.line(format!("Error:\t{error}"));
    } else {
        writer.write("\nNodes:\n");
        for (index, node) in builder.nodes().iter().enumerate() {
            if index > 0 {
                writer.write("\n");
            }
            write_node(&mut writer, node, app.debug).await;
        }
    }
    printer::out(writer.finish());
    Ok(())
}

async fn write_node(writer: &mut TabWriter, node: &Node, debug: bool) {
    writer.line(format!("Name:\t{}", node.name()));
    writer.line(format!("Endpoint:\t{}", node.record.endpoint));
    let options: Vec<String> = node
        .record
        .driver_opts
        .iter()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if !options.is_empty() {
        writer.line(format!("Driver Options:\t{}", options.join(" ")));
    }
    if let Some(error) = &node.error {
        writer.line(format!("Error:\t{error}"));
        return;
    }
    if let Some(status) = node.status {
        writer.line(format!("Status:\t{status}"));
    }
    if !node.record.flags.is_empty() {
        let flags = node.record.flags.join(" ");
        writer.line(format!("BuildKit daemon flags:\t{flags}"));
    }
    if !node.version.is_empty() {
        writer.line(format!("BuildKit version:\t{}", node.version));
    }
    for (name, place) in node.driver.iter().flat_map(|driver| driver.places()) {
        writer.line(format!("{name}:\t{place}"));
    }
    let platforms = format_in_groups(&node.record.platforms, &node.platforms);
    if !platforms.is_empty() {
        writer.line(format!("Platforms:\t{}", platforms.join(", ")));
    }
    if debug {
        write_features(writer, node).await;
    }
    if !node.labels.is_empty() {
        writer.line("Labels:");
        for (key, value) in &node.labels {
            writer.line(format!("\t{key}:\t{value}"));
        }
    }
    write_devices(writer, node);
    write_rules(writer, node);
    for (name, data) in &node.record.files {
        writer.line(format!("File#{name}:"));
        for line in String::from_utf8_lossy(data).split('\n') {
            writer.line(format!("\t> {line}"));
        }
    }
    write_registries(writer, node).await;
}

async fn write_features(writer: &mut TabWriter, node: &Node) {
    let Some(driver) = &node.driver else { return };
    let mut features: Vec<(&str, bool)> = driver
        .features()
        .await
        .into_iter()
        .map(|(feature, there)| (feature.name(), there))
        .collect();
    features.sort_unstable();
    writer.line("Features:");
    for (name, there) in features {
        writer.line(format!("\t{name}:\t{there}"));
    }
}

fn write_devices(writer: &mut TabWriter, node: &Node) {
    if node.devices.is_empty() {
        return;
    }
    writer.line("Devices:");
    for device in &node.devices {
        writer.line(format!("\tName:\t{}", device.name));
        if device.on_demand {
            writer.line("\tOn-Demand:\ttrue");
        } else {
            writer.line(format!("\tAutomatically allowed:\t{}", device.auto_allow));
        }
        if !device.annotations.is_empty() {
            writer.line("\tAnnotations:");
            for (key, value) in &device.annotations {
                writer.line(format!("\t\t{key}:\t{value}"));
            }
        }
    }
}

fn write_rules(writer: &mut TabWriter, node: &Node) {
    for (index, rule) in node.gc_policy.iter().enumerate() {
        writer.line(format!("GC Policy rule#{index}:"));
        writer.line(format!("\tAll:\t{}", rule.all));
        if !rule.filters.is_empty() {
            writer.line(format!("\tFilters:\t{}", rule.filters.join(" ")));
        }
        if !rule.keep_duration.is_zero() {
            let duration = go_duration(rule.keep_duration);
            writer.line(format!("\tKeep Duration:\t{duration}"));
        }
        for (name, bytes) in [
            ("Reserved Space", rule.reserved_space),
            ("Max Used Space", rule.max_used_space),
            ("Min Free Space", rule.min_free_space),
        ] {
            if bytes > 0 {
                writer.line(format!("\t{name}:\t{}", binary_size(bytes)));
            }
        }
    }
}

/// How the server talks to registries, and where that comes from; nothing where all is default.
async fn write_registries(writer: &mut TabWriter, node: &Node) {
    let Some(driver) = &node.driver else { return };
    for registry in driver.registries().await {
        let origin = match registry.origin {
            Origin::Config => "buildkitd.toml",
            Origin::Engine => "the Docker daemon's configuration",
        };
        writer.line(format!("Registry#{}:", registry.host));
        if !registry.mirrors.is_empty() {
            writer.line(format!("\tMirrors:\t{}", registry.mirrors.join(" ")));
        }
        if registry.http {
            writer.line("\tHTTP:\ttrue");
        }
        if registry.insecure {
            writer.line("\tInsecure:\ttrue");
        }
        writer.line(format!("\tFrom:\t{origin}"));
    }
}
